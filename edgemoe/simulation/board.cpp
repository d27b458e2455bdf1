// Simulates a board: two clocks, and a serial line whose other end is the process that started this.
//
// Commands on the standard input, answers on the standard output, numbers little endian:
//   W, count (4), bytes    puts bytes on the line, one after the other without gaps
//   R, us (4)              runs until a byte has come from the board, or so much time has passed; answers with
//                          the number of bytes (4) and the bytes
//   S                      answers with core cycles (8), broken rules of the memory (4) and lights (4)
// The end of the input ends the simulation. Text of the design goes to the standard error.
//
// CORE_PS, MEMORY_PS: half periods; BIT_PS: a bit of the line.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

#include "Vboard.h"
#include "verilated.h"

namespace {

class Board {
public:
    Board() {
        top_.clk = 0, top_.rst = 1, top_.memory_clk = 0, top_.memory_rst = 1, top_.rx = 1;
        top_.eval();
    }

    void send(uint8_t byte) { queue_.push_back(byte); }

    std::vector<uint8_t> receive(uint64_t ps) {
        const uint64_t end = now_ + ps;
        while (came_.empty() && now_ < end) step();
        std::vector<uint8_t> bytes;
        bytes.swap(came_);
        return bytes;
    }

    uint64_t cycles() const { return cycles_; }
    uint32_t violations() const { return top_.violations; }
    uint32_t lights() const { return top_.busy | top_.error << 1 | top_.activity << 2 | top_.alive << 3; }

private:
    // To the next edge of either clock. Both are reset for their first cycles.
    void step() {
        if (memory_edge_ < core_edge_) {
            now_ = memory_edge_;
            memory_edge_ += MEMORY_PS;
            top_.memory_clk = !top_.memory_clk;
            top_.memory_rst = now_ < RESET_PS;
            top_.eval();
            return;
        }
        now_ = core_edge_;
        core_edge_ += CORE_PS;
        top_.clk = !top_.clk;
        if (top_.clk) {
            ++cycles_;
            drive();
        }
        top_.rst = now_ < RESET_PS;
        top_.eval();
        if (top_.clk) listen();
    }

    void drive() {
        if (!sending_ && !queue_.empty() && now_ >= RESET_PS) {
            sending_ = true;
            sent_at_ = free_at_ + 2ull * CORE_PS > now_ ? free_at_ : now_;  // without a gap if there is none
            free_at_ = sent_at_ + 10ull * BIT_PS;
            frame_ = (queue_.front() | 0x100) << 1;
            queue_.pop_front();
        }
        if (!sending_) return;
        const uint64_t bit = now_ < sent_at_ ? 0 : (now_ - sent_at_) / BIT_PS;
        if (bit >= 10) {
            sending_ = false;
            top_.rx = 1;
            drive();
        } else {
            top_.rx = now_ < sent_at_ ? 1 : frame_ >> bit & 1;
        }
    }

    void listen() {
        if (now_ < RESET_PS) return;
        if (!listening_) {
            if (top_.tx) return;
            listening_ = true;
            bits_ = 0, byte_ = 0;
            sample_at_ = now_ + BIT_PS / 2;
        }
        if (now_ < sample_at_) return;
        sample_at_ += BIT_PS;
        if (bits_ == 9) {
            listening_ = false;
            if (top_.tx) came_.push_back(byte_);
            else std::fprintf(stderr, "board: a byte without a stop bit\n");
        } else if (bits_ > 0) {
            byte_ |= top_.tx << (bits_ - 1);
        }
        ++bits_;
    }

    static constexpr uint64_t RESET_PS = 40ull * (CORE_PS > MEMORY_PS ? CORE_PS : MEMORY_PS);
    Vboard top_;
    uint64_t now_ = 0, core_edge_ = CORE_PS, memory_edge_ = 1, cycles_ = 0;
    std::deque<uint8_t> queue_;
    std::vector<uint8_t> came_;
    bool sending_ = false, listening_ = false;
    uint64_t sent_at_ = 0, free_at_ = 0, sample_at_ = 0;
    uint32_t frame_ = 0;
    unsigned bits_ = 0;
    uint8_t byte_ = 0;
};

std::FILE* answers;

uint32_t word() {
    uint8_t b[4];
    if (std::fread(b, 1, 4, stdin) != 4) std::exit(0);
    return b[0] | b[1] << 8 | b[2] << 16 | uint32_t(b[3]) << 24;
}

void answer(const void* data, size_t size) { std::fwrite(data, 1, size, answers); }

}  // namespace

int main(int argc, char** argv) {
    Verilated::commandArgs(argc, argv);
    answers = fdopen(dup(1), "wb");
    dup2(2, 1);  // $display
    Board board;
    for (;;) {
        const int command = std::fgetc(stdin);
        if (command == 'W') {
            for (uint32_t left = word(); left; --left) board.send(uint8_t(std::fgetc(stdin)));
        } else if (command == 'R') {
            const auto bytes = board.receive(word() * 1'000'000ull);
            const uint32_t size = bytes.size();
            answer(&size, 4);
            answer(bytes.data(), size);
            std::fflush(answers);
        } else if (command == 'S') {
            std::fflush(stdout);
            const uint64_t cycles = board.cycles();
            const uint32_t state[2] = {board.violations(), board.lights()};
            answer(&cycles, 8);
            answer(state, 8);
            std::fflush(answers);
        } else {
            return command == EOF ? 0 : 2;
        }
    }
}
