"""Simulation of the generated Verilog, from the build to decoded results.

`verilator` turns Verilog and a C++ harness into a cached executable; `job` writes what that executable
reads; `harness.cpp` drives the accelerator, models the external memory and writes the monitor's records;
`records` decodes them with numpy; `runner` ties these together. `testbench` makes a self-checking
testbench in plain Verilog, for simulators without any of this; `cocotb_build` compiles Verilog for the cocotb benches of
``sim/``. Nothing here knows the golden model:
`edgemoe.compare` brings the two together.
"""
