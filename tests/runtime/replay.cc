// Runs recorded programs through the C ABI and compares every bit of what they give: the test of a machine that has no
// Python. tests/runtime/recordings.py writes the file; build with -DSUBTONE_REPLAY=ON.
//
//   replay FILE    one line for each instruction set of this machine, `name runs`; the first difference ends it with 1
//
// All numbers are 64-bit, little-endian. A blob is its number of bytes, then these, then zeros up to a multiple of 8.
//   sizeof(subtone_op), number of cases; each case:
//     widths (blob of int64), number of inputs, output value
//     number of ops; each: blob of a subtone_op, number of its pointers; each: its offset in the op, blob it points at
//     number of runs; each: rows (blob of subtone_rows), bytes of the arena, blob of the state before, of every input,
//     of the result, of the state behind
// Every blob lies at the end of a page that nothing follows: who reads or writes beyond it ends the process.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../native/subtone.h"

namespace {

// Bytes that end where readable memory ends.
class Guarded {
 public:
  explicit Guarded(size_t size, const void* bytes = nullptr) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (size + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE)) {
      std::perror("replay: mapping memory");
      std::exit(2);
    }
    data_ = base_ + mapped_ - page - size;
    if (bytes)
      std::memcpy(data_, bytes, size);
    else
      std::memset(data_, 0xA5, size);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <typename T>
  T* as() const { return reinterpret_cast<T*>(data_); }
  size_t size() const { return size_; }
  bool operator==(const Guarded& other) const { return size_ == other.size_ && !std::memcmp(data_, other.data_, size_); }

 private:
  size_t size_, mapped_;
  char *base_, *data_;
};

using Blob = std::unique_ptr<Guarded>;

class Reader {
 public:
  explicit Reader(const std::vector<char>& bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

  int64_t number() {
    int64_t value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  Blob blob() {
    const size_t size = static_cast<size_t>(number());
    return std::make_unique<Guarded>(size, take((size + 7) / 8 * 8));
  }

 private:
  const char* take(size_t size) {
    if (size > static_cast<size_t>(end_ - at_)) {
      std::fprintf(stderr, "replay: the file ends early\n");
      std::exit(2);
    }
    at_ += size;
    return at_ - size;
  }
  const char *at_, *end_;
};

struct Op {
  subtone_op op;
  std::vector<Blob> constants;
};

struct Run {
  Blob rows, state, result, new_state;
  int64_t arena_bytes;
  std::vector<Blob> inputs;
};

struct Case {
  Blob widths;
  int64_t num_inputs, output;
  std::vector<Op> ops;
  std::vector<Run> runs;
};

Case read_case(Reader& reader) {
  Case one;
  one.widths = reader.blob();
  one.num_inputs = reader.number();
  one.output = reader.number();
  one.ops.resize(static_cast<size_t>(reader.number()));
  for (Op& op : one.ops) {
    const Blob record = reader.blob();
    std::memcpy(&op.op, record->as<char>(), sizeof op.op);
    for (int64_t left = reader.number(); left; --left) {
      char* field = reinterpret_cast<char*>(&op.op) + reader.number();
      op.constants.push_back(reader.blob());
      void* address = op.constants.back()->as<void>();
      std::memcpy(field, &address, sizeof address);
    }
  }
  one.runs.resize(static_cast<size_t>(reader.number()));
  for (Run& run : one.runs) {
    run.rows = reader.blob();
    run.arena_bytes = reader.number();
    run.state = reader.blob();
    for (int64_t left = one.num_inputs; left; --left) run.inputs.push_back(reader.blob());
    run.result = reader.blob();
    run.new_state = reader.blob();
  }
  return one;
}

bool is_ok(int32_t status, const char* doing) {
  if (status != SUBTONE_OK) std::printf("%s: %s\n", doing, subtone_status_text(status));
  return status == SUBTONE_OK;
}

int64_t floats_of(const Blob& blob) { return static_cast<int64_t>(blob->size() / sizeof(float)); }

bool gives_the_same(const Case& one, const char* isa, int32_t threads) {
  subtone_engine* engine = nullptr;
  const int32_t values = static_cast<int32_t>(one.widths->size() / sizeof(int64_t));
  if (!is_ok(subtone_create(isa, threads, one.widths->as<int64_t>(), values, static_cast<int32_t>(one.num_inputs),
                            static_cast<int32_t>(one.output), &engine),
             "making an engine"))
    return false;
  bool same = true;
  for (const Op& op : one.ops) same = same && is_ok(subtone_append(engine, &op.op), "adding an op");
  for (const Run& run : one.runs) {
    std::vector<const float*> inputs;
    for (const Blob& input : run.inputs) inputs.push_back(input->as<float>());
    const Guarded y(run.result->size()), state(run.new_state->size());
    same = same && is_ok(subtone_reserve(engine, run.arena_bytes), "taking memory") &&
           is_ok(subtone_run(engine, run.rows->as<subtone_rows>(), inputs.data(), y.as<float>(),
                             run.state->as<float>(), floats_of(run.state), state.as<float>(), floats_of(run.new_state)),
                 "a run");
    if (same && !(y == *run.result && state == *run.new_state)) {
      std::printf("run %d differs\n", static_cast<int>(&run - one.runs.data()));
      same = false;
    }
  }
  subtone_destroy(engine);
  return same;
}

std::vector<char> contents(const char* path) {
  std::vector<char> bytes;
  if (std::FILE* file = std::fopen(path, "rb")) {
    char part[1 << 16];
    for (size_t size; (size = std::fread(part, 1, sizeof part, file));) bytes.insert(bytes.end(), part, part + size);
    std::fclose(file);
  }
  return bytes;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "usage: replay FILE\n"), 2;
  const std::vector<char> bytes = contents(arguments[1]);
  Reader reader(bytes);
  if (reader.number() != sizeof(subtone_op)) return std::fprintf(stderr, "replay: ops of another size\n"), 2;
  std::vector<Case> cases(static_cast<size_t>(reader.number()));
  for (Case& one : cases) one = read_case(reader);
  const char* names[8];
  const int32_t isas = subtone_isas(names, 8);
  for (int32_t isa = 0; isa < isas; ++isa) {
    size_t runs = 0;
    for (const Case& one : cases)
      for (int32_t threads = 1; threads <= 2; ++threads, runs += one.runs.size())
        if (!gives_the_same(one, names[isa], threads)) {
          std::printf("%s, case %d, %d threads\n", names[isa], static_cast<int>(&one - cases.data()), threads);
          return 1;
        }
    std::printf("%s %zu\n", names[isa], runs);
  }
  return 0;
}
