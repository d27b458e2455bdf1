// Drives the memory port of a simulated memory system from a file, and writes down what happens.
//
// Usage: simulator OPERATIONS RESULT MAX_CYCLES [+plusargs]
//
// OPERATIONS, 32-bit words: numbers of requests, writes and gaps; (gap, address, words) of each request;
// (gap, address, data) of each write; gaps of read_data. A gap is a number of idle cycles before a transfer.
// RESULT: for each transfer, 4 words: cycle, kind (0 request, 1 write, 2 data), violations so far, 0; data words
// are followed by their bytes in the file RESULT.data. Cycles are those of the port.
//
// With CORE_PS and MEMORY_PS the memory has a clock of its own; these are its and the port's half periods.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

#define PORT(stream, member) stream##___05F##member  // Verilator's spelling of __

namespace {

constexpr unsigned PORT_WORDS = (PORT_BYTES + 3) / 4;

struct Operation {
    uint32_t gap, address, words;
    uint8_t data[4 * PORT_WORDS];
};

// Fills a payload: 28 bits of address, then bytes.
template <class Port>
void put(Port& port, uint32_t address, const uint8_t* data, unsigned count) {
    uint8_t raw[PORT_BYTES + 16] = {};
    std::memcpy(raw, &address, 4);
    for (unsigned i = 0; i < count; ++i) {
        raw[3 + i] |= data[i] << 4;
        raw[4 + i] = data[i] >> 4;
    }
    std::memcpy(&port, raw, sizeof port);
}

}  // namespace

int main(int argc, char** argv) {
    Verilated::commandArgs(argc, argv);
    std::FILE* file = std::fopen(argv[1], "rb");
    std::FILE* events = std::fopen(argv[2], "wb");
    std::FILE* bytes = std::fopen((std::string(argv[2]) + ".data").c_str(), "wb");
    const uint64_t limit = std::strtoull(argv[3], nullptr, 10);
    if (!file || !events || !bytes) return 2;
    auto word = [&] {
        uint32_t value = 0;
        if (std::fread(&value, 4, 1, file) != 1) std::exit(2);
        return value;
    };
    const uint32_t requests = word(), writes = word(), gaps = word();
    std::vector<Operation> request(requests), write(writes);
    std::vector<uint32_t> gap(gaps);
    uint64_t expected = 0;
    for (auto& r : request) {
        r.gap = word(), r.address = word(), r.words = word();
        expected += r.words;
    }
    for (auto& w : write) {
        w.gap = word(), w.address = word();
        if (std::fread(w.data, 1, PORT_BYTES, file) != PORT_BYTES) return 2;
    }
    for (auto& g : gap) g = word();

    Vtop top;
    uint64_t cycle = 0, received = 0;
    uint32_t at_request = 0, at_write = 0;
    uint32_t wait_request = requests ? request[0].gap : 0, wait_write = writes ? write[0].gap : 0;
    uint32_t wait_data = gap[0];
    bool offered = false;
    auto before = top.PORT(read_data, payload);
    auto event = [&](uint32_t kind) {
        const uint32_t record[4] = {uint32_t(cycle), kind, uint32_t(top.violations), 0};
        std::fwrite(record, 4, 4, events);
    };
#ifdef MEMORY_PS
    // A second clock, of another period and phase: all its edges before the next one of the first.
    uint64_t now = 0, memory_edge = 1;
#endif
    auto tick = [&] {
#ifdef MEMORY_PS
        now += 2 * CORE_PS;
        for (; memory_edge < now; memory_edge += MEMORY_PS) {
            top.memory_clk = !top.memory_clk;
            top.eval();
        }
#endif
        top.clk = 1;
        top.eval();
        top.clk = 0;
        top.eval();
    };
    top.clk = 0, top.rst = 0, top.dump = 0;
#ifdef MEMORY_PS
    top.memory_clk = 0, top.memory_rst = 0;
#endif
    top.eval();
    uint32_t quiet = 0;
    while (quiet < 300) {
        if (cycle >= limit) {
            std::fprintf(stderr, "deadlock: after %llu cycles %u of %u requests, %u of %u writes, %llu of %llu words\n",
                         (unsigned long long)cycle, at_request, requests, at_write, writes,
                         (unsigned long long)received, (unsigned long long)expected);
            return 3;
        }
        const bool asks = at_request < requests && !wait_request;
        const bool stores = at_write < writes && !wait_write;
        const bool takes = !wait_data;
        top.PORT(read_request, valid) = asks;
        if (asks) {
            const uint8_t length = request[at_request].words - 1;
            put(top.PORT(read_request, payload), request[at_request].address, &length, 1);
        }
        top.PORT(write, valid) = stores;
        if (stores) put(top.PORT(write, payload), write[at_write].address, write[at_write].data, PORT_BYTES);
        top.PORT(read_data, ready) = takes;
        top.eval();
        if (offered && (!top.PORT(read_data, valid) || std::memcmp(&before, &top.PORT(read_data, payload), sizeof before))) {
            std::fprintf(stderr, "read_data: an offer that was refused has changed in cycle %llu\n", (unsigned long long)cycle);
            return 4;
        }
        if (stores && top.PORT(write, ready)) {
            event(1);
            ++at_write;
            wait_write = at_write < writes ? write[at_write].gap : 0;
        } else if (wait_write) {
            --wait_write;
        }
        if (asks && top.PORT(read_request, ready)) {
            event(0);
            ++at_request;
            wait_request = at_request < requests ? request[at_request].gap : 0;
        } else if (wait_request) {
            --wait_request;
        }
        offered = top.PORT(read_data, valid) && !takes;
        before = top.PORT(read_data, payload);
        if (top.PORT(read_data, valid) && takes) {
            event(2);
            std::fwrite(&top.PORT(read_data, payload), 1, PORT_BYTES, bytes);
            ++received;
            wait_data = gap[received % gaps];
        } else if (wait_data) {
            --wait_data;
        }
        const bool done = at_request == requests && at_write == writes && received == expected;
        quiet = done ? quiet + 1 : 0;
        tick();
        ++cycle;
    }
    if (received != expected) {
        std::fprintf(stderr, "%llu words came, %llu were asked for\n", (unsigned long long)received, (unsigned long long)expected);
        return 4;
    }
    top.dump = 1;
    top.eval();
    tick();
    event(3);
    top.final();
    return std::fclose(events) || std::fclose(bytes);
}
