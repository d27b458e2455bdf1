"""The accelerator around the units: descriptors, memory traffic, activation memory and the top."""
