// Attention, recurrences and sinusoids of one run: how their work is divided.
#include <cstring>

#include "engine.h"
#include "product.h"
#include "split.h"

using subtone::kLanes;
using subtone::kPanel;
using subtone::PackedOp;
using subtone::PackedWeight;
using subtone::Span;

int64_t subtone_engine::score_stride(const PackedOp& op, const subtone_rows* value_rows) const {
  const subtone::Attention& attention = op.attention;
  const int64_t queries = op.kernel == subtone::Kernel::kAttention ? subtone::kQueries : subtone::kIntegerQueries;
  const int64_t keys = value_rows[op.reads[1]].end, block = attention.left + attention.right + queries;
  const bool is_limited = attention.left >= 0 && attention.right >= 0;
  return subtone::round_up(is_limited && block < keys ? block : keys, kLanes);
}

void subtone_engine::execute_attention(const PackedOp& op, int worker) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const subtone::Attention& attention = op.attention;
  const subtone_rows& its = rows[op.writes[0]];
  int64_t seen = rows[op.reads[0]].end;
  for (int which = 1; which < 3; ++which)
    if (rows[op.reads[which]].end < seen) seen = rows[op.reads[which]].end;
  subtone::AttentionRows in = {};
  in.query = held(op.reads[0]);
  in.key = held(op.reads[1]);
  in.value = held(op.reads[2]);
  in.positions = op.reads[3] >= 0 ? held(op.reads[3]) : op.table.data();
  in.query_base = rows[op.reads[0]].base;
  in.key_base = rows[op.reads[1]].base;
  in.value_base = rows[op.reads[2]].base;
  in.rows = seen;
  in.offset = attention.left < 0 ? seen - 1 : attention.left;
  const int64_t depth = attention.depth;
  const int64_t stride = score_stride(op, rows);
  const subtone::AttentionScratch parts = {mine.queries.data(),
                                           mine.queries.data() + subtone::kQueries * depth,
                                           mine.keys.data(),
                                           mine.keys.data() + subtone::kKeyStride * depth,
                                           mine.scores.data(),
                                           mine.scores.data() + subtone::kQueries * stride,
                                           stride};
  const int64_t frames = its.end - its.first, blocks = (frames + subtone::kQueries - 1) / subtone::kQueries;
  const Span tasks = subtone::split(attention.heads * blocks, 1, worker, pool.workers());
  for (int64_t task = tasks.first; task < tasks.last; ++task) {
    const int64_t first = task % blocks * subtone::kQueries;
    const int64_t last = first + subtone::kQueries < frames ? first + subtone::kQueries : frames;
    kernels.attend(attention, in, task / blocks, {its.first + first, its.first + last}, parts,
                   fresh(op.writes[0]) + first * attention.width);
  }
}

// One turn a distance in float64, each product and sum rounded; row `last` holds distance 0.
void subtone_engine::execute_sinusoids(const PackedOp& op, int worker) {
  const subtone_rows& its = rows[op.writes[0]];
  const int64_t size = width(op.writes[0]), count = rows[op.reads[0]].end;
  float* to = fresh(op.writes[0]);
  const Span pairs = subtone::split(size / 2, 1, worker, pool.workers());
  const auto put = [&](int64_t row, int64_t pair, double sine, double cosine) {
    if (row < its.first || row >= its.end) return;
    to[(row - its.first) * size + 2 * pair] = static_cast<float>(sine);
    to[(row - its.first) * size + 2 * pair + 1] = static_cast<float>(cosine);
  };
  for (int64_t pair = pairs.first; pair < pairs.last; ++pair) {
    const double turn_sine = op.rotation[2 * pair], turn_cosine = op.rotation[2 * pair + 1];
    double sine = 0.0, cosine = 1.0;
    for (int64_t distance = 0; distance < count; ++distance) {
      put(count - 1 - distance, pair, sine, cosine);
      if (distance) put(count - 1 + distance, pair, -sine, cosine);
      const double next = sine * turn_cosine + cosine * turn_sine;
      cosine = cosine * turn_cosine - sine * turn_sine;
      sine = next;
    }
  }
}

// One step: this worker's share of the units. A panel of the weight holds all four gates of 16 units, so that
// nothing is exchanged between its product and the cells it changes.
void subtone_engine::recur(const PackedWeight& weight, const float* gates, int64_t units, const float* hidden,
                           const float* cell, float* new_hidden, float* new_cell, int worker, int workers) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const Span panels = subtone::split(weight.panels(), 1, worker, workers);
  if (panels.first == panels.last) return;
  float* of_hidden = mine.row.data();
  if (weight.is_integer) {
    const subtone::Levels levels = {mine.levels.data(), mine.sums.data(), mine.scale.data()};
    kernels.quantize_static(weight.product, hidden, levels);
    subtone::multiply_levels(kernels, weight.product, levels, 1, panels, of_hidden);
  } else {
    kernels.dense(weight.convolution, hidden, 1, {0, 1}, panels, of_hidden);
  }
  for (int64_t panel = panels.first; panel < panels.last; ++panel)
    kernels.cell_step(gates, of_hidden + panel * kPanel, units, panel * kLanes, cell, new_hidden, new_cell);
}

void subtone_engine::execute_recurrence(const PackedOp& op, int worker) {
  constexpr int64_t kBytesOfWorker = 64 * 1024;  // of weights a step: less is not worth waiting for each other
  const int32_t output_value = op.writes[0], cell_value = op.writes[1];
  const subtone_rows& its = rows[output_value];
  const int64_t units = width(output_value);
  const bool is_integer = op.is_integer();
  const int64_t item = is_integer || op.weight.is_integer ? 1 : static_cast<int64_t>(sizeof(float));
  const int64_t bytes = 4 * units * units * item;
  const int64_t wanted = 1 + bytes / kBytesOfWorker;
  const int workers = wanted < pool.workers() ? static_cast<int>(wanted) : pool.workers();
  if (workers == 1 && worker > 0) return;  // the others wait behind this op
  // The row in front of the first comes from the state, zeros where there is none.
  const auto before = [&](int32_t value) {
    if (its.first == 0) return static_cast<const float*>(op.zeros.data());
    return carried[static_cast<size_t>(value)] + (its.first - 1 - rows[value].base) * units;
  };
  const float *hidden = before(output_value), *cell = before(cell_value);
  float *new_hidden = fresh(output_value), *new_cell = fresh(cell_value);
  const float* gates = at(op.reads[0], its.first);
  const bool is_switched = op.kernel == subtone::Kernel::kSwitchedLstm;
  const int64_t small_units = is_switched ? width(op.reads[1]) / 4 : 0;
  const float* small_gates = is_switched ? at(op.reads[1], its.first) : nullptr;
  const float* gate = is_switched ? at(op.reads[2], its.first) : nullptr;
  for (int64_t row = its.first; row < its.end; ++row) {
    if (is_integer) {
      if (worker < workers)
        recur_integers(op, integers_of(gates), units, integers_of(hidden), integers_of(cell), integers_of(new_hidden),
                       integers_of(new_cell), worker, workers);
    } else if (!is_switched || *gate > 0.0f) {
      if (worker < workers)
        recur(op.weight, gates, units, hidden, cell, new_hidden, new_cell, worker, workers);
    } else {
      if (worker < workers)
        recur(op.small, small_gates, small_units, hidden, cell, new_hidden, new_cell, worker, workers);
      if (worker == workers - 1) {  // the other units stay as they are
        const size_t size = static_cast<size_t>(units - small_units) * sizeof(float);
        std::memcpy(new_hidden + small_units, hidden + small_units, size);
        std::memcpy(new_cell + small_units, cell + small_units, size);
      }
    }
    hidden = new_hidden;
    cell = new_cell;
    new_hidden += units;
    new_cell += units;
    gates += 4 * units;
    if (is_switched) {
      small_gates += 4 * small_units;
      ++gate;
    }
    if (workers > 1) pool.wait_for_all();  // all of them, also those without a share
  }
}
