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

static_assert(kBlockCodes == 64 * kBlockFields, "a block is one of packed_layout.h");

// table[code] of 16 codes below 2^bits.
inline void look_up(const uint8_t* table, int bits, const uint8_t* codes, uint8_t* stored) {
#if defined(__GNUC__) && !defined(__clang__)  // which has no shuffle by a vector of places
  if (bits <= 6) {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    Bytes places, tables[4];
    __builtin_memcpy(&places, codes, sizeof places);
    __builtin_memcpy(tables, table, sizeof tables);
    Bytes found = bits <= 4 ? __builtin_shuffle(tables[0], places) : __builtin_shuffle(tables[0], tables[1], places);
    if (bits == 6) {
      const Bytes upper = reinterpret_cast<Bytes>((places & 32) != 0);
      found = (upper & __builtin_shuffle(tables[2], tables[3], places)) | (~upper & found);
    }
    __builtin_memcpy(stored, &found, sizeof found);
    return;
  }
#endif
  for (int i = 0; i < kLanes; ++i) stored[i] = table[codes[i]];
}

void decode(const Coded& coded, int64_t first_output, int64_t width, float* weights) {
  constexpr int64_t kUnits = kBlockCodes / kLanes;  // of 16 codes; panels begin with one, wherever in a block
  const UnpackCodes unpack = kUnpackCodes[coded.bits < 8 ? coded.bits - 1 : 0];
  const int64_t first = first_output * coded.columns / kLanes, last = first + width * coded.columns / kLanes;
  const int64_t group_columns = coded.columns / coded.groups;
  const float* scale = coded.scale + first_output * coded.groups;
  const float* offset = coded.offset + first_output * coded.groups;
  uint8_t unpacked[kBlockCodes], found[kLanes];
  const uint8_t* stored = unpacked;  // of the block that `unit` lies in
  int64_t output = 0, column = 0;  // in the panel, in the group
  for (int64_t unit = first; unit < last; ++unit, weights += kLanes) {
    if (unit == first || unit % kUnits == 0) {
      const uint8_t* block = coded.blocks + unit / kUnits * 64 * coded.bits;
      if (coded.bits < 8)
        unpack(block, unpacked);
      else
        stored = block;  // a byte each already
    }
    const uint8_t* lanes_of_unit = stored + unit % kUnits * kLanes;
    if (coded.table) {
      look_up(coded.table, coded.bits, lanes_of_unit, found);
      lanes_of_unit = found;
    }
    decode_lanes(lanes_of_unit, scale + output, offset + output, weights);
    output += kLanes;
    if (output < width) continue;
    output = 0;
    if (++column < group_columns) continue;
    column = 0;
    scale += width;
    offset += width;
  }
}
