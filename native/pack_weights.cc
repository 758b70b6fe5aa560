// Weights in the layout of kernels.h.
#include "pack.h"

namespace subtone {
namespace {

#include "packed_layout.h"

// (rows, groups) -> [panel][group][outputs of panel].
Buffer<float> by_panels(const float* values, const std::vector<int64_t>& source, const Product& product) {
  Buffer<float> copy(product.groups * product.padded_outputs);
  for (int64_t n = 0; n < product.outputs; ++n) {
    const int64_t row = source[static_cast<size_t>(n)], n0 = n / kPanel * kPanel;
    for (int64_t g = 0; row >= 0 && g < product.groups; ++g)
      copy[product.scales_of(n0, g) + n - n0] = values[row * product.groups + g];
  }
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

int64_t largest_code(const subtone_weight& from) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < from.rows * from.columns; ++i) largest = from.codes[i] > largest ? from.codes[i] : largest;
  return largest;
}

// Calls put(n, byte, code) for each code of the outputs, in rows whose groups have group_bytes.
template <typename Put>
void each_code(const subtone_weight& from, const std::vector<int64_t>& source, const Product& product, const Put& put) {
  for (size_t n = 0; n < source.size(); ++n) {
    if (source[n] < 0) continue;
    const uint8_t* codes = from.codes + source[n] * product.inputs;
    for (int64_t g = 0; g < product.groups; ++g)
      for (int64_t k = 0; k < product.group_size; ++k)
        put(static_cast<int64_t>(n), g * product.group_bytes + k, *codes++);
  }
}

void pack_bytes(const subtone_weight& from, const std::vector<int64_t>& source, PackedWeight* packed) {
  Product& product = packed->product;
  product.bits = 8;
  product.padded_outputs = round_up(product.outputs, kLanes);
  product.group_bytes = round_up(product.group_size, 4);
  product.level_offset = kLevelOffset;
  product.table = nullptr;
  packed->levels = Buffer<uint8_t>(product.padded_outputs * product.row_bytes());
  uint8_t stored[256];
  for (int code = 0; code < 256; ++code) stored[code] = static_cast<uint8_t>(from.levels[code] + kLevelOffset);
  each_code(from, source, product, [&](int64_t n, int64_t byte, uint8_t code) {
    const int64_t panel = n / kPanel * kPanel, rest = product.padded_outputs - panel;
    const int64_t width = rest < kPanel ? rest : kPanel;
    packed->levels[panel * product.row_bytes() + byte / 4 * 4 * width + 4 * (n - panel) + byte % 4] = stored[code];
  });
}

// Levels that ascend by one from code to code need no table; the first so near to 0 that 2^exponent times the sum of
// (code - level_offset) * level stays in int32.
bool is_run(const int8_t* levels, int64_t last_code, int bits) {
  for (int64_t code = 1; code <= last_code; ++code)
    if (levels[code] != levels[0] + code) return false;
  return levels[0] <= 0 && -levels[0] <= 1 << (bits - 1);
}

void pack_codes(const subtone_weight& from, const std::vector<int64_t>& source, bool has_table, PackedWeight* packed) {
  Product& product = packed->product;
  const int bits = product.bits;
  product.padded_outputs = round_up(product.outputs, kPanel);
  product.group_bytes = round_up(product.group_size, kBlockInputs);
  product.level_offset = has_table ? kLevelOffset : -from.levels[0];
  product.table = nullptr;
  if (has_table) {
    packed->table = Buffer<uint8_t>(kTables * 64);
    for (int64_t i = 0; i < kTables * 64; ++i) {
      const int64_t code = (i % 64 >> i / 64) % (1 << bits);
      packed->table[i] = static_cast<uint8_t>(from.levels[code] + kLevelOffset);
    }
    product.table = packed->table.data();
  }
  packed->levels = Buffer<uint8_t>(product.padded_outputs / kPanel * product.panel_bytes());
  each_code(from, source, product, [&](int64_t n, int64_t byte, uint8_t code) {
    const int64_t output = n % kPanel, input = byte % kBlockInputs;
    const int field = static_cast<int>(input / 4 * 4 + output / kLanes);
    uint8_t* block = packed->levels.data() + n / kPanel * product.panel_bytes() + byte / kBlockInputs * 64 * bits;
    for (int bit = 0; bit < bits; ++bit) {
      const BitPlace place = bit_place(bits, field, bit);
      block[64 * place.vector + output % kLanes * 4 + input % 4] |= static_cast<uint8_t>((code >> bit & 1) << place.bit);
    }
  });
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
  product.groups = from.scale_groups;
  product.group_size = inputs / from.scale_groups;
  product.limit = (1 << (from.activation_bits - 1)) - 1;
  const int64_t last_code = largest_code(from);
  product.bits = 1;
  while (last_code >> product.bits) ++product.bits;
  const bool has_table = !is_run(from.levels, last_code, product.bits);
  if (product.bits == 8 || (product.bits == 7 && has_table)) {  // no instruction looks up 64 bytes in 128 entries
    pack_bytes(from, source, packed);
  } else {
    pack_codes(from, source, has_table, packed);
  }
  product.panels = packed->levels.data();
  packed->scale = by_panels(from.scale, source, product);
  product.scale = packed->scale.data();
  product.zero_point = nullptr;
  if (!all_zero(from.zero_point, from.rows * product.groups)) {
    packed->zero_point = by_panels(from.zero_point, source, product);
    product.zero_point = packed->zero_point.data();
  }
  product.finish = pack_finish(gain, bias, relu, source, 1, product.padded_outputs, packed);
  packed->is_integer = true;
  packed->groups = 1;
  packed->panel_width = kPanel;
  return SUBTONE_OK;
}

// The inverse of what pack_product does to the codes of outputs that have a source each, in order.
void unpack_product(const Product& product, int8_t* levels) {
  const int64_t row_bytes = product.row_bytes();
  std::vector<uint8_t> unpacked(static_cast<size_t>(product.bits == 8 ? 0 : kPanel * row_bytes));
  for (int64_t n0 = 0; n0 < product.outputs; n0 += kPanel) {
    const uint8_t* bytes = product.panels + n0 * row_bytes;
    if (product.bits != 8) {
      for (int64_t k = 0; k < row_bytes; k += kBlockInputs)
        unpack_stored(product, n0 / kPanel, k / kBlockInputs, unpacked.data() + k * kPanel);
      bytes = unpacked.data();
    }
    const int64_t width = product.padded_outputs - n0 < kPanel ? product.padded_outputs - n0 : kPanel;
    const int64_t last = product.outputs - n0 < kPanel ? product.outputs - n0 : kPanel;
    for (int64_t n = 0; n < last; ++n)
      for (int64_t g = 0; g < product.groups; ++g)
        for (int64_t k = 0; k < product.group_size; ++k) {
          const int64_t byte = g * product.group_bytes + k;
          *levels++ = static_cast<int8_t>(bytes[byte / 4 * 4 * width + 4 * n + byte % 4] - product.level_offset);
        }
  }
}

// The panels of `parts` groups of a convolution whose sizes `packed` has, `size` floats each.
void pack_floats(const float* floats, const std::vector<int64_t>& source, int64_t size, int64_t depth,
                 PackedWeight* packed) {
  const Convolution& conv = packed->convolution;
  const int64_t panel_width = packed->panel_width, taps = packed->columns / depth;
  packed->weights = Buffer<float>(size * packed->groups);
  for (int64_t index = 0; index < conv.outputs * packed->groups; ++index) {
    const int64_t row = source[static_cast<size_t>(index)], n = index % conv.outputs;
    if (row < 0) continue;
    const int64_t panel = n / panel_width * panel_width;
    const int64_t rest = conv.padded_outputs - panel;
    const int64_t width = rest < panel_width ? rest : panel_width;
    float* to = packed->weights.data() + index / conv.outputs * size + panel * taps * depth + (n - panel);
    const float* weights = floats + row * depth * taps;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t k = 0; k < depth; ++k) to[(tap * depth + k) * width] = weights[k * taps + tap];
  }
}

int32_t pack_convolution(const subtone_weight& from, const std::vector<int64_t>& source, int64_t groups, int64_t depth,
                         int64_t planes, int64_t kernel, bool is_depthwise, const float* gain, const float* bias,
                         bool relu, PackedWeight* packed) {
  const int64_t parts = is_depthwise ? 1 : groups, panel_width = is_depthwise ? kLanes : kPanel;
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
  if (!is_depthwise) packed->zeros = Buffer<float>(depth);
  conv.zeros = packed->zeros.data();
  packed->is_integer = false;
  packed->groups = parts;
  packed->panel_width = panel_width;
  packed->columns = depth * taps;
  if (!from.floats) {
    const int32_t status = pack_coded(from, source, parts, conv.padded_outputs, panel_width, &packed->codes);
    if (status != SUBTONE_OK) return status;
  } else {
    pack_floats(from.floats, source, size, depth, packed);
    conv.panels = packed->weights.data();
  }
  conv.finish = pack_finish(gain, bias, relu, source, parts, conv.padded_outputs, packed);
  return SUBTONE_OK;
}

}  // namespace subtone
