// Drives the accelerator: clock, control port, external memory, and the monitor's records on file.
//
// Usage: simulator JOB      (the job file is described in job.py)
//
// For each run NAME of the job it writes NAME.json (counters and checks), NAME.output (the output region)
// and NAME.product, .norm, .load, .route (records: cycle in 8 bytes, then the packed record). Progress goes to
// the standard error as JSON lines. Exit status 0 means that all runs were simulated, not that they succeeded.

#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "Vaccelerator.h"
#include "constants.h"
#include "verilated.h"
#ifdef WAVES
#include "verilated_vcd_c.h"
#endif

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(2);
}

struct Run {
    std::string name;
    uint64_t program = 0, image = 0, output = 0, images = 1, task = 0, output_words = 0, records = 1;
};

struct Job {
    uint64_t memory_bytes = 0, latency = 30, bandwidth = 1024, queue = 16, stalls = 0;
    uint64_t max_cycles = ~0ull, idle_cycles = ~0ull, waves_from = 0, waves_to = ~0ull;
    std::string waves;
    std::vector<std::pair<uint64_t, std::string>> load;
    std::vector<Run> runs;
};

Job read_job(const char* path) {
    std::ifstream file(path);
    if (!file) fail(std::string("cannot read job file ") + path);
    Job job;
    std::string line;
    while (std::getline(file, line)) {
        std::istringstream words(line);
        std::string key;
        if (!(words >> key)) continue;
        auto rest = [&] {
            std::string text;
            std::getline(words >> std::ws, text);
            return text;
        };
        if (key == "run") {
            job.runs.emplace_back();
            job.runs.back().name = rest();
            continue;
        }
        if (key == "waves") {
            job.waves = rest();
            continue;
        }
        uint64_t value = 0;
        if (!(words >> value)) fail("job file: bad line: " + line);
        if (key == "load") {
            job.load.emplace_back(value, rest());
            continue;
        }
        Run* run = job.runs.empty() ? nullptr : &job.runs.back();
        uint64_t* place = key == "memory_bytes" ? &job.memory_bytes
                          : key == "latency"    ? &job.latency
                          : key == "bandwidth"  ? &job.bandwidth
                          : key == "queue"      ? &job.queue
                          : key == "stalls"     ? &job.stalls
                          : key == "max_cycles" ? &job.max_cycles
                          : key == "idle_cycles" ? &job.idle_cycles
                          : key == "waves_from" ? &job.waves_from
                          : key == "waves_to"   ? &job.waves_to
                          : !run                ? nullptr
                          : key == "program"    ? &run->program
                          : key == "image"      ? &run->image
                          : key == "output"     ? &run->output
                          : key == "images"     ? &run->images
                          : key == "task"       ? &run->task
                          : key == "output_words" ? &run->output_words
                          : key == "records"    ? &run->records
                                                : nullptr;
        if (!place) fail("job file: unknown key: " + line);
        *place = value;
    }
    return job;
}

// Pseudo-random stalls of one stream: single cycles often, long gaps now and then.
class Staller {
  public:
    void seed(uint64_t value) { state_ = value * 0x9E3779B97F4A7C15ull; }
    bool stalled() {
        if (!state_) return false;
        if (gap_) return gap_--, true;
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        if ((state_ & 0xFF) == 0) gap_ = (state_ >> 8) & 63;
        return (state_ >> 16 & 3) == 0;
    }

  private:
    uint64_t state_ = 0;
    unsigned gap_ = 0;
};

// Checks that a stream whose transfer was refused offers the same payload in the next cycle.
template <size_t Bytes>
class StreamRule {
  public:
    // True if this cycle breaks the rule.
    bool broken(bool valid, bool ready, const void* payload) {
        const bool wrong = waiting_ && (!valid || std::memcmp(last_, payload, Bytes) != 0);
        waiting_ = valid && !ready;
        if (waiting_) std::memcpy(last_, payload, Bytes);
        return wrong;
    }

  private:
    bool waiting_ = false;
    unsigned char last_[Bytes] = {};
};

// One kind of record: valid, payload and the file.
class RecordFile {
  public:
    void open(const std::string& path) {
        file_ = std::fopen(path.c_str(), "wb");
        if (!file_) fail("cannot write " + path);
        std::setvbuf(file_, nullptr, _IOFBF, 1 << 20);
        count = 0;
    }
    void close() {
        if (file_ && std::fclose(file_)) fail("cannot write the records: disk full?");
        file_ = nullptr;
    }
    void add(uint64_t cycle, const void* payload, size_t bytes) {
        ++count;
        std::memcpy(&number, payload, 4);
        if (!file_) return;
        std::fwrite(&cycle, 8, 1, file_);
        std::fwrite(payload, 1, bytes, file_);
    }
    uint64_t count = 0;
    uint32_t number = 0;

  private:
    FILE* file_ = nullptr;
};

class Simulation {
  public:
    explicit Simulation(const Job& job) : job_(job), memory_(job.memory_bytes, 0xA5) {
        words_ = job.memory_bytes / PORT_BYTES;
        for (const auto& [address, path] : job.load) {
            std::ifstream file(path, std::ios::binary | std::ios::ate);
            if (!file) fail("cannot read " + path);
            const uint64_t size = file.tellg();
            if (address + size > memory_.size()) fail(path + " does not fit the memory");
            file.seekg(0).read(reinterpret_cast<char*>(memory_.data() + address), size);
        }
        for (int i = 0; i < 3; ++i) stalls_[i].seed(job.stalls * 3 + (job.stalls ? i : 0));
        if (!job.waves.empty()) {
#ifdef WAVES
            context_.traceEverOn(true);
            top_.trace(&waves_, 99);
            waves_.open(job.waves.c_str());
#else
            fail("this simulator was built without waves");
#endif
        }
        top_.clk = 0;
        top_.control__start = 0;
        top_.memory__read_data__valid = 0;
        top_.memory__read_request__ready = 0;
        top_.memory__write__ready = 0;
        top_.rst = 1;
        for (int i = 0; i < 4; ++i) tick();
        top_.rst = 0;
    }

    ~Simulation() {
        top_.final();
#ifdef WAVES
        if (!job_.waves.empty()) waves_.close();
#endif
    }

    void run(size_t index) {
        const Run& run = job_.runs[index];
        const char* kinds[] = {"product", "norm", "load", "route"};
        for (int i = 0; i < 4; ++i) {
            records_[i].count = 0;
            if (run.records) records_[i].open(run.name + "." + kinds[i]);
        }
        memory_errors_ = rule_errors_ = done_pulses_ = 0;
        first_error_.clear();
        cycle_ = 0, last_activity_ = 0;
        const auto begin = Clock::now();

        top_.control__program = run.program;
        top_.control__image = run.image;
        top_.control__output = run.output;
        top_.control__images = run.images;
        top_.control__task = run.task;
        top_.control__start = 1;
        bool done = false;
        const char* ended = "done";
        while (true) {
            done = step();
            top_.control__start = 0;
            if (done) break;
            if (cycle_ >= job_.max_cycles) ended = "max_cycles";
            else if (cycle_ - last_activity_ >= job_.idle_cycles) ended = "idle";
            else {
                if (!(cycle_ & 0x3FFF)) progress(index);
                continue;
            }
            break;
        }
        const uint64_t cycles = cycle_;
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        for (int i = 0; i < 8; ++i) step();  // counters settle; a second done pulse would be noticed
        for (auto& file : records_) file.close();
        save_output(run);
        save_result(run, done, ended, cycles, seconds);
        std::fprintf(stderr, "{\"run\": %zu, \"cycle\": %" PRIu64 ", \"number\": %u, \"ended\": \"%s\"}\n", index,
                     cycles, number_, ended);
    }

  private:
    void dump() {
#ifdef WAVES
        if (!job_.waves.empty() && ticks_ >= job_.waves_from && ticks_ < job_.waves_to)
            waves_.dump(context_.time());
#endif
    }

    // One clock cycle with the inputs as they are, memory untouched.
    void tick() {
        top_.clk = 0;
        top_.eval();
        dump();
        context_.timeInc(1);
        rise();
    }

    void rise() {
        top_.clk = 1;
        top_.eval();
        dump();
        context_.timeInc(1);
        ++ticks_;
    }

    void note(uint64_t& counter, const std::string& message) {
        if (!counter++ && first_error_.empty()) first_error_ = message + " in cycle " + std::to_string(cycle_);
    }

    // One clock cycle with memory and monitor; true if `done` was high in it.
    bool step() {
        const bool limited = job_.bandwidth < 1024;
        if (limited) credit_ = std::min<int64_t>(credit_ + job_.bandwidth, 2048);
        const bool paid = !limited || credit_ >= 1024;

        // inputs
        if (!data_valid_ && !reads_.empty() && reads_.front().time <= ticks_ && paid && !stalls_[0].stalled()) {
            data_valid_ = true;
            const uint64_t address = reads_.front().address;
            if (address < words_)
                std::memcpy(&top_.memory__read_data__payload, &memory_[address * PORT_BYTES], PORT_BYTES);
            else
                std::memset(&top_.memory__read_data__payload, 0xA5, PORT_BYTES);
        }
        top_.memory__read_data__valid = data_valid_;
        const bool request_ready = reads_.size() < job_.queue && !stalls_[1].stalled();
        top_.memory__read_request__ready = request_ready;
        const bool write_ready = paid && !stalls_[2].stalled();
        top_.memory__write__ready = write_ready;
        top_.clk = 0;
        top_.eval();
        dump();
        context_.timeInc(1);

        // outputs
        if (data_valid_ && top_.memory__read_data__ready) {
            data_valid_ = false;
            if (limited) credit_ -= 1024;
            Burst& burst = reads_.front();
            ++burst.address;
            if (!--burst.left) reads_.pop_front();
            last_activity_ = cycle_;
        }
        const bool request_valid = top_.memory__read_request__valid;
        if (request_rule_.broken(request_valid, request_ready, &top_.memory__read_request__payload))
            note(rule_errors_, "read_request changed before it was accepted");
        if (request_valid && request_ready) {
            uint64_t raw = top_.memory__read_request__payload;
            const uint64_t address = raw & ((1ull << ADDRESS_BITS) - 1);
            const uint64_t length = (raw >> ADDRESS_BITS & ((1ull << LENGTH_BITS) - 1)) + 1;
            reads_.push_back({ticks_ + job_.latency, address, length});
            if (address + length > words_)
                note(memory_errors_, "read of " + std::to_string(length) + " words from " + std::to_string(address) +
                                         " is outside of the memory");
            if (length > MAX_BURST) note(memory_errors_, "read of " + std::to_string(length) + " words is too long");
        }
        const bool write_valid = top_.memory__write__valid;
        if (write_rule_.broken(write_valid, write_ready, &top_.memory__write__payload))
            note(rule_errors_, "write changed before it was accepted");
        if (write_valid && write_ready) {
            if (limited) credit_ -= 1024;
            write();
            last_activity_ = cycle_;
        }
        monitor();
        const bool done = top_.control__done;
        done_pulses_ += done;
        rise();
        ++cycle_;
        return done;
    }

    void write() {
        unsigned char raw[sizeof top_.memory__write__payload + 8] = {};
        std::memcpy(raw, &top_.memory__write__payload, sizeof top_.memory__write__payload);
        uint64_t head = 0;
        std::memcpy(&head, raw, 8);
        const uint64_t address = head & ((1ull << ADDRESS_BITS) - 1);
        if (address >= words_) {
            note(memory_errors_, "write to " + std::to_string(address) + " is outside of the memory");
            return;
        }
        unsigned char* to = &memory_[address * PORT_BYTES];
        constexpr unsigned first = ADDRESS_BITS / 8, shift = ADDRESS_BITS % 8;
        for (unsigned i = 0; i < PORT_BYTES; ++i)
            to[i] = (raw[first + i] | raw[first + i + 1] << 8) >> shift;
    }

    void record(int kind, const void* payload, size_t bytes) {
        records_[kind].add(cycle_, payload, bytes);
        number_ = records_[kind].number;
        last_activity_ = cycle_;
    }

    void monitor() {
        static_assert(sizeof top_.monitor__product >= PRODUCT_BYTES && sizeof top_.monitor__norm >= NORM_BYTES &&
                          sizeof top_.monitor__load >= LOAD_BYTES && sizeof top_.monitor__route >= ROUTE_BYTES,
                      "the Verilog was generated for other hardware");
        if (top_.monitor__conflict && !rule_errors_)
            note(rule_errors_, "two clients met at the activation memory, or something came where there was no room");
        if (top_.monitor__product_valid) record(0, &top_.monitor__product, PRODUCT_BYTES);
        if (top_.monitor__norm_valid) record(1, &top_.monitor__norm, NORM_BYTES);
        if (top_.monitor__load_valid) record(2, &top_.monitor__load, LOAD_BYTES);
        if (top_.monitor__route_valid) record(3, &top_.monitor__route, ROUTE_BYTES);
    }

    void progress(size_t index) {
        const auto now = Clock::now();
        if (now - last_progress_ < std::chrono::milliseconds(250)) return;
        last_progress_ = now;
        std::fprintf(stderr, "{\"run\": %zu, \"cycle\": %" PRIu64 ", \"number\": %u}\n", index, cycle_, number_);
    }

    void save_output(const Run& run) {
        const uint64_t first = std::min(run.output, words_);
        const uint64_t count = std::min(run.output_words, words_ - first);
        std::ofstream file(run.name + ".output", std::ios::binary);
        file.write(reinterpret_cast<const char*>(memory_.data() + first * PORT_BYTES), count * PORT_BYTES);
        if (!file.flush()) fail("cannot write " + run.name + ".output");
    }

    void save_result(const Run& run, bool done, const char* ended, uint64_t cycles, double seconds) {
        std::ofstream file(run.name + ".json");
        file << "{\"done\": " << (done ? "true" : "false") << ", \"ended\": \"" << ended << "\""
             << ", \"harness_cycles\": " << cycles << ", \"seconds\": " << seconds
             << ", \"error\": " << unsigned(top_.control__error) << ", \"busy\": " << unsigned(top_.control__busy)
             << ", \"done_pulses\": " << done_pulses_ << ", \"last_number\": " << number_
             << ", \"memory_errors\": " << memory_errors_ << ", \"rule_errors\": " << rule_errors_
             << ", \"first_error\": \"" << first_error_ << "\", \"pending_reads\": " << reads_.size()
             << ", \"counters\": {\"cycles\": " << top_.control__cycles
             << ", \"mac_cycles\": " << top_.control__mac_cycles
             << ", \"weight_stalls\": " << top_.control__weight_stalls
             << ", \"activation_stalls\": " << top_.control__activation_stalls
             << ", \"read_words\": " << top_.control__read_words
             << ", \"write_words\": " << top_.control__write_words
             << ", \"saturated\": " << top_.control__saturated << "}, \"records\": {\"product\": "
             << records_[0].count << ", \"norm\": " << records_[1].count << ", \"load\": " << records_[2].count
             << ", \"route\": " << records_[3].count << "}}\n";
        if (!file.flush()) fail("cannot write " + run.name + ".json");
    }

    struct Burst {
        uint64_t time, address, left;
    };

    const Job& job_;
    std::vector<unsigned char> memory_;
    uint64_t words_ = 0;
    VerilatedContext context_;
    Vaccelerator top_{&context_, "accelerator"};
#ifdef WAVES
    VerilatedVcdC waves_;
#endif
    std::deque<Burst> reads_;
    bool data_valid_ = false;
    int64_t credit_ = 0;
    Staller stalls_[3];
    StreamRule<sizeof Vaccelerator::memory__read_request__payload> request_rule_;
    StreamRule<sizeof Vaccelerator::memory__write__payload> write_rule_;
    RecordFile records_[4];
    uint64_t ticks_ = 0, cycle_ = 0, last_activity_ = 0;
    uint64_t memory_errors_ = 0, rule_errors_ = 0, done_pulses_ = 0;
    std::string first_error_;
    uint32_t number_ = 0;
    Clock::time_point last_progress_{};
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) fail("usage: simulator JOB");
    const Job job = read_job(argv[1]);
    auto simulation = std::make_unique<Simulation>(job);
    for (size_t i = 0; i < job.runs.size(); ++i) simulation->run(i);
    return 0;
}
