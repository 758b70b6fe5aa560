// Products of packed weights with AVX-512, with VBMI and without: compiled once for each.
//
// Included inside a namespace of one of the two, after avx512_vectors.h. packed_layout.h says which bit lies where. A
// code that is a level needs no table and no shift: it is multiplied where it lies in its byte, 2^exponent times too
// large, and the sum is shifted in the end, exactly. One that is an index finds its level by one instruction, in a
// table that ignores the bits which are others'.

// First bit of field c of a block.
constexpr int field_exponent(int bits, int c) {
  if (bits % 2 == 0) return bits == 6 && c % 4 == 3 ? 2 : bits == 6 ? 0 : c % (8 / bits) * bits;
  if (c < 8 / bits * bits) return c % (8 / bits) * bits;
  return bits == 3 ? 5 : bits == 5 ? 3 : 1;
}

// Bits of `upper` where kMask has ones, else of `lower`.
template <int kMask>
SUBTONE_INLINE ints joined(ints upper, ints lower) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(kMask)), upper, lower, 0xCA);
}

// All bytes shifted; what comes into a byte from above is its neighbour's.
template <int kCount>
SUBTONE_INLINE ints lowered(ints bytes) {
  if constexpr (kCount == 0) return bytes;
  return _mm512_srli_epi16(bytes, kCount);
}

template <int kBits, int kField>
SUBTONE_INLINE ints field(const ints* vectors) {
  if constexpr (kBits % 2 == 0) {
    const ints* half = vectors + kField / 4 * (kBits / 2);
    if constexpr (kBits < 6 || kField % 4 < 3) return half[kField % 4 / (8 / kBits)];
    return joined<0xC0>(half[0], joined<0x30>(lowered<2>(half[1]), lowered<4>(half[2])));
  } else if constexpr (kField < 8 / kBits * kBits) {
    return vectors[kField / (8 / kBits)];
  } else if constexpr (kBits == 3) {
    return joined<0xC0>(vectors[kField - 6], lowered<kField - 5>(vectors[2]));
  } else if constexpr (kBits == 5 && kField < 7) {
    return joined<0xE0>(vectors[kField - 5], lowered<3>(vectors[kField - 2]));
  } else if constexpr (kBits == 5) {
    return joined<0xE0>(vectors[2], joined<0x10>(lowered<1>(vectors[3]), lowered<2>(vectors[4])));
  } else {
    static_assert(kBits == 7, "another width has no such field");
    const ints low = joined<0x04>(lowered<5>(vectors[5]), lowered<6>(vectors[6]));
    const ints middle = joined<0x10>(lowered<3>(vectors[3]), joined<0x08>(lowered<4>(vectors[4]), low));
    return joined<0x80>(vectors[0], joined<0x40>(lowered<1>(vectors[1]), joined<0x20>(lowered<2>(vectors[2]), middle)));
  }
}

// Codes of a field, times 2^exponent.
template <int kBits, int kField>
SUBTONE_INLINE ints scaled_codes(const ints* vectors) {
  constexpr int kMask = ((1 << kBits) - 1) << field_exponent(kBits, kField);
  return _mm512_and_si512(field<kBits, kField>(vectors), _mm512_set1_epi8(static_cast<char>(kMask)));
}

// The same, shifted to bit kTo.
template <int kBits, int kField, int kTo>
SUBTONE_INLINE ints shifted_codes(const ints* vectors) {
  constexpr int kDown = field_exponent(kBits, kField) - kTo;
  return _mm512_and_si512(lowered<kDown>(field<kBits, kField>(vectors)),
                          _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo)));
}

#ifdef __AVX512VBMI__
// entries[index % 64] of each byte.
SUBTONE_INLINE ints at_indices(ints entries, ints indices) { return _mm512_permutexvar_epi8(indices, entries); }
#else
SUBTONE_INLINE ints at_indices(ints entries, ints indices) {
  const ints low = _mm512_and_si512(indices, _mm512_set1_epi8(0x0F));
  ints part[4];  // of 16 entries each
  repeat<4>(SUBTONE_EACH(i) {
    part[i] = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(entries, entries, i * 0x55), low);
  });
  const __mmask64 odd = _mm512_test_epi8_mask(indices, _mm512_set1_epi8(0x10));
  const __mmask64 upper = _mm512_test_epi8_mask(indices, _mm512_set1_epi8(0x20));
  return _mm512_mask_blend_epi8(upper, _mm512_mask_blend_epi8(odd, part[0], part[1]),
                                _mm512_mask_blend_epi8(odd, part[2], part[3]));
}
#endif

// What the table has for the codes of a field.
template <int kBits, int kField>
SUBTONE_INLINE ints looked_up(const ints* vectors, const ints* tables) {
  constexpr int kPlace = field_exponent(kBits, kField);
  constexpr int kDown = kPlace + kBits > 6 ? kPlace + kBits - 6 : 0;  // an index is of the lowest 6 bits
  return at_indices(tables[kPlace - kDown], lowered<kDown>(field<kBits, kField>(vectors)));
}

// The sums that the eight fields of a block are added to: of one frame a sum each, so that none waits for the one
// before; of two one more where exponents differ; else four, and a field that lies higher than its sum's is shifted.
template <int kBits, bool kHasTable, int kFrames>
struct Sums {
  static constexpr int exponent(int field) { return kHasTable ? 0 : field_exponent(kBits, field); }
  static constexpr bool is_own(int field) {
    return field < 4 || kFrames == 1 || (kFrames == 2 && exponent(field) != exponent(field - 4));
  }
  static constexpr int of(int field) { return is_own(field) ? field : field - 4; }
};

// What is stored of the weights of a field, times 2^exponent of its sum.
template <int kBits, bool kHasTable, int kFrames, int kField>
SUBTONE_INLINE ints stored(const ints* vectors, const ints* tables) {
  using Its = Sums<kBits, kHasTable, kFrames>;
  if constexpr (kHasTable)
    return looked_up<kBits, kField>(vectors, tables);
  else if constexpr (Its::exponent(kField) == Its::exponent(Its::of(kField)))
    return scaled_codes<kBits, kField>(vectors);
  else
    return shifted_codes<kBits, kField, Its::exponent(Its::of(kField))>(vectors);
}

// By 2^kExponent, of which every lane is a multiple.
template <int kExponent>
SUBTONE_INLINE ints divided(ints sum) {
  if constexpr (kExponent == 0) return sum;
  return _mm512_srai_epi32(sum, kExponent);
}

// total[f][v] += what group g adds for frame f and 16 outputs, as in multiply_group of x86_avx512.cc.
template <int kBits, bool kHasTable, int kFrames>
SUBTONE_INLINE void add_packed_group(const Product& product, const uint8_t* weights, const int8_t* levels,
                                     const int32_t* level_sums, int64_t row, const ints* tables,
                                     floats (&total)[kFrames][4]) {
  using Its = Sums<kBits, kHasTable, kFrames>;
  const int64_t row_bytes = product.row_bytes(), groups = product.groups;
  ints sums[kFrames][8];
  repeat<kFrames>(SUBTONE_EACH(f) {
    const int32_t start = -product.level_offset * level_sums[f * groups];
    repeat<8>(SUBTONE_EACH(c) {
      sums[f][c] = _mm512_set1_epi32(c < 4 ? start * (1 << Its::exponent(c)) : 0);
    });
  });
  for (const int8_t* end = levels + product.group_bytes; levels < end; levels += 8, weights += 64 * kBits) {
    repeat<2>(SUBTONE_EACH(q) {
      constexpr int kQuad = q;
      // Read for each four fields again: kept, what the next four share with these would take the sums' registers.
      asm("" : "+r"(weights));
      ints vectors[kBits];
      repeat<kBits>(SUBTONE_EACH(i) { vectors[i] = _mm512_loadu_si512(weights + 64 * i); });
      ints part[4];
      repeat<4>(SUBTONE_EACH(v) {
        constexpr int kField = 4 * kQuad + v;
        part[v] = stored<kBits, kHasTable, kFrames, kField>(vectors, tables);
      });
      repeat<kFrames>(SUBTONE_EACH(f) {
        const ints quad = broadcast_quad(levels + f * row_bytes + 4 * kQuad);
        repeat<4>(SUBTONE_EACH(v) {
          constexpr int kSum = Its::of(4 * kQuad + v);
          sums[f][kSum] = _mm512_dpbusd_epi32(sums[f][kSum], part[v], quad);
        });
      });
    });
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    repeat<4>(SUBTONE_EACH(v) {
      constexpr int kFirst = v, kSecond = v + 4;
      asm("" : "+v"(sums[f][kFirst]));  // as in multiply_group
      ints sum = sums[f][kFirst];
      if constexpr (Its::is_own(kSecond)) {
        constexpr bool kAlike = Its::exponent(kFirst) == Its::exponent(kSecond);
        asm("" : "+v"(sums[f][kSecond]));
        if constexpr (!kAlike) sum = divided<Its::exponent(kFirst)>(sum);
        sum = _mm512_add_epi32(sum, divided<kAlike ? 0 : Its::exponent(kSecond)>(sums[f][kSecond]));
        if constexpr (kAlike) sum = divided<Its::exponent(kFirst)>(sum);
      } else {
        sum = divided<Its::exponent(kFirst)>(sum);
      }
      const int64_t n = row + kLanes * v;
      floats value = _mm512_cvtepi32_ps(sum);
      if (product.zero_point) {
        const floats level_sum = _mm512_set1_ps(static_cast<float>(level_sums[f * groups]));
        value = _mm512_sub_ps(value, _mm512_mul_ps(_mm512_loadu_ps(product.zero_point + n), level_sum));
      }
      total[f][v] = _mm512_add_ps(total[f][v], _mm512_mul_ps(value, _mm512_loadu_ps(product.scale + n)));
    });
  });
}

// kFrames frames times one panel of packed weights.
template <int kBits, bool kHasTable, int kFrames>
void multiply_packed_tile(const Product& product, const Levels& in, int64_t t0, int64_t panel, float* y) {
  ints tables[kHasTable ? kTables : 1];
  if constexpr (kHasTable)
    repeat<kTables>(SUBTONE_EACH(i) { tables[i] = _mm512_loadu_si512(product.table + 64 * i); });
  const int64_t n0 = panel * kPanel;
  const uint8_t* weights = product.panels + panel * product.panel_bytes();
  const int8_t* levels = in.levels + t0 * product.row_bytes();
  floats total[kFrames][4];
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<4>(SUBTONE_EACH(v) { total[f][v] = _mm512_setzero_ps(); }); });
  for (int64_t g = 0; g < product.groups; ++g) {
    add_packed_group<kBits, kHasTable, kFrames>(product, weights, levels, in.sums + t0 * product.groups + g,
                                                product.scales_of(n0, g), tables, total);
    weights += kPanel * product.group_bytes * kBits / 8;
    levels += product.group_bytes;
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    const floats frame_scale = _mm512_set1_ps(in.scale[t0 + f]);
    repeat<4>(SUBTONE_EACH(v) {
      const int64_t n = n0 + kLanes * v;
      const floats value = finished(product.finish, n, _mm512_mul_ps(total[f][v], frame_scale));
      _mm512_mask_storeu_ps(y + (t0 + f) * product.outputs + n, lanes(product.outputs - n), value);
    });
  });
}

using PackedTile = void (*)(const Product&, const Levels&, int64_t, int64_t, float*);

// Tiles of 1, 2, 4 and 6 frames.
template <int kBits, bool kHasTable>
constexpr PackedTile kPackedTiles[4] = {
    multiply_packed_tile<kBits, kHasTable, 1>, multiply_packed_tile<kBits, kHasTable, 2>,
    multiply_packed_tile<kBits, kHasTable, 4>, multiply_packed_tile<kBits, kHasTable, 6>};

template <bool kHasTable>
void multiply_packed(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y) {
  constexpr int kMost = kHasTable ? 6 : 7;  // indices of 7 bits are stored as bytes
  static constexpr const PackedTile* kTiles[7] = {
      kPackedTiles<1, kHasTable>, kPackedTiles<2, kHasTable>, kPackedTiles<3, kHasTable>, kPackedTiles<4, kHasTable>,
      kPackedTiles<5, kHasTable>, kPackedTiles<6, kHasTable>, kPackedTiles<kMost, kHasTable>};
  const PackedTile* tiles = kTiles[product.bits - 1];
  for (int64_t panel = panels.first; panel < panels.last; ++panel)
    for (int64_t t = 0; t < frames;) {
      const int64_t rest = frames - t, size = rest < 2 ? 0 : rest < 4 ? 1 : rest < 6 ? 2 : 3;
      tiles[size](product, levels, t, panel, y);
      t += size ? 2 * size : 1;
    }
}
