#include "pack.h"

#include <cmath>

namespace subtone {
namespace {

bool is_size(int64_t value, int64_t lowest) { return value >= lowest && value <= SUBTONE_MAX_SIZE; }

// `values` (count, or null for all `absent`), followed by zeros up to `padded`.
Buffer<float> padded_copy(const float* values, float absent, int64_t count, int64_t padded) {
  Buffer<float> copy(padded);
  for (int64_t n = 0; n < count; ++n) copy[n] = values ? values[n] : absent;
  return copy;
}

// (outputs, groups) -> (groups, padded outputs).
Buffer<float> transposed(const float* values, int64_t outputs, int64_t groups, int64_t padded) {
  Buffer<float> copy(groups * padded);
  for (int64_t n = 0; n < outputs; ++n)
    for (int64_t g = 0; g < groups; ++g) copy[g * padded + n] = values[n * groups + g];
  return copy;
}

bool all_zero(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] != 0.0f) return false;
  return true;
}

Finish pack_finish(const subtone_op& op, int64_t outputs, PackedOp* packed) {
  const int64_t padded = round_up(outputs, kLanes);
  packed->gain = padded_copy(op.gain, 1.0f, outputs, padded);
  packed->bias = padded_copy(op.bias, -0.0f, outputs, padded);
  return {packed->gain.data(), packed->bias.data(), op.relu != 0};
}

int32_t pack_product(const subtone_op& op, int64_t inputs, int64_t outputs, PackedOp* packed) {
  if (op.kernel != 1 || op.stride != 1 || op.padding != 0 || op.groups != 1) return SUBTONE_SIZE;
  if (op.activation_bits < 2 || op.activation_bits > 8) return SUBTONE_SIZE;
  if (inputs > SUBTONE_MAX_INTEGER_INPUTS) return SUBTONE_SIZE;
  if (op.scale_groups < 1 || op.scale_groups > inputs || inputs % op.scale_groups) return SUBTONE_SIZE;
  if (!op.codes || !op.levels || !op.scale || !op.zero_point) return SUBTONE_NULL;

  Product& product = packed->product;
  product.inputs = inputs;
  product.outputs = outputs;
  product.padded_outputs = round_up(outputs, kLanes);
  product.groups = op.scale_groups;
  product.group_size = inputs / op.scale_groups;
  product.group_bytes = round_up(product.group_size, 4);
  product.limit = (1 << (op.activation_bits - 1)) - 1;

  packed->levels = Buffer<uint8_t>(product.padded_outputs * product.row_bytes());
  uint8_t stored[256];
  for (int code = 0; code < 256; ++code) stored[code] = static_cast<uint8_t>(op.levels[code] + kLevelOffset);
  for (int64_t n = 0; n < outputs; ++n) {
    const int64_t panel = n / kPanel * kPanel;
    const int64_t width = product.padded_outputs - panel < kPanel ? product.padded_outputs - panel : kPanel;
    uint8_t* to = packed->levels.data() + panel * product.row_bytes() + 4 * (n - panel);
    const uint8_t* codes = op.codes + n * inputs;
    for (int64_t g = 0; g < product.groups; ++g)
      for (int64_t k = 0; k < product.group_size; ++k) {
        const int64_t byte = g * product.group_bytes + k;
        to[byte / 4 * 4 * width + byte % 4] = stored[*codes++];
      }
  }
  product.panels = packed->levels.data();
  packed->scale = transposed(op.scale, outputs, product.groups, product.padded_outputs);
  product.scale = packed->scale.data();
  product.zero_point = nullptr;
  if (!all_zero(op.zero_point, outputs * product.groups)) {
    packed->zero_point = transposed(op.zero_point, outputs, product.groups, product.padded_outputs);
    product.zero_point = packed->zero_point.data();
  }
  product.finish = pack_finish(op, outputs, packed);
  packed->kernel = Kernel::kMultiply;
  return SUBTONE_OK;
}

int32_t pack_convolution(const subtone_op& op, int64_t inputs, int64_t outputs, PackedOp* packed) {
  if (!is_size(op.kernel, 1) || !is_size(op.stride, 1) || !is_size(op.dilation, 1) || !is_size(op.padding, 0))
    return SUBTONE_SIZE;
  const bool depthwise = op.groups == inputs && outputs == inputs;  // one channel: the same either way
  if (!depthwise && op.groups != 1) return SUBTONE_SIZE;
  if (!op.weight) return SUBTONE_NULL;

  Convolution& conv = packed->convolution;
  conv.inputs = inputs;
  conv.outputs = outputs;
  conv.padded_outputs = round_up(outputs, kLanes);
  conv.kernel = op.kernel;
  conv.stride = op.stride;
  conv.dilation = op.dilation;
  conv.padding = op.padding;
  const int64_t depth = depthwise ? 1 : inputs;
  int64_t size = 0;
  if (__builtin_mul_overflow(conv.padded_outputs * conv.kernel, depth, &size)) return SUBTONE_SIZE;
  packed->weights = Buffer<float>(size);
  const int64_t panel_width = depthwise ? kLanes : kPanel;
  for (int64_t n = 0; n < outputs; ++n) {
    const int64_t panel = n / panel_width * panel_width;
    const int64_t rest = conv.padded_outputs - panel;
    const int64_t width = rest < panel_width ? rest : panel_width;
    float* to = packed->weights.data() + panel * conv.kernel * depth + (n - panel);
    const float* from = op.weight + n * depth * conv.kernel;
    for (int64_t tap = 0; tap < conv.kernel; ++tap)
      for (int64_t k = 0; k < depth; ++k) to[(tap * depth + k) * width] = from[k * conv.kernel + tap];
  }
  conv.panels = packed->weights.data();
  if (!depthwise) packed->zeros = Buffer<float>(inputs);
  conv.zeros = packed->zeros.data();
  conv.finish = pack_finish(op, outputs, packed);
  packed->kernel = depthwise ? Kernel::kDepthwise : Kernel::kDense;
  return SUBTONE_OK;
}

}  // namespace

int64_t PackedOp::frames_out(int64_t frames) const {
  if (kernel != Kernel::kDepthwise && kernel != Kernel::kDense) return frames;
  const Convolution& conv = convolution;
  const int64_t span = frames + 2 * conv.padding - conv.dilation * (conv.kernel - 1) - 1;
  return span < 0 ? 0 : span / conv.stride + 1;
}

int32_t pack(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const int64_t inputs = widths[op.input], outputs = widths[op.output];
  packed->input = op.input;
  packed->other = op.kind == SUBTONE_ADD ? op.other : op.input;
  packed->output = op.output;
  packed->relu = op.relu != 0;
  if (op.kind == SUBTONE_CONV1D)
    return op.activation_bits ? pack_product(op, inputs, outputs, packed)
                              : pack_convolution(op, inputs, outputs, packed);
  if (inputs != outputs || widths[packed->other] != inputs) return SUBTONE_SIZE;
  switch (op.kind) {
    case SUBTONE_AFFINE:
      if (!op.gain || !op.bias) return SUBTONE_NULL;
      packed->finish = pack_finish(op, outputs, packed);
      packed->kernel = Kernel::kAffine;
      return SUBTONE_OK;
    case SUBTONE_ADD:
      packed->kernel = Kernel::kAdd;
      return SUBTONE_OK;
    case SUBTONE_RELU:
      packed->kernel = Kernel::kRelu;
      return SUBTONE_OK;
    case SUBTONE_CLIP:
      if (!std::isfinite(op.low) || !std::isfinite(op.high) || !(op.low < op.high)) return SUBTONE_RANGE;
      packed->low = op.low;
      packed->high = op.high;
      packed->kernel = Kernel::kClip;
      return SUBTONE_OK;
    default:
      return SUBTONE_VALUE;
  }
}

}  // namespace subtone
