// The engine behind the C ABI: a list of packed ops, an arena, and the threads that run them.
//
// Every op is split among the threads by position (frames, or outputs where frames are few), never by
// who is faster, and each float is computed by one thread in one order: the bits do not depend on the
// number of threads.
#include <unistd.h>

#include <memory>
#include <system_error>
#include <vector>

#include "dispatch.h"
#include "pack.h"
#include "pool.h"
#include "subtone.h"

namespace subtone {
namespace {

constexpr int64_t kBlockBytes = 64 * 1024;  // of levels a thread keeps: they share the second cache with the weights
constexpr int64_t kMaxBlockFrames = 16 * kTileFrames;
constexpr int64_t kSplitFrames = 24;  // frames are split in multiples of this: whole tiles of 6 and of 8

int64_t block_frames(const Product& product) {
  const int64_t tiles = kBlockBytes / product.row_bytes() / kTileFrames;
  if (tiles < 1) return kTileFrames;
  return tiles * kTileFrames < kMaxBlockFrames ? tiles * kTileFrames : kMaxBlockFrames;
}

Span split(int64_t count, int64_t quantum, int worker, int workers) {
  const int64_t parts = (count + quantum - 1) / quantum;
  const int64_t first = parts * worker / workers * quantum;
  const int64_t last = parts * (worker + 1) / workers * quantum;
  return {first < count ? first : count, last < count ? last : count};
}

struct Share {
  Span frames, panels;
};

// A worker's share of frames x panels. Few frames are not split: each would see all the weights.
Share share_of(int64_t frames, int64_t panels, int worker, int workers) {
  if (frames >= workers * kSplitFrames) return {split(frames, kSplitFrames, worker, workers), {0, panels}};
  return {{0, frames}, split(panels, 1, worker, workers)};
}

// Where one worker holds the levels of a block of frames.
struct Scratch {
  Buffer<int8_t> levels;
  Buffer<int32_t> sums;
  Buffer<float> scale;
};

template <typename T>
void grow(Buffer<T>* buffer, int64_t count) {
  if (buffer->size() < count) *buffer = Buffer<T>(count);
}

}  // namespace
}  // namespace subtone

using subtone::Kernel;
using subtone::PackedOp;

struct subtone_engine {
  subtone_engine(const subtone::Kernels& table, int32_t threads, std::vector<int64_t> value_widths,
                 int32_t input_value, int32_t output_value)
      : kernels(table),
        widths(std::move(value_widths)),
        is_written(widths.size(), false),
        input(input_value),
        output(output_value),
        scratch(static_cast<size_t>(threads)),
        process(getpid()),
        pool(threads) {
    is_written[static_cast<size_t>(input)] = true;
  }

  float* at(int32_t value) const {
    if (value == input) return const_cast<float*>(x);
    if (value == output) return y;
    return reinterpret_cast<float*>(arena.data() + offsets[value]);
  }

  void work(int worker) {
    for (size_t index = 0; index < ops.size(); ++index) {
      if (index) pool.wait_for_all();
      execute(*ops[index], worker);
    }
  }

  void execute(const PackedOp& op, int worker) {
    const float* from = at(op.input);
    float* to = at(op.output);
    const int64_t frames_in = frames[op.input], frames_out = frames[op.output];
    const int64_t width = widths[static_cast<size_t>(op.output)];
    const int workers = pool.workers();
    switch (op.kernel) {
      case Kernel::kMultiply:
        return multiply(op.product, from, frames_out, worker, to);
      case Kernel::kDepthwise: {
        const auto share = subtone::share_of(frames_out, op.convolution.padded_outputs / subtone::kLanes, worker, workers);
        return kernels.depthwise(op.convolution, from, frames_in, share.frames, share.panels, to);
      }
      case Kernel::kDense: {
        const int64_t panels = subtone::round_up(op.convolution.outputs, subtone::kPanel) / subtone::kPanel;
        const auto share = subtone::share_of(frames_out, panels, worker, workers);
        return kernels.dense(op.convolution, from, frames_in, share.frames, share.panels, to);
      }
      case Kernel::kAffine: {
        const auto part = subtone::split(frames_out, 1, worker, workers);
        return kernels.affine(op.finish, from + part.first * width, part.last - part.first, width, to + part.first * width);
      }
      case Kernel::kAdd: {
        const auto part = subtone::split(frames_out * width, subtone::kLanes, worker, workers);
        return kernels.add(from + part.first, at(op.other) + part.first, part.last - part.first, op.relu, to + part.first);
      }
      case Kernel::kRelu: {
        const auto part = subtone::split(frames_out * width, subtone::kLanes, worker, workers);
        return kernels.relu(from + part.first, part.last - part.first, to + part.first);
      }
      case Kernel::kClip: {
        const auto part = subtone::split(frames_out * width, subtone::kLanes, worker, workers);
        return kernels.clip(from + part.first, part.last - part.first, op.low, op.high, to + part.first);
      }
    }
  }

  // Where the outputs are split, every worker quantizes all frames for itself: they are few.
  void multiply(const subtone::Product& product, const float* from, int64_t num_frames, int worker, float* to) {
    const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
    const subtone::Levels levels = {mine.levels.data(), mine.sums.data(), mine.scale.data()};
    const int64_t panels = subtone::round_up(product.outputs, subtone::kPanel) / subtone::kPanel;
    const auto share = subtone::share_of(num_frames, panels, worker, pool.workers());
    const int64_t step = subtone::block_frames(product);
    if (share.panels.first == share.panels.last) return;
    for (int64_t t = share.frames.first; t < share.frames.last; t += step) {
      const int64_t count = t + step < share.frames.last ? step : share.frames.last - t;
      kernels.quantize(product, from + t * product.inputs, count, levels);
      kernels.multiply(product, levels, count, share.panels, to + t * product.outputs);
    }
  }

  int32_t append(const subtone_op& op) {
    const auto exists = [&](int32_t value) { return value >= 0 && static_cast<size_t>(value) < widths.size(); };
    const auto is_there = [&](int32_t value) { return exists(value) && is_written[static_cast<size_t>(value)]; };
    if (!is_there(op.input) || (op.kind == SUBTONE_ADD && !is_there(op.other))) return SUBTONE_VALUE;
    if (!exists(op.output) || is_written[static_cast<size_t>(op.output)]) return SUBTONE_VALUE;
    auto packed = std::make_unique<PackedOp>();
    const int32_t status = subtone::pack(op, widths.data(), packed.get());
    if (status != SUBTONE_OK) return status;
    if (packed->kernel == Kernel::kMultiply) {
      const int64_t count = subtone::block_frames(packed->product);
      for (subtone::Scratch& part : scratch) {
        subtone::grow(&part.levels, count * packed->product.row_bytes());
        subtone::grow(&part.sums, count * packed->product.groups);
        subtone::grow(&part.scale, count);
      }
    }
    ops.push_back(std::move(packed));
    is_written[static_cast<size_t>(op.output)] = true;
    return SUBTONE_OK;
  }

  bool lies_in_arena(int32_t value, const int64_t* value_frames, const int64_t* value_offsets) const {
    if (value == input || value == output) return true;
    const int64_t offset = value_offsets[value];
    return offset >= 0 && offset % subtone::kAlignment == 0 && offset <= arena.size() &&
           num_bytes(value, value_frames) <= arena.size() - offset;
  }

  bool overlap(int32_t left, int32_t right, const int64_t* value_frames, const int64_t* value_offsets) const {
    if (left == input || left == output || right == input || right == output) return left == right;
    return value_offsets[left] < value_offsets[right] + num_bytes(right, value_frames) &&
           value_offsets[right] < value_offsets[left] + num_bytes(left, value_frames);
  }

  int64_t num_bytes(int32_t value, const int64_t* value_frames) const {
    return value_frames[value] * widths[static_cast<size_t>(value)] * static_cast<int64_t>(sizeof(float));
  }

  // That no op can read or write outside the arena and the caller's two buffers.
  int32_t check(const int64_t* value_frames, const int64_t* value_offsets) const {
    if (!is_written[static_cast<size_t>(output)]) return SUBTONE_VALUE;
    const auto is_count = [&](int32_t value) {
      return value_frames[value] >= 0 && value_frames[value] <= SUBTONE_MAX_FRAMES;
    };
    if (!is_count(input)) return SUBTONE_PLAN;
    for (const auto& op : ops) {
      if (!is_count(op->output) || value_frames[op->output] != op->frames_out(value_frames[op->input]) ||
          value_frames[op->other] != value_frames[op->input])
        return SUBTONE_PLAN;
      if (!lies_in_arena(op->output, value_frames, value_offsets)) return SUBTONE_PLAN;
      if (overlap(op->output, op->input, value_frames, value_offsets) ||
          overlap(op->output, op->other, value_frames, value_offsets))
        return SUBTONE_PLAN;
    }
    return SUBTONE_OK;
  }

  const subtone::Kernels& kernels;
  const std::vector<int64_t> widths;
  std::vector<bool> is_written;
  const int32_t input, output;
  std::vector<std::unique_ptr<PackedOp>> ops;
  std::vector<subtone::Scratch> scratch;
  subtone::Buffer<uint8_t> arena;
  const pid_t process;
  // Of the run in progress.
  const int64_t* frames = nullptr;
  const int64_t* offsets = nullptr;
  const float* x = nullptr;
  float* y = nullptr;
  subtone::Pool pool;  // last: its threads end before what they use
};

namespace {

// What `body` returns; the exceptions that C++ itself throws become statuses.
template <typename Body>
int32_t guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return SUBTONE_MEMORY;
  } catch (const std::system_error&) {
    return SUBTONE_THREADS;
  }
}

}  // namespace

extern "C" {

int32_t subtone_create(const char* isa, int32_t threads, const int64_t* widths, int32_t num_values,
                       int32_t input, int32_t output, subtone_engine** engine) {
  if (!isa || !widths || !engine) return SUBTONE_NULL;
  *engine = nullptr;
  if (threads < 1 || threads > SUBTONE_MAX_THREADS || num_values < 2) return SUBTONE_SIZE;
  for (int32_t value = 0; value < num_values; ++value)
    if (widths[value] < 1 || widths[value] > SUBTONE_MAX_SIZE) return SUBTONE_SIZE;
  const auto exists = [&](int32_t value) { return value >= 0 && value < num_values; };
  if (!exists(input) || !exists(output) || input == output) return SUBTONE_VALUE;
  const subtone::Kernels* kernels = subtone::find_kernels(isa);
  if (!kernels) return SUBTONE_ISA;
  return guarded([&] {
    *engine = new subtone_engine(*kernels, threads, std::vector<int64_t>(widths, widths + num_values), input, output);
    return SUBTONE_OK;
  });
}

int32_t subtone_append(subtone_engine* engine, const subtone_op* op) {
  if (!engine || !op) return SUBTONE_NULL;
  return guarded([&] { return engine->append(*op); });
}

int32_t subtone_reserve(subtone_engine* engine, int64_t arena_bytes) {
  if (!engine) return SUBTONE_NULL;
  if (arena_bytes < 0) return SUBTONE_SIZE;
  return guarded([&] {
    if (engine->arena.size() < arena_bytes) {
      engine->arena = subtone::Buffer<uint8_t>();  // first free, then take: its content is not needed
      engine->arena = subtone::Buffer<uint8_t>(arena_bytes);
    }
    return SUBTONE_OK;
  });
}

int32_t subtone_run(subtone_engine* engine, const int64_t* frames, const int64_t* offsets, const float* x, float* y) {
  if (!engine || !frames || !offsets || !x || !y) return SUBTONE_NULL;
  if (engine->process != getpid()) return SUBTONE_FORKED;
  const int32_t status = engine->check(frames, offsets);
  if (status != SUBTONE_OK) return status;
  engine->frames = frames;
  engine->offsets = offsets;
  engine->x = x;
  engine->y = y;
  engine->pool.run([](void* job, int worker) { static_cast<subtone_engine*>(job)->work(worker); }, engine);
  return SUBTONE_OK;
}

void subtone_destroy(subtone_engine* engine) {
  // In a forked process there are no threads to end: the memory stays.
  if (engine && engine->process == getpid()) delete engine;
}

}  // extern "C"
