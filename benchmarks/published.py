"""What others published, and what must hold (DESIGN, "Numbers that must hold")."""

from __future__ import annotations

SOURCE = (
    "Sarkar et al., Edge-MoE, ICCAD 2023 (arXiv 2305.18691), and what follows from its public code: 256 linear lanes and "
    "2 x 32 attention lanes, a port of 32 B/cycle, 16-bit weights, 32-bit activations."
)
CYCLES = "10.4 M as published (34.64 ms at 300 MHz); 5.83 M as coded and ideal; 6.39 M without overlap"
UTILISATION = 0.29
EXTERNAL_BYTES = 155e6
DECIBEL = {"db_forced": "45", "db_free": "39.8 / 42.9"}
FOLLOWERS = "UbiMoE 7.73 M cycles; CoQMoE (int8, 1754 DSPs) 1.94 M cycles"

MUST = {64: 0.97, 128: 0.97, 256: 0.95, 512: 0.94, 1024: 0.92}
STRETCH = {64: 0.985, 128: 0.98, 256: 0.97, 512: 0.96, 1024: 0.95}
"""MAC utilisation of a whole image by number of multipliers, two slot sets."""
MUST_CYCLES, STRETCH_CYCLES = 3.22e6, 3.15e6
"""Per image at 256 multipliers."""
MUST_BYTES = {"any": 18.8e6, "released": 17.3e6}
"""External bytes per image, w8a16."""
