"""What stands around the core on a board: memory controllers and clock-domain crossings, synthesisable."""
