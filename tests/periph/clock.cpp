// Clocks a design until it finishes, beginning with a rising edge.

#include "Vtop.h"
#include "verilated.h"

int main(int argc, char** argv) {
    Verilated::commandArgs(argc, argv);
    Vtop top;
    top.clk = 0;
    top.eval();
    while (!Verilated::gotFinish()) {
        top.clk = !top.clk;
        top.eval();
    }
    top.final();
}
