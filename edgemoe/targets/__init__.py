"""Boards: a common top, and for each board its clocks and pins. Wiring only; what works is in `edgemoe.periph` and `edgemoe.core`."""
