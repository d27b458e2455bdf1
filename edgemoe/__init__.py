"""edgemoe: from a multi-task mixture-of-experts vision transformer to bit-exact gateware."""

__version__ = "0.1.0"
