// The C ABI: an engine is made, given its ops, and asked to run; every call is checked before it touches memory.
#include <unistd.h>

#include "dispatch.h"
#include "engine.h"
#include "guarded.h"
#include "pieces.h"
#include "product.h"

using subtone::guarded;
using subtone::Kernel;
using subtone::PackedOp;

namespace subtone {

int64_t block_frames(const IntegerProduct& product);  // execute_integers.cc

namespace {

template <typename T>
void grow(Buffer<T>* buffer, int64_t count) {
  if (buffer->size() < count) *buffer = Buffer<T>(count);
}

void grow_for_integers(const PackedOp& op, Scratch* part) {
  const PackedIntegers& integers = op.integers;
  if (op.kernel == Kernel::kIntegerDepthwise)
    return grow(&part->bytes, integers.depthwise.rows(kDepthwiseBlock) * 4 * kLanes);
  if (integers.products.empty()) return;
  const IntegerProduct& product = integers.products[0];
  const bool is_depthwise = op.kernel == Kernel::kIntegerImageDepthwise;  // all features of a row at once
  const int64_t frames = is_depthwise ? op.image.features_out : block_frames(product);
  if (!is_depthwise) grow(&part->bytes, frames * product.row_bytes());
  if (product.correction) grow(&part->sums, frames * product.groups);
  if (op.kernel == Kernel::kIntegerLstm) grow(&part->products, product.outputs);
  if (!op.is_integer_image()) return;
  grow(&part->image_levels, op.image.padded_features * op.image.channels * op.taps.kernel);
  grow(&part->products, frames * product.outputs);
  grow(&part->products, op.image.features * op.image.channels);  // of one row, features first
}

}  // namespace

void grow_for_product(const Product& product, int64_t frames, Scratch* part) {
  grow(&part->levels, frames * product.row_bytes());
  grow(&part->sums, frames * product.groups);
  grow(&part->scale, frames);
}

}  // namespace subtone

subtone_engine::subtone_engine(const subtone::Kernels& table, int32_t threads, std::vector<int64_t> value_widths,
                               int32_t inputs_of_engine, int32_t output_value)
    : kernels(table),
      widths(std::move(value_widths)),
      num_inputs(inputs_of_engine),
      output(output_value),
      is_written(widths.size(), false),
      saved_by(widths.size(), -1),
      scratch(static_cast<size_t>(threads)),
      process(getpid()),
      carried(widths.size(), nullptr),
      kept(widths.size(), nullptr),
      pool(threads) {
  for (int32_t value = 0; value < num_inputs; ++value) is_written[static_cast<size_t>(value)] = true;
}

int32_t subtone_engine::append(const subtone_op& op) {
  const auto exists = [&](int32_t value) { return value >= 0 && static_cast<size_t>(value) < widths.size(); };
  auto packed = std::make_unique<PackedOp>();
  int32_t status = subtone::pack_values(op, packed.get());
  if (status != SUBTONE_OK) return status;
  for (int32_t value : packed->reads)
    if (value >= 0 && (!exists(value) || !is_written[static_cast<size_t>(value)])) return SUBTONE_VALUE;
  for (int32_t value : packed->writes)
    if (value >= 0 && (!exists(value) || is_written[static_cast<size_t>(value)])) return SUBTONE_VALUE;
  status = subtone::pack(op, widths.data(), packed.get());
  if (status != SUBTONE_OK) return status;

  const subtone::PackedWeight& weight = packed->weight;
  const subtone::Attention& attention = packed->attention;
  const bool is_image = packed->kernel == Kernel::kImage || packed->kernel == Kernel::kImageDepthwise;
  for (subtone::Scratch& part : scratch) {
    subtone::grow_for_integers(*packed, &part);
    if (packed->kernel == Kernel::kMultiply)
      subtone::grow_for_product(weight.product, subtone::block_frames(weight.product), &part);
    if (packed->is_recurrent() && !packed->is_integer()) {
      if (weight.is_integer) subtone::grow_for_product(weight.product, 1, &part);
      if (packed->small.is_integer) subtone::grow_for_product(packed->small.product, 1, &part);
      subtone::grow(&part.row, weight.outputs());
    }
    subtone::grow(&part.decoded, subtone::decoded_floats(weight));
    if (is_image) {
      subtone::grow(&part.image, packed->image.padded_features * packed->image.channels * packed->taps.kernel);
      subtone::grow(&part.result, packed->image.outputs * packed->image.features_out);
    }
    if (packed->kernel == Kernel::kAttention) {
      subtone::grow(&part.queries, 2 * subtone::kQueries * attention.depth);
      subtone::grow(&part.keys, (subtone::kKeyStride + subtone::kPositionStride) * attention.depth);
    }
  }
  packed->weight.settle(&weights);
  packed->small.settle(&weights);
  packed->coded_table.settle(&weights);
  packed->integers.settle(&weights);
  ops.reserve(ops.size() + 1);  // from here on nothing fails
  const int32_t index = static_cast<int32_t>(ops.size());
  for (int32_t value : packed->reads)
    if (value >= 0 && saved_by[static_cast<size_t>(value)] < 0) saved_by[static_cast<size_t>(value)] = index;
  for (int32_t value : packed->writes)
    if (value >= 0) is_written[static_cast<size_t>(value)] = true;
  ops.push_back(std::move(packed));
  return SUBTONE_OK;
}

bool subtone_engine::has_sound_rows(int32_t value, const subtone_rows* value_rows) const {
  const subtone_rows& its = value_rows[value];
  if (!is_written[static_cast<size_t>(value)]) return its.base == 0 && its.first == 0 && its.end == 0 && its.keep == 0;
  return 0 <= its.base && its.base <= its.first && its.first <= its.end && its.end <= SUBTONE_MAX_FRAMES &&
         its.base <= its.keep && its.keep <= its.end;
}

bool subtone_engine::has_place(int32_t value, const subtone_rows* value_rows) const {
  const subtone_rows& its = value_rows[value];
  if (its.offset == -1) return (is_input(value) || value == output) && its.base == its.first;
  const int64_t num_bytes = (its.end - its.base) * width(value) * static_cast<int64_t>(sizeof(float));
  return its.offset >= 0 && its.offset % subtone::kAlignment == 0 && its.offset <= arena.size() &&
         num_bytes <= arena.size() - its.offset;
}

bool subtone_engine::overlap(int32_t left, int32_t right, const subtone_rows* value_rows) const {
  const subtone_rows &one = value_rows[left], &other = value_rows[right];
  if (one.offset < 0 || other.offset < 0) return false;
  const int64_t size = static_cast<int64_t>(sizeof(float));
  return one.offset < other.offset + (other.end - other.base) * width(right) * size &&
         other.offset < one.offset + (one.end - one.base) * width(left) * size;
}

// Whether all ends are what the ops make of the inputs' ends, nothing following if `is_last`.
bool subtone_engine::has_ends(const subtone_rows* value_rows, bool is_last) const {
  for (const auto& op : ops) {
    int64_t ends[subtone::kMaxReads] = {};
    for (int which = 0; which < subtone::kMaxReads; ++which)
      if (op->reads[which] >= 0) ends[which] = value_rows[op->reads[which]].end;
    const int64_t end = op->end(ends, is_last);
    for (int32_t value : op->writes)
      if (value >= 0 && value_rows[value].end != end) return false;
  }
  return true;
}

// Whether the rows from which the op computes its new ones are held, so that it reads nothing else.
bool subtone_engine::has_what_it_needs(const PackedOp& op, const subtone_rows* value_rows) const {
  const subtone_rows& result = value_rows[op.writes[0]];
  for (int32_t value : op.writes)
    if (value >= 0) {
      const subtone_rows& its = value_rows[value];
      if (its.first != result.first) return false;
      if (op.is_recurrent() && its.first > 0 && its.first < its.end && its.base == its.first) return false;
      for (int32_t read : op.reads)
        if (read >= 0 && overlap(value, read, value_rows)) return false;
    }
  if (op.writes[1] >= 0 && overlap(op.writes[0], op.writes[1], value_rows)) return false;
  if (result.first == result.end) return true;
  for (int which = 0; which < subtone::kMaxReads; ++which) {
    if (op.reads[which] < 0) continue;
    const int64_t needed = op.first_needed(which, result.first);
    if (value_rows[op.reads[which]].base > (needed < 0 ? 0 : needed)) return false;
  }
  if (!op.is_attention()) return true;
  int64_t seen = value_rows[op.reads[0]].end;
  for (int which = 1; which < 3; ++which)
    if (value_rows[op.reads[which]].end < seen) seen = value_rows[op.reads[which]].end;
  const subtone::Attention& attention = op.attention;
  const int64_t positions = attention.left < 0 ? 2 * seen - 1 : attention.left + attention.right + 1;
  if (op.reads[3] >= 0) return value_rows[op.reads[3]].end == positions;
  return op.position_rows == 0 || op.position_rows == positions;
}

// That no op can read or write outside the arena and the caller's buffers.
int32_t subtone_engine::check(const subtone_rows* value_rows, int64_t state_size, int64_t new_state_size) const {
  if (!is_written[static_cast<size_t>(output)]) return SUBTONE_VALUE;
  const int32_t num_values = static_cast<int32_t>(widths.size());
  int64_t before = 0, after = 0;
  for (int32_t value = 0; value < num_values; ++value) {
    if (!has_sound_rows(value, value_rows)) return SUBTONE_PLAN;
    if (!is_written[static_cast<size_t>(value)]) continue;
    if (!has_place(value, value_rows)) return SUBTONE_PLAN;
    const subtone_rows& its = value_rows[value];
    if (__builtin_add_overflow(before, (its.first - its.base) * width(value), &before) ||
        __builtin_add_overflow(after, (its.end - its.keep) * width(value), &after))
      return SUBTONE_PLAN;
  }
  if (before != state_size || after != new_state_size) return SUBTONE_PLAN;
  if (!has_ends(value_rows, false) && !has_ends(value_rows, true)) return SUBTONE_PLAN;
  for (const auto& op : ops)
    if (!has_what_it_needs(*op, value_rows)) return SUBTONE_PLAN;
  return SUBTONE_OK;
}

void subtone_engine::prepare(const subtone_rows* value_rows) {
  for (const auto& op : ops) {
    if (!op->is_attention()) continue;
    const int64_t stride = score_stride(*op, value_rows);
    for (subtone::Scratch& part : scratch) {
      if (op->kernel == Kernel::kAttention) {
        subtone::grow(&part.scores, (subtone::kQueries + op->attention.depth) * stride);
        continue;
      }
      const subtone::AttentionSizes sizes = subtone::sizes_of(*op, stride);
      subtone::grow(&part.bytes, sizes.bytes);
      subtone::grow(&part.products, sizes.products);
    }
  }
}

extern "C" {

int32_t subtone_create(const char* isa, int32_t threads, const int64_t* widths, int32_t num_values, int32_t num_inputs,
                       int32_t output, subtone_engine** engine) {
  if (!isa || !widths || !engine) return SUBTONE_NULL;
  *engine = nullptr;
  if (threads < 1 || threads > SUBTONE_MAX_THREADS || num_values < 2) return SUBTONE_SIZE;
  if (num_inputs < 1 || num_inputs >= num_values) return SUBTONE_SIZE;
  for (int32_t value = 0; value < num_values; ++value)
    if (widths[value] < 1 || widths[value] > SUBTONE_MAX_SIZE) return SUBTONE_SIZE;
  if (output < num_inputs || output >= num_values) return SUBTONE_VALUE;
  const subtone::Kernels* kernels = subtone::find_kernels(isa);
  if (!kernels) return SUBTONE_ISA;
  return guarded([&] {
    *engine =
        new subtone_engine(*kernels, threads, std::vector<int64_t>(widths, widths + num_values), num_inputs, output);
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

int32_t subtone_run(subtone_engine* engine, const subtone_rows* rows, const float* const* inputs, float* y,
                    const float* state, int64_t state_size, float* new_state, int64_t new_state_size) {
  if (!engine || !rows || !inputs || !y || (state_size && !state) || (new_state_size && !new_state))
    return SUBTONE_NULL;
  for (int32_t value = 0; value < engine->num_inputs; ++value)
    if (!inputs[value]) return SUBTONE_NULL;
  if (engine->process != getpid()) return SUBTONE_FORKED;
  const int32_t status = engine->check(rows, state_size, new_state_size);
  if (status != SUBTONE_OK) return status;
  return guarded([&] {
    engine->prepare(rows);
    engine->rows = rows;
    engine->inputs = inputs;
    engine->y = y;
    engine->begin(state, new_state);
    engine->pool.run([](void* job, int worker) { static_cast<subtone_engine*>(job)->work(worker); }, engine);
    return SUBTONE_OK;
  });
}

void subtone_destroy(subtone_engine* engine) {
  // In a forked process there are no threads to end: the memory stays.
  if (engine && engine->process == getpid()) delete engine;
}

}  // extern "C"
