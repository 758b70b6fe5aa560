// One run of an integer-only program's ops: levels as bytes, side by side as a row of the weight has its columns.
#include <cstring>

#include "engine.h"
#include "split.h"

using subtone::IntegerProduct;
using subtone::Kernel;
using subtone::PackedIntegers;
using subtone::PackedOp;
using subtone::Span;

namespace subtone {
namespace {

constexpr int64_t kBlockBytes = 64 * 1024;  // of levels a thread keeps: they share the second cache with the weights
constexpr int64_t kMaxBlockFrames = 16 * kTileFrames;

void fill(int32_t level, int64_t count, uint8_t* levels) {
  if (count > 0) std::memset(levels, level, static_cast<size_t>(count));
}

void copy(const uint8_t* from, int64_t count, uint8_t* to) {
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count));
}

// Calls body(product of one group of the convolution, its index, panels) for the panels `units` of all groups.
template <typename Body>
void each_product(const PackedIntegers& integers, Span units, const Body& body) {
  const int64_t panels = integers.panels_of_product();
  for (int64_t unit = units.first; unit < units.last;) {
    const int64_t group = unit / panels, first = unit % panels;
    const int64_t rest = units.last - unit, count = panels - first < rest ? panels - first : rest;
    body(integers.products[static_cast<size_t>(group)], group, Span{first, first + count});
    unit += count;
  }
}

}  // namespace

int64_t block_frames(const IntegerProduct& product) {
  const int64_t tiles = kBlockBytes / product.row_bytes() / kTileFrames;
  if (tiles < 1) return kTileFrames;
  return tiles * kTileFrames < kMaxBlockFrames ? tiles * kTileFrames : kMaxBlockFrames;
}

}  // namespace subtone

// Levels of output rows row .. row + count - 1 for one group of the convolution: [row][tap][input of the group].
void subtone_engine::gather_levels(const PackedOp& op, const IntegerProduct& product, int64_t group, int64_t row,
                                   int64_t count, uint8_t* levels) const {
  const int32_t input = op.reads[0];
  const int64_t depth = product.columns / op.taps.kernel, row_bytes = product.row_bytes();
  const bool is_plain = op.taps.kernel == 1 && op.taps.stride == 1 && !op.taps.padding && !op.taps.padding_behind &&
                        depth == width(input) && row_bytes == depth;
  if (is_plain) return kernels.narrow(integers_at(input, row), count * depth, product.level_offset, levels);
  for (int64_t t = 0; t < count; ++t, levels += row_bytes) {
    int64_t from = (row + t) * op.taps.stride - op.taps.padding;
    for (int64_t tap = 0; tap < op.taps.kernel; ++tap, from += op.taps.dilation) {
      uint8_t* to = levels + tap * depth;
      if (from < 0 || from >= rows[input].end)
        subtone::fill(product.level_offset, depth, to);
      else
        kernels.narrow(integers_at(input, from) + group * depth, depth, product.level_offset, to);
    }
  }
}

void subtone_engine::multiply_levels(const IntegerProduct& product, int64_t count, Span panels, int worker,
                                     int32_t* to) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  int32_t* sums = nullptr;
  if (product.correction) kernels.integer_sums(product, mine.bytes.data(), count, sums = mine.sums.data());
  kernels.integer_multiply(product, mine.bytes.data(), sums, count, panels, to);
}

void subtone_engine::execute_integer_product(const PackedOp& op, int worker) {
  const PackedIntegers& integers = op.integers;
  const subtone_rows& its = rows[op.writes[0]];
  const int64_t units = static_cast<int64_t>(integers.products.size()) * integers.panels_of_product();
  const auto share = subtone::share_of(its.end - its.first, units, worker, pool.workers(), subtone::kTileFrames);
  const int64_t step = subtone::block_frames(integers.products[0]);
  for (int64_t t = share.frames.first; t < share.frames.last; t += step) {
    const int64_t count = t + step < share.frames.last ? step : share.frames.last - t;
    subtone::each_product(integers, share.panels, [&](const IntegerProduct& product, int64_t group, Span panels) {
      gather_levels(op, product, group, its.first + t, count, scratch[static_cast<size_t>(worker)].bytes.data());
      int32_t* to = integers_of(fresh(op.writes[0])) + t * product.y_width + group * product.outputs;
      multiply_levels(product, count, panels, worker, to);
    });
  }
}

void subtone_engine::execute_integer_depthwise(const PackedOp& op, int worker) {
  const int32_t input = op.reads[0];
  const subtone_rows &its = rows[op.writes[0]], &from = rows[input];
  subtone::IntegerDepthwise conv = op.integers.depthwise;
  conv.padding = op.taps.padding + from.base - its.first * op.taps.stride;  // frame 0 is row `first` here
  const int64_t panels = conv.product.padded_outputs / subtone::kLanes;
  const auto share = subtone::share_of(its.end - its.first, panels, worker, pool.workers());
  kernels.integer_depthwise(conv, integers_of(held(input)), from.end - from.base, share.frames, share.panels,
                            scratch[static_cast<size_t>(worker)].bytes.data(), integers_of(fresh(op.writes[0])));
}

// The bytes that meet the taps of output row `row`, features first, then channels: [tap][padded feature][channel].
void subtone_engine::gather_image_levels(const PackedOp& op, int64_t row, const subtone::Scratch& mine) const {
  const subtone::Image& its = op.image;
  const int32_t level_offset = op.integers.products[0].level_offset;
  const int64_t size = its.padded_features * its.channels, behind = its.padded_features - its.feature_padding;
  const int64_t features = behind < 0 ? 0 : behind < its.features ? behind : its.features;
  const int64_t start = (features ? its.feature_padding : 0) * its.channels, end = start + features * its.channels;
  uint8_t* levels = mine.image_levels.data();
  for (int64_t tap = 0; tap < op.taps.kernel; ++tap, levels += size) {
    const int64_t from_row = row * op.taps.stride - op.taps.padding + tap;
    if (from_row < 0 || from_row >= rows[op.reads[0]].end) {
      subtone::fill(level_offset, size, levels);
      continue;
    }
    subtone::fill(level_offset, start, levels);
    subtone::fill(level_offset, size - end, levels + end);
    const int32_t* from = integers_at(op.reads[0], from_row);
    if (its.channels > 1) {
      kernels.integer_transpose(from, its.features, its.channels, features, mine.products.data(), its.channels);
      from = mine.products.data();
    }
    kernels.narrow(from, end - start, level_offset, levels + start);
  }
}

// Of those the bytes of one group of channels for each of `features`: [feature][tap][channel of the group].
void subtone_engine::gather_features(const PackedOp& op, const IntegerProduct& product, int64_t group, Span features,
                                     const subtone::Scratch& mine) const {
  const subtone::Image& image = op.image;
  const int64_t depth = product.columns / (op.taps.kernel * image.feature_kernel);
  const int64_t run = image.feature_kernel * depth;  // of one tap in time
  uint8_t* to = mine.bytes.data();
  for (int64_t f = features.first; f < features.last; ++f, to += product.row_bytes())
    for (int64_t tap = 0; tap < op.taps.kernel; ++tap) {
      const int64_t feature = tap * image.padded_features + f * image.feature_stride;
      const uint8_t* from = mine.image_levels.data() + feature * image.channels + group * depth;
      if (depth == image.channels) {
        subtone::copy(from, run, to + tap * run);
        continue;
      }
      for (int64_t place = 0; place < image.feature_kernel; ++place)
        subtone::copy(from + place * image.channels, depth, to + tap * run + place * depth);
    }
}

void subtone_engine::execute_integer_image(const PackedOp& op, int worker) {
  const subtone::Scratch& mine = scratch[static_cast<size_t>(worker)];
  const PackedIntegers& integers = op.integers;
  const subtone::Image& image = op.image;
  const subtone_rows& its = rows[op.writes[0]];
  const bool is_depthwise = op.kernel == Kernel::kIntegerImageDepthwise;
  const int64_t panel = is_depthwise ? subtone::kLanes : subtone::kPanel;
  const int64_t units = is_depthwise ? integers.products[0].padded_outputs / panel
                                     : static_cast<int64_t>(integers.products.size()) * integers.panels_of_product();
  const auto share = subtone::share_of(its.end - its.first, units, worker, pool.workers(), 1);
  const int64_t step = is_depthwise ? image.features_out : subtone::block_frames(integers.products[0]);
  if (share.panels.first == share.panels.last) return;
  for (int64_t t = share.frames.first; t < share.frames.last; ++t) {
    gather_image_levels(op, its.first + t, mine);
    int32_t* row = integers_of(fresh(op.writes[0])) + t * width(op.writes[0]);
    // Outputs `panels` of a product for `count` features, outputs first.
    const auto put = [&](const IntegerProduct& product, Span panels, int64_t count, int32_t* to) {
      const int64_t first = panels.first * panel, last = panels.last * panel;
      kernels.integer_transpose(mine.products.data() + first, product.outputs, count,
                                (last < product.outputs ? last : product.outputs) - first,
                                to + first * image.features_out, image.features_out);
    };
    if (is_depthwise) {
      kernels.integer_image_depthwise(integers.image_depthwise, mine.image_levels.data(), image.features_out,
                                      share.panels, mine.products.data());
      put(integers.products[0], share.panels, image.features_out, row);
      continue;
    }
    subtone::each_product(integers, share.panels, [&](const IntegerProduct& product, int64_t group, Span panels) {
      for (int64_t f = 0; f < image.features_out; f += step) {
        const int64_t count = f + step < image.features_out ? step : image.features_out - f;
        gather_features(op, product, group, {f, f + count}, mine);
        multiply_levels(product, count, panels, worker, mine.products.data());
        put(product, panels, count, row + group * product.outputs * image.features_out + f);
      }
    });
  }
}

void subtone_engine::execute_integers(const PackedOp& op, int worker) {
  switch (op.kernel) {
    case Kernel::kIntegerProduct:
      return execute_integer_product(op, worker);
    case Kernel::kIntegerDepthwise:
      return execute_integer_depthwise(op, worker);
    case Kernel::kIntegerImage:
    case Kernel::kIntegerImageDepthwise:
      return execute_integer_image(op, worker);
    case Kernel::kIntegerAttention:
      return execute_integer_attention(op, worker);
    case Kernel::kIntegerSinusoids:
      return execute_integer_sinusoids(op, worker);
    case Kernel::kIntegerLstm:
      return execute_recurrence(op, worker);
    default:
      break;
  }
  const subtone_rows& its = rows[op.writes[0]];
  const int64_t size = width(op.writes[0]);
  const Span part = subtone::split(its.end - its.first, 1, worker, pool.workers());
  const int64_t frames = part.last - part.first, count = frames * size;
  if (!frames) return;
  const int64_t row = its.first + part.first;
  const int32_t* x = integers_at(op.reads[0], row);
  const int32_t* other = op.reads[1] < 0 ? nullptr : integers_at(op.reads[1], row);
  int32_t* to = integers_of(fresh(op.writes[0])) + part.first * size;
  const PackedIntegers& integers = op.integers;
  switch (op.kernel) {
    case Kernel::kIntegerAffine:
      return kernels.integer_affine(integers.affine, x, frames, size, to);
    case Kernel::kIntegerAdd:
      return kernels.integer_add(integers.pair, x, other, count, to);
    case Kernel::kIntegerTimes:
      return kernels.integer_times(integers.pair, x, other, count, to);
    case Kernel::kIntegerFunction:
      return kernels.integer_function(integers.function, x, count, to);
    case Kernel::kIntegerGlu:
      return kernels.integer_glu(integers.function, x, frames, size, to);
    case Kernel::kIntegerNorm:
      return kernels.integer_norm(integers.norm, x, frames, size, to);
    case Kernel::kIntegerEmbedding:
      for (int64_t t = 0; t < frames; ++t, to += size) {
        const int64_t index = x[t] < 0 ? 0 : x[t] < op.count ? x[t] : op.count - 1;
        std::memcpy(to, integers.table.data() + index * size, static_cast<size_t>(size) * sizeof(int32_t));
      }
      return;
    default:
      return kernels.rescale(integers.pair, x, count, to);
  }
}
