// Attention, sinusoids and steps of an LSTM of an integer-only program, in one run: how their work is divided.
#include "engine.h"
#include "split.h"

using subtone::IntegerAttention;
using subtone::IntegerAttentionScratch;
using subtone::PackedOp;
using subtone::Span;

namespace subtone {
namespace {

int64_t places_of(const PackedOp& op, int64_t keys) {
  return op.position_rows || op.reads[3] >= 0 ? keys + kMorePlaces : 0;
}

// Parts of a buffer, each on a cache line; of null, how much they need.
template <typename T>
struct Parts {
  T* data;
  int64_t size = 0;

  T* take(int64_t count) {
    T* part = data ? data + size : nullptr;
    size += round_up(count, kAlignment);
    return part;
  }
};

IntegerAttentionScratch lay_out(const PackedOp& op, int64_t keys, Parts<uint8_t>* bytes, Parts<int32_t>* integers) {
  const IntegerAttention& attention = op.integers.attention;
  const int64_t row_bytes = attention.row_bytes(), padded = round_up(attention.depth, kDotLanes);
  IntegerAttentionScratch parts = {};
  parts.keys = keys;
  parts.places = places_of(op, keys);
  parts.queries = bytes->take(kIntegerQueries * row_bytes);
  parts.weights = bytes->take(kAtOnce * 3 * keys);
  parts.row = bytes->take(row_bytes);
  parts.key_panels = reinterpret_cast<int8_t*>(bytes->take(keys * row_bytes));
  parts.position_panels = reinterpret_cast<int8_t*>(bytes->take(parts.places * row_bytes));
  parts.value_panels = reinterpret_cast<int8_t*>(bytes->take(keys * padded));
  parts.key_start = integers->take(keys);
  parts.position_start = integers->take(parts.places);
  parts.scores = integers->take(kAtOnce * keys);
  parts.of_positions = integers->take(kAtOnce * parts.places);
  parts.sums = integers->take(kAtOnce * 3 * padded);
  return parts;
}

}  // namespace

AttentionSizes sizes_of(const PackedOp& op, int64_t keys) {
  Parts<uint8_t> bytes = {nullptr};
  Parts<int32_t> integers = {nullptr};
  lay_out(op, keys, &bytes, &integers);
  return {bytes.size, integers.size};
}

}  // namespace subtone

void subtone_engine::execute_integer_attention(const PackedOp& op, int worker) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const IntegerAttention& attention = op.integers.attention;
  const subtone_rows& its = rows[op.writes[0]];
  int64_t seen = rows[op.reads[0]].end;
  for (int which = 1; which < 3; ++which)
    if (rows[op.reads[which]].end < seen) seen = rows[op.reads[which]].end;
  subtone::IntegerAttentionRows in = {};
  in.query = integers_of(held(op.reads[0]));
  in.key = integers_of(held(op.reads[1]));
  in.value = integers_of(held(op.reads[2]));
  in.positions = op.reads[3] >= 0 ? integers_of(held(op.reads[3])) : op.integers.table.data();
  in.query_base = rows[op.reads[0]].base;
  in.key_base = rows[op.reads[1]].base;
  in.value_base = rows[op.reads[2]].base;
  in.rows = seen;
  in.offset = attention.left < 0 ? seen - 1 : attention.left;
  subtone::Parts<uint8_t> bytes = {mine.bytes.data()};
  subtone::Parts<int32_t> integers = {mine.products.data()};
  const IntegerAttentionScratch parts = subtone::lay_out(op, score_stride(op, rows), &bytes, &integers);
  const int64_t frames = its.end - its.first;
  const int64_t blocks = (frames + subtone::kIntegerQueries - 1) / subtone::kIntegerQueries;
  const Span tasks = subtone::split(attention.heads * blocks, 1, worker, pool.workers());
  for (int64_t task = tasks.first; task < tasks.last; ++task) {
    const int64_t first = task % blocks * subtone::kIntegerQueries;
    const int64_t rest = frames - first, count = rest < subtone::kIntegerQueries ? rest : subtone::kIntegerQueries;
    kernels.integer_attend(attention, in, task / blocks, {its.first + first, its.first + first + count}, parts,
                           integers_of(fresh(op.writes[0])) + first * attention.width);
  }
}

// One turn a distance, in units of 2^-30, from sine 0 and cosine 1; the middle row holds distance 0.
void subtone_engine::execute_integer_sinusoids(const PackedOp& op, int worker) {
  constexpr int kUnitBits = 30;
  const subtone_rows& its = rows[op.writes[0]];
  const int64_t size = width(op.writes[0]), count = rows[op.reads[0]].end;
  const int32_t low = op.integers.pair.low, high = op.integers.pair.high;
  int32_t* to = integers_of(fresh(op.writes[0]));
  const auto rounded = [](int64_t total) {  // what a rotation longer than 2^30 adds up to may wrap
    return subtone::wrapped_sum(total, INT64_C(1) << (kUnitBits - 1)) >> kUnitBits;
  };
  const auto put = [&](int64_t row, int64_t column, int64_t level) {
    if (row < its.first || row >= its.end) return;
    to[(row - its.first) * size + column] = static_cast<int32_t>(level < low ? low : level > high ? high : level);
  };
  const auto product = [](int32_t left, int32_t right) { return static_cast<int64_t>(left) * right; };
  const Span pairs = subtone::split(size / 2, 1, worker, pool.workers());
  for (int64_t pair = pairs.first; pair < pairs.last; ++pair) {
    const int32_t turn_sine = op.integers.table[2 * pair], turn_cosine = op.integers.table[2 * pair + 1];
    int32_t sine = 0, cosine = INT32_C(1) << kUnitBits;
    for (int64_t distance = 0; distance < count; ++distance) {
      const int64_t sine_level = rounded(product(sine, 127)), cosine_level = rounded(product(cosine, 127));
      put(count - 1 - distance, 2 * pair, sine_level);
      put(count - 1 - distance, 2 * pair + 1, cosine_level);
      if (distance) put(count - 1 + distance, 2 * pair, -sine_level);
      if (distance) put(count - 1 + distance, 2 * pair + 1, cosine_level);
      const int64_t next = rounded(subtone::wrapped_sum(product(sine, turn_cosine), product(cosine, turn_sine)));
      cosine = static_cast<int32_t>(
          rounded(subtone::wrapped_sum(product(cosine, turn_cosine), -product(sine, turn_sine))));
      sine = static_cast<int32_t>(next);
    }
  }
}

// One step: this worker's share of the units, as recur() does in float.
void subtone_engine::recur_integers(const PackedOp& op, const int32_t* gates, int64_t units, const int32_t* hidden,
                                    const int32_t* cell, int32_t* new_hidden, int32_t* new_cell, int worker,
                                    int workers) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const subtone::IntegerProduct& product = op.integers.products[0];
  const subtone::IntegerFunction& function = op.integers.function;
  const Span panels = subtone::split(op.integers.panels_of_product(), 1, worker, workers);
  if (panels.first == panels.last) return;
  kernels.narrow(hidden, units, product.level_offset, mine.bytes.data());
  multiply_levels(product, 1, panels, worker, mine.products.data());
  for (int64_t panel = panels.first; panel < panels.last; ++panel)
    kernels.integer_cell_step(gates, function.fraction_bits, mine.products.data() + panel * subtone::kPanel, units,
                              panel * subtone::kLanes, cell, function.finish.high, new_hidden, new_cell);
}
