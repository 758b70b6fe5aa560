// One run: which worker computes what of each op, and how rows come from the state and go to it.
#include <cstring>

#include "engine.h"
#include "pieces.h"
#include "product.h"
#include "split.h"

using subtone::Convolution;
using subtone::Kernel;
using subtone::PackedOp;
using subtone::PackedWeight;
using subtone::Panels;
using subtone::Span;

namespace subtone {
namespace {

constexpr int64_t kBlockBytes = 64 * 1024;  // of levels a thread keeps: they share the second cache with the weights
constexpr int64_t kMaxBlockFrames = 16 * kTileFrames;

void copy(const float* from, int64_t count, float* to) {
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

int64_t block_frames(const Product& product) {
  const int64_t tiles = kBlockBytes / product.row_bytes() / kTileFrames;
  if (tiles < 1) return kTileFrames;
  return tiles * kTileFrames < kMaxBlockFrames ? tiles * kTileFrames : kMaxBlockFrames;
}

void multiply_levels(const Kernels& kernels, const Product& product, const Levels& levels, int64_t frames, Span panels,
                     float* to) {
  const auto packed = product.table ? kernels.multiply_indices : kernels.multiply_codes;
  (product.bits == 8 ? kernels.multiply : packed)(product, levels, frames, panels, to);
}

void multiply_rows(const Kernels& kernels, const Product& product, const Scratch& mine, const float* from, Span frames,
                   Span panels, float* to) {
  const Levels levels = {mine.levels.data(), mine.sums.data(), mine.scale.data()};
  const int64_t step = block_frames(product);
  if (panels.first == panels.last) return;
  for (int64_t t = frames.first; t < frames.last; t += step) {
    const int64_t count = t + step < frames.last ? step : frames.last - t;
    kernels.quantize(product, from + t * product.inputs, count, levels);
    multiply_levels(kernels, product, levels, count, panels, to + t * product.outputs);
  }
}

}  // namespace subtone

float* subtone_engine::held(int32_t value) const {
  const int64_t offset = rows[value].offset;
  if (offset >= 0) return reinterpret_cast<float*>(arena.data() + offset);
  return is_input(value) ? const_cast<float*>(inputs[value]) : y;
}

void subtone_engine::restore(int32_t value) const {
  const subtone_rows& its = rows[value];
  subtone::copy(carried[static_cast<size_t>(value)], (its.first - its.base) * width(value), held(value));
}

void subtone_engine::save(int32_t value) const {
  const subtone_rows& its = rows[value];
  subtone::copy(at(value, its.keep), (its.end - its.keep) * width(value), kept[static_cast<size_t>(value)]);
}

void subtone_engine::begin(const float* state, float* new_state) {
  for (int32_t value = 0; value < static_cast<int32_t>(widths.size()); ++value) {
    const subtone_rows& its = rows[value];
    carried[static_cast<size_t>(value)] = state;
    kept[static_cast<size_t>(value)] = new_state;
    if (its.first > its.base) state += (its.first - its.base) * width(value);
    if (its.end > its.keep) new_state += (its.end - its.keep) * width(value);
  }
  for (int32_t value = 0; value < num_inputs; ++value) {
    const subtone_rows& its = rows[value];
    if (its.offset >= 0) {
      restore(value);
      subtone::copy(inputs[value], (its.end - its.first) * width(value), fresh(value));
    }
    save(value);
  }
}

// Rows that go to the state are copied while their value is sure to be there: by the first op that reads it, else
// at once, or, of the output, at the end.
void subtone_engine::work(int worker) {
  for (size_t index = 0; index < ops.size(); ++index) {
    const PackedOp& op = *ops[index];
    if (index) pool.wait_for_all();
    if (worker == 0) {
      for (int32_t value : op.writes)
        if (value >= 0) restore(value);
      for (int which = 0; which < subtone::kMaxReads; ++which) {
        const int32_t value = op.reads[which];
        if (value < num_inputs || saved_by[static_cast<size_t>(value)] != static_cast<int32_t>(index)) continue;
        bool is_again = false;  // an op may read a value twice
        for (int before = 0; before < which; ++before) is_again |= op.reads[before] == value;
        if (!is_again) save(value);
      }
    }
    if (rows[op.writes[0]].first < rows[op.writes[0]].end) execute(op, worker);
    for (int32_t value : op.writes) {
      if (value < 0 || value == output || saved_by[static_cast<size_t>(value)] >= 0) continue;
      if (rows[value].keep == rows[value].end) continue;
      pool.wait_for_all();
      if (worker == 0) save(value);
    }
  }
  const subtone_rows& its = rows[output];
  const bool is_unsaved = saved_by[static_cast<size_t>(output)] < 0 && its.keep < its.end;
  if (its.offset < 0 && !is_unsaved) return;
  pool.wait_for_all();
  if (worker != 0) return;
  if (is_unsaved) save(output);
  if (its.offset >= 0) subtone::copy(fresh(output), (its.end - its.first) * width(output), y);
}

void subtone_engine::execute(const PackedOp& op, int worker) {
  if (op.is_integer()) return execute_integers(op, worker);
  switch (op.kernel) {
    case Kernel::kMultiply:
    case Kernel::kDepthwise:
    case Kernel::kDense:
      return execute_weight(op, worker);
    case Kernel::kImage:
    case Kernel::kImageDepthwise:
      return execute_image(op, worker);
    case Kernel::kAttention:
      return execute_attention(op, worker);
    case Kernel::kSinusoids:
      return execute_sinusoids(op, worker);
    case Kernel::kLstm:
    case Kernel::kSwitchedLstm:
      return execute_recurrence(op, worker);
    default:
      return execute_elementwise(op, worker);
  }
}

void subtone_engine::execute_elementwise(const PackedOp& op, int worker) {
  const int32_t input = op.reads[0], other = op.reads[1];
  const subtone_rows& its = rows[op.writes[0]];
  const int64_t size = width(op.writes[0]), size_in = width(input), frames = its.end - its.first;
  float* to = fresh(op.writes[0]);
  const int workers = pool.workers();
  if (op.kernel == Kernel::kChannelNorm) {
    const Span part = subtone::split(size, subtone::kLanes, worker, workers);
    return kernels.channel_norm(op.finish, op.low, held(input), rows[input].end, size, {its.first, its.end}, part, to);
  }
  // Whole rows: here each row of the output is made of one (of a stack: of `count`) of each input.
  const int64_t step = op.kernel == Kernel::kStack ? op.count : 1;
  const Span part = subtone::split(frames, 1, worker, workers);
  const int64_t count = part.last - part.first;
  if (count == 0) return;
  const float* from = at(input, (its.first + part.first) * step);
  const float* more = other < 0 ? nullptr : at(other, its.first + part.first);
  to += part.first * size;
  switch (op.kernel) {
    case Kernel::kStack:
      return subtone::copy(from, count * size, to);
    case Kernel::kAffine:
      return kernels.affine(op.finish, from, count, size, to);
    case Kernel::kAdd:
      return kernels.add(from, more, count * size, op.relu, to);
    case Kernel::kTimes:
      return kernels.times(from, more, count * size, to);
    case Kernel::kScale:
      return kernels.scale(from, count * size, op.low, to);
    case Kernel::kRelu:
      return kernels.relu(from, count * size, to);
    case Kernel::kClip:
      return kernels.clip(from, count * size, op.low, op.high, to);
    case Kernel::kFunction:
      return kernels.function(op.function, from, count * size, to);
    case Kernel::kGlu:
      return kernels.glu(from, count, size, to);
    case Kernel::kLayerNorm:
      return kernels.layer_norm(op.finish, op.low, from, count, size, to);
    case Kernel::kConcat:
      for (int64_t t = 0; t < count; ++t) {
        subtone::copy(from + t * size_in, size_in, to + t * size);
        subtone::copy(more + t * (size - size_in), size - size_in, to + t * size + size_in);
      }
      return;
    case Kernel::kColumns:
      for (int64_t t = 0; t < count; ++t) subtone::copy(from + t * size_in + op.first, size, to + t * size);
      return;
    case Kernel::kEmbedding:
      for (int64_t t = 0; t < count; ++t) {
        const float last = static_cast<float>(op.count - 1);
        const float index = from[t] > 0.0f ? from[t] : 0.0f;  // no number: row 0
        const int64_t row = index < last ? static_cast<int64_t>(index) : op.count - 1;
        if (op.coded_table.exists())
          subtone::decode_row(op.coded_table.coded, row, to + t * size);
        else
          subtone::copy(op.table.data() + row * size, size, to + t * size);
      }
      return;
    default:
      return;
  }
}

// Where the outputs are split, every worker quantizes all frames for itself: for each it has many products.
void subtone_engine::multiply(const subtone::Product& product, const float* from, int64_t num_frames, int worker,
                              float* to) {
  const auto share = subtone::share_of(num_frames, subtone::panels_of(product), worker, pool.workers(),
                                       subtone::kTileFrames);
  subtone::multiply_rows(kernels, product, scratch[static_cast<size_t>(worker)], from, share.frames, share.panels, to);
}

void subtone_engine::execute_weight(const PackedOp& op, int worker) {
  const int32_t input = op.reads[0];
  const subtone_rows &its = rows[op.writes[0]], &from = rows[input];
  const int64_t frames = its.end - its.first;
  float* to = fresh(op.writes[0]);
  if (op.kernel == Kernel::kMultiply) return multiply(op.weight.product, at(input, its.first), frames, worker, to);
  Convolution conv = op.weight.convolution;
  conv.stride = op.taps.stride;
  conv.dilation = op.taps.dilation;
  conv.padding = op.taps.padding + from.base - its.first * op.taps.stride;  // frame 0 is row `first` here
  const int64_t held_rows = from.end - from.base;
  const bool is_depthwise = op.kernel == Kernel::kDepthwise;
  const auto share = subtone::share_of(frames, op.weight.groups * op.weight.panels(), worker, pool.workers());
  each_decoded(kernels, op.weight, share.panels, scratch[static_cast<size_t>(worker)].decoded.data(),
               [&](Span panels, const Panels& weights) {
    each_piece(op.weight, conv, panels, weights, [&](const Convolution& piece, int64_t group, int64_t n, Span own) {
      const float* x = held(input) + (is_depthwise ? n : group * conv.inputs);
      const auto kernel = is_depthwise ? kernels.depthwise : kernels.dense;
      kernel(piece, x, held_rows, share.frames, own, to + group * conv.outputs + n);
    });
  });
}

// The rows that meet the taps of output row `row`, features first, then channels: [tap][padded feature][channel].
void subtone_engine::gather_image(const PackedOp& op, int64_t row, float* image) const {
  const subtone::Image& its = op.image;
  const int64_t size = its.padded_features * its.channels, behind = its.padded_features - its.feature_padding;
  const int64_t features = behind < 0 ? 0 : its.features < behind ? its.features : behind;
  const int64_t padding = its.padded_features < its.feature_padding ? its.padded_features : its.feature_padding;
  for (int64_t tap = 0; tap < op.taps.kernel; ++tap, image += size) {
    const int64_t from_row = row * op.taps.stride - op.taps.padding + tap;
    const bool exists = from_row >= 0 && from_row < rows[op.reads[0]].end;
    const int64_t start = exists ? padding * its.channels : size, end = start + (exists ? features * its.channels : 0);
    for (int64_t i = 0; i < start; ++i) image[i] = 0.0f;
    for (int64_t i = end; i < size; ++i) image[i] = 0.0f;
    if (!exists) continue;
    const float* from = at(op.reads[0], from_row);
    kernels.transpose(from, its.features, its.channels, features, image + start, its.channels);
  }
}

void subtone_engine::execute_image(const PackedOp& op, int worker) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const subtone::Image& image = op.image;
  const subtone_rows& its = rows[op.writes[0]];
  const PackedWeight& weight = op.weight;
  const Convolution& conv = weight.convolution;
  const bool is_depthwise = op.kernel == Kernel::kImageDepthwise;
  const auto share = subtone::share_of(its.end - its.first, weight.groups * weight.panels(), worker, pool.workers(), 1);
  const Span features = {0, image.features_out};
  const int64_t image_rows = op.taps.kernel * image.padded_features;
  each_decoded(kernels, weight, share.panels, mine.decoded.data(), [&](Span panels, const Panels& weights) {
    for (int64_t t = share.frames.first; t < share.frames.last && panels.first < panels.last; ++t) {
      gather_image(op, its.first + t, mine.image.data());
      float* to = fresh(op.writes[0]) + t * width(op.writes[0]);
      each_piece(weight, conv, panels, weights, [&](const Convolution& piece, int64_t group, int64_t n, Span own) {
        const int64_t first = group * conv.outputs + n, last = own.last * weight.panel_width;
        float* result = mine.result.data() + first;  // [feature][output], transposed to [output][feature]
        if (is_depthwise)
          kernels.image_depthwise(piece, mine.image.data() + n, features, own, result);
        else
          kernels.dense(piece, mine.image.data() + group * conv.inputs, image_rows, features, own, result);
        kernels.transpose(result, image.outputs, image.features_out, last < piece.outputs ? last : piece.outputs,
                          to + first * image.features_out, image.features_out);
      });
    }
  });
}
