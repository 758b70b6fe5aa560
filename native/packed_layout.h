// Where the bits of packed codes lie: weights of 1 to 7 bits.
//
// Included inside a namespace that no other file sees, after kernels.h. A panel of 64 outputs is cut into fields of 64
// weights, 16 outputs of 4 inputs, in the order of bytes: four fields, of outputs 0-15, 16-31, 32-47 and 48-63, then
// those of the next four inputs. Eight fields are a block: `bits` vectors of 64 bytes without a bit to spare, those of an even
// number in two halves. Byte i of each vector belongs to weight i of every field, so that one instruction takes a field
// out of its vector; the few fields that no byte has room for are made of the bits that the others leave over.

constexpr int kBlockFields = 8, kBlockInputs = 8;

struct BitPlace {
  int vector, bit;
};

// Where bit `bit` of the codes of field `field` lies.
constexpr BitPlace bit_place(int bits, int field, int bit) {
  if (bits % 2 == 0) {
    const int half = field / 4 * (bits / 2), in_byte = 8 / bits;
    if (bits == 6 && field % 4 == 3) return {half + 2 - bit / 2, 6 + bit % 2};
    return {half + field % 4 / in_byte, field % 4 % in_byte * bits + bit};
  }
  const int in_byte = 8 / bits;
  if (field < in_byte * bits) return {field / in_byte, field % in_byte * bits + bit};
  switch (bits) {
    case 3:
      return bit ? BitPlace{field - 6, 5 + bit} : BitPlace{2, field};
    case 5:
      if (bit > 1) return {field - 5, 3 + bit};
      return field < 7 ? BitPlace{field - 2, 6 + bit} : BitPlace{4 - bit, 5};
    default:
      return {6 - bit, 7};
  }
}

// Codes of one block, as bytes. Bits of a field that lie side by side are moved together.
inline void unpack_block(int bits, const uint8_t* block, uint8_t* codes) {
  for (int field = 0; field < kBlockFields; ++field, codes += 64)
    for (int bit = 0, count; bit < bits; bit += count) {
      const BitPlace place = bit_place(bits, field, bit);
      for (count = 1; bit + count < bits; ++count) {
        const BitPlace next = bit_place(bits, field, bit + count);
        if (next.vector != place.vector || next.bit != place.bit + count) break;
      }
      const uint8_t* from = block + 64 * place.vector;
      const int mask = (1 << count) - 1;
      for (int i = 0; i < 64; ++i) {
        const int moved = (from[i] >> place.bit & mask) << bit;
        codes[i] = static_cast<uint8_t>(bit ? codes[i] | moved : moved);
      }
    }
}

// What is stored of the weights of block `block` of a panel, in the order of bytes.
inline void unpack_stored(const Product& product, int64_t panel, int64_t block, uint8_t* bytes) {
  unpack_block(product.bits, product.panels + panel * product.panel_bytes() + block * 64 * product.bits, bytes);
  for (int i = 0; product.table && i < 64 * kBlockFields; ++i) bytes[i] = product.table[bytes[i]];
}
