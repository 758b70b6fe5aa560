// Weights that float ops multiply or look up, in the bits that they were stored in.
#include "pack.h"

namespace subtone {
namespace {

#include "packed_layout.h"

void put_code(uint8_t* blocks, int bits, int64_t position, uint8_t code) {
  const int64_t within = position % kBlockCodes, lane = within % 64;
  uint8_t* block = blocks + position / kBlockCodes * 64 * bits;
  for (int bit = 0; bit < bits; ++bit) {
    const BitPlace place = bit_place(bits, static_cast<int>(within / 64), bit);
    block[64 * place.vector + lane] |= static_cast<uint8_t>((code >> bit & 1) << place.bit);
  }
}

}  // namespace

int32_t pack_coded(const subtone_weight& from, const std::vector<int64_t>& source, int64_t parts, int64_t padded,
                   int64_t panel_width, CodedWeight* packed) {
  const int64_t columns = from.columns, groups = from.scale_groups;
  if (groups < 1 || groups > columns || columns % groups) return SUBTONE_SIZE;
  if (!from.codes || !from.scale || !from.zero_point) return SUBTONE_NULL;
  int64_t count = 0;
  if (__builtin_mul_overflow(parts * padded, columns, &count) || count > INT64_MAX - kBlockCodes) return SUBTONE_SIZE;

  Coded& coded = packed->coded;
  coded.columns = columns;
  coded.groups = groups;
  uint8_t largest = 1;  // at least one bit
  for (int64_t i = 0; i < from.rows * columns; ++i) largest = from.codes[i] > largest ? from.codes[i] : largest;
  for (coded.bits = 1; largest >> coded.bits;) ++coded.bits;
  if (from.levels) {
    packed->table = Buffer<uint8_t>(256);
    for (int code = 0; code < 256; ++code) packed->table[code] = static_cast<uint8_t>(from.levels[code] + kLevelOffset);
  }
  packed->blocks = Buffer<uint8_t>(round_up(count, kBlockCodes) / 8 * coded.bits);
  packed->scale = Buffer<float>(parts * padded * groups);
  packed->offset = Buffer<float>(parts * padded * groups);
  const int64_t outputs = static_cast<int64_t>(source.size()) / parts;
  for (int64_t index = 0; index < outputs * parts; ++index) {
    const int64_t row = source[static_cast<size_t>(index)], n = index % outputs;
    if (row < 0) continue;  // padding: a scale of 0
    const int64_t panel = n / panel_width * panel_width, rest = padded - panel;
    const int64_t width = rest < panel_width ? rest : panel_width, start = index / outputs * padded + panel;
    const uint8_t* codes = from.codes + row * columns;
    for (int64_t k = 0; k < columns; ++k)
      put_code(packed->blocks.data(), coded.bits, start * columns + k * width + n - panel, codes[k]);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = start * groups + g * width + n - panel;
      packed->scale[at] = from.scale[row * groups + g];
      packed->offset[at] = from.zero_point[row * groups + g];
      if (from.levels) packed->offset[at] += static_cast<float>(kLevelOffset);
    }
  }
  coded.blocks = packed->blocks.data();
  coded.table = from.levels ? packed->table.data() : nullptr;
  coded.scale = packed->scale.data();
  coded.offset = packed->offset.data();
  return SUBTONE_OK;
}

void decode_row(const Coded& coded, int64_t output, float* to) {
  const int64_t first = output * coded.columns, group_columns = coded.columns / coded.groups;
  uint8_t stored[kBlockCodes];
  for (int64_t k = 0; k < coded.columns; ++k) {
    const int64_t within = (first + k) % kBlockCodes, group = output * coded.groups + k / group_columns;
    const uint8_t* block = coded.blocks + (first + k) / kBlockCodes * 64 * coded.bits;
    if (k == 0 || within == 0) unpack_block(coded.bits, block, stored);
    const uint8_t of_one = coded.table ? coded.table[stored[within]] : stored[within];
    to[k] = coded.scale[group] * (static_cast<float>(of_one) - coded.offset[group]);
  }
}

}  // namespace subtone
