// Weights in the layout of kernels.h.
#include "pack.h"

namespace subtone {
namespace {

// (rows, groups) -> (groups, padded outputs).
Buffer<float> transposed(const float* values, const std::vector<int64_t>& source, int64_t groups, int64_t padded) {
  Buffer<float> copy(groups * padded);
  for (size_t n = 0; n < source.size(); ++n)
    for (int64_t g = 0; source[n] >= 0 && g < groups; ++g)
      copy[g * padded + static_cast<int64_t>(n)] = values[source[n] * groups + g];
  return copy;
}

bool all_zero(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] != 0.0f) return false;
  return true;
}

// In `groups` parts, each padded to `padded` outputs; outputs without a source are 0.
Buffer<float> of_outputs(const float* values, float absent, const std::vector<int64_t>& source, int64_t groups,
                         int64_t padded) {
  Buffer<float> copy(groups * padded);
  const int64_t outputs = static_cast<int64_t>(source.size()) / groups;
  for (int64_t n = 0; n < outputs * groups; ++n) {
    const int64_t from = source[static_cast<size_t>(n)];
    copy[n / outputs * padded + n % outputs] = from < 0 ? 0.0f : values ? values[from] : absent;
  }
  return copy;
}

// Absent gain is 1, absent bias is -0.0f: both leave every float as it is.
Finish pack_finish(const float* gain, const float* bias, bool relu, const std::vector<int64_t>& source, int64_t groups,
                   int64_t padded, PackedWeight* packed) {
  packed->gain = of_outputs(gain, 1.0f, source, groups, padded);
  packed->bias = of_outputs(bias, -0.0f, source, groups, padded);
  return {packed->gain.data(), packed->bias.data(), relu};
}

}  // namespace

Buffer<float> padded_copy(const float* values, float absent, int64_t count, int64_t padded) {
  Buffer<float> copy(padded);
  for (int64_t n = 0; n < count; ++n) copy[n] = values ? values[n] : absent;
  return copy;
}

int32_t pack_product(const subtone_weight& from, const std::vector<int64_t>& source, const float* gain,
                     const float* bias, bool relu, PackedWeight* packed) {
  const int64_t inputs = from.columns, outputs = static_cast<int64_t>(source.size());
  if (from.activation_bits < 2 || from.activation_bits > 8) return SUBTONE_SIZE;
  if (inputs < 1 || inputs > SUBTONE_MAX_INTEGER_INPUTS) return SUBTONE_SIZE;
  if (from.scale_groups < 1 || from.scale_groups > inputs || inputs % from.scale_groups) return SUBTONE_SIZE;
  if (!from.codes || !from.levels || !from.scale || !from.zero_point) return SUBTONE_NULL;

  Product& product = packed->product;
  product.inputs = inputs;
  product.outputs = outputs;
  product.padded_outputs = round_up(outputs, kLanes);
  product.groups = from.scale_groups;
  product.group_size = inputs / from.scale_groups;
  product.group_bytes = round_up(product.group_size, 4);
  product.limit = (1 << (from.activation_bits - 1)) - 1;

  packed->levels = Buffer<uint8_t>(product.padded_outputs * product.row_bytes());
  uint8_t stored[256];
  for (int code = 0; code < 256; ++code) stored[code] = static_cast<uint8_t>(from.levels[code] + kLevelOffset);
  for (int64_t n = 0; n < outputs; ++n) {
    const int64_t row = source[static_cast<size_t>(n)];
    if (row < 0) continue;
    const int64_t panel = n / kPanel * kPanel;
    const int64_t width = product.padded_outputs - panel < kPanel ? product.padded_outputs - panel : kPanel;
    uint8_t* to = packed->levels.data() + panel * product.row_bytes() + 4 * (n - panel);
    const uint8_t* codes = from.codes + row * inputs;
    for (int64_t g = 0; g < product.groups; ++g)
      for (int64_t k = 0; k < product.group_size; ++k) {
        const int64_t byte = g * product.group_bytes + k;
        to[byte / 4 * 4 * width + byte % 4] = stored[*codes++];
      }
  }
  product.panels = packed->levels.data();
  packed->scale = transposed(from.scale, source, product.groups, product.padded_outputs);
  product.scale = packed->scale.data();
  product.zero_point = nullptr;
  if (!all_zero(from.zero_point, from.rows * product.groups)) {
    packed->zero_point = transposed(from.zero_point, source, product.groups, product.padded_outputs);
    product.zero_point = packed->zero_point.data();
  }
  product.finish = pack_finish(gain, bias, relu, source, 1, product.padded_outputs, packed);
  packed->is_integer = true;
  packed->groups = 1;
  return SUBTONE_OK;
}

// The inverse of what pack_product does to the codes of outputs that have a source each, in order.
void unpack_product(const Product& product, int8_t* levels) {
  for (int64_t n = 0; n < product.outputs; ++n) {
    const int64_t panel = n / kPanel * kPanel;
    const int64_t width = product.padded_outputs - panel < kPanel ? product.padded_outputs - panel : kPanel;
    const uint8_t* from = product.panels + panel * product.row_bytes() + 4 * (n - panel);
    for (int64_t g = 0; g < product.groups; ++g)
      for (int64_t k = 0; k < product.group_size; ++k) {
        const int64_t byte = g * product.group_bytes + k;
        *levels++ = static_cast<int8_t>(from[byte / 4 * 4 * width + byte % 4] - kLevelOffset);
      }
  }
}

int32_t pack_convolution(const subtone_weight& from, const std::vector<int64_t>& source, int64_t groups, int64_t depth,
                         int64_t planes, int64_t kernel, bool is_depthwise, const float* gain, const float* bias,
                         bool relu, PackedWeight* packed) {
  if (!from.floats) return SUBTONE_NULL;
  const int64_t parts = is_depthwise ? 1 : groups;
  Convolution& conv = packed->convolution;
  conv.inputs = is_depthwise ? groups : depth;
  conv.outputs = static_cast<int64_t>(source.size()) / parts;
  conv.padded_outputs = round_up(conv.outputs, kLanes);
  conv.kernel = kernel;
  conv.stride = conv.dilation = 1;
  conv.padding = 0;
  conv.planes = planes;
  conv.plane_rows = 0;
  conv.x_width = groups * depth;
  conv.y_width = static_cast<int64_t>(source.size());
  const int64_t taps = planes * kernel;
  int64_t size = 0;  // of a part; sizes are at most 2^24 each, so that two of them never overflow
  if (__builtin_mul_overflow(conv.padded_outputs * depth, taps, &size)) return SUBTONE_SIZE;
  int64_t all = 0;
  if (__builtin_mul_overflow(size, parts, &all)) return SUBTONE_SIZE;
  packed->weights = Buffer<float>(all);
  const int64_t panel_width = is_depthwise ? kLanes : kPanel;
  for (int64_t index = 0; index < conv.outputs * parts; ++index) {
    const int64_t row = source[static_cast<size_t>(index)], n = index % conv.outputs;
    if (row < 0) continue;
    const int64_t panel = n / panel_width * panel_width;
    const int64_t rest = conv.padded_outputs - panel;
    const int64_t width = rest < panel_width ? rest : panel_width;
    float* to = packed->weights.data() + index / conv.outputs * size + panel * taps * depth + (n - panel);
    const float* weights = from.floats + row * depth * taps;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t k = 0; k < depth; ++k) to[(tap * depth + k) * width] = weights[k * taps + tap];
  }
  conv.panels = packed->weights.data();
  if (!is_depthwise) packed->zeros = Buffer<float>(depth);
  conv.zeros = packed->zeros.data();
  conv.finish = pack_finish(gain, bias, relu, source, parts, conv.padded_outputs, packed);
  packed->is_integer = false;
  packed->groups = parts;
  return SUBTONE_OK;
}

}  // namespace subtone
