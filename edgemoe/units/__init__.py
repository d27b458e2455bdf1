"""The units of the accelerator, one file each: Spec, golden function, Component, cycles.

Golden functions take and return numpy integers and agree with the Component bit for bit; every
Component is an elastic stream with an initiation interval of one cycle and a fixed latency.
"""
