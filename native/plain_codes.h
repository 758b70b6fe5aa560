// Weights of few bits as the floats that a convolution multiplies.
//
// One source for every instruction set. Included inside the namespace of each, after packed_layout.h and its own
// decode_lanes: 16 weights of what is stored of them.

// The codes of one block, as bytes. The number of bits is known here, so that all their places are constants.
template <int kBits>
__attribute__((flatten)) void unpack_codes(const uint8_t* block, uint8_t* codes) {
  unpack_block(kBits, block, codes);
}

using UnpackCodes = void (*)(const uint8_t*, uint8_t*);
constexpr UnpackCodes kUnpackCodes[7] = {unpack_codes<1>, unpack_codes<2>, unpack_codes<3>, unpack_codes<4>,
                                         unpack_codes<5>, unpack_codes<6>, unpack_codes<7>};

void decode(const Coded& coded, int64_t first_output, int64_t width, float* weights) {
  constexpr int64_t kUnits = kBlockCodes / kLanes;  // of 16 codes; panels begin with one, wherever in a block
  const UnpackCodes unpack = kUnpackCodes[coded.bits < 8 ? coded.bits - 1 : 0];
  const int64_t first = first_output * coded.columns / kLanes, last = first + width * coded.columns / kLanes;
  const int64_t group_columns = coded.columns / coded.groups;
  const float* scale = coded.scale + first_output * coded.groups;
  const float* offset = coded.offset + first_output * coded.groups;
  uint8_t unpacked[kBlockCodes];
  const uint8_t* stored = unpacked;  // of the block that `unit` lies in
  int64_t output = 0, column = 0;  // in the panel, in the group
  for (int64_t unit = first; unit < last; ++unit, weights += kLanes) {
    if (unit == first || unit % kUnits == 0) {
      const uint8_t* block = coded.blocks + unit / kUnits * 64 * coded.bits;
      if (coded.bits < 8)
        unpack(block, unpacked);
      else
        stored = block;  // a byte each already
      for (int64_t i = 0; coded.table && i < kBlockCodes; ++i) unpacked[i] = coded.table[stored[i]];
      if (coded.table) stored = unpacked;
    }
    decode_lanes(stored + unit % kUnits * kLanes, scale + output, offset + output, weights);
    output += kLanes;
    if (output < width) continue;
    output = 0;
    if (++column < group_columns) continue;
    column = 0;
    scale += width;
    offset += width;
  }
}
