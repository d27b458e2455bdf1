"""A compiled model on an accelerator: the golden machine, the simulated gateware, or a board on a serial line."""
