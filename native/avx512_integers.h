// The kernels of integer-only programs. Bytes of x are unsigned and weights signed, as vpdpbusd wants them.
//
// Included inside the namespace of x86_avx512.cc, after avx512_vectors.h. A 64-bit total of 16 outputs is two vectors,
// those of even and of odd outputs: vpmuldq multiplies the lower halves of 64-bit lanes.

struct Totals {
  ints even, odd;
};

SUBTONE_INLINE ints upper_half(ints values) { return _mm512_srli_epi64(values, 32); }

// The 16 int64 at `values`, apart.
SUBTONE_INLINE Totals load_totals(const int64_t* values) {
  const ints even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), one = _mm512_set1_epi64(1);
  const ints first = _mm512_loadu_si512(values), second = _mm512_loadu_si512(values + 8);
  return {_mm512_permutex2var_epi64(first, even, second),
          _mm512_permutex2var_epi64(first, _mm512_add_epi64(even, one), second)};
}

SUBTONE_INLINE Totals plus(const Totals& left, const Totals& right) {
  return {_mm512_add_epi64(left.even, right.even), _mm512_add_epi64(left.odd, right.odd)};
}

SUBTONE_INLINE Totals times(ints left, ints right) {
  return {_mm512_mul_epi32(left, right), _mm512_mul_epi32(upper_half(left), upper_half(right))};
}

// What ends an op, for 16 outputs. kIsUpper: all shifts are 32 or more, so that a result lies in the upper half of
// its total, shifted by what is left of the shift; else results are clipped before they lose their own upper half.
template <bool kIsUpper>
struct Ending {
  Totals offset;
  ints shift, low, high;  // shifts less 32 with kIsUpper

  SUBTONE_INLINE Ending(const Requantize& finish, int64_t n)
      : offset(load_totals(finish.offset + n)), shift(_mm512_loadu_si512(finish.shift + n)),
        low(_mm512_set1_epi32(finish.low)), high(_mm512_set1_epi32(finish.high)) {
    if (kIsUpper) shift = _mm512_sub_epi32(shift, _mm512_set1_epi32(32));
  }

  SUBTONE_INLINE explicit Ending(const IntegerPair& pair)
      : shift(_mm512_set1_epi32(kIsUpper ? pair.shift - 32 : pair.shift)),
        low(_mm512_set1_epi32(pair.low)), high(_mm512_set1_epi32(pair.high)) {
    offset.even = offset.odd = _mm512_set1_epi64(INT64_C(1) << (pair.shift - 1));
  }

  SUBTONE_INLINE ints operator()(const Totals& totals) const {
    Totals sum = plus(totals, offset);
    if constexpr (kIsUpper) {
      const ints value = _mm512_mask_shuffle_epi32(sum.odd, 0x5555, sum.even, _MM_PERM_CDAB);
      return _mm512_min_epi32(_mm512_max_epi32(_mm512_srav_epi32(value, shift), low), high);
    } else {
      const ints lowest = _mm512_set1_epi64(_mm_cvtsi128_si32(_mm512_castsi512_si128(low)));
      const ints highest = _mm512_set1_epi64(_mm_cvtsi128_si32(_mm512_castsi512_si128(high)));
      sum.even = _mm512_srav_epi64(sum.even, _mm512_maskz_mov_epi32(0x5555, shift));
      sum.odd = _mm512_srav_epi64(sum.odd, upper_half(shift));
      sum.even = _mm512_min_epi64(_mm512_max_epi64(sum.even, lowest), highest);
      sum.odd = _mm512_min_epi64(_mm512_max_epi64(sum.odd, lowest), highest);
      return _mm512_mask_shuffle_epi32(sum.even, 0xAAAA, sum.odd, _MM_PERM_CDAB);
    }
  }
};

// count items; kLanes or fewer of them are body(first item, mask).
template <typename Body>
SUBTONE_INLINE void each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, static_cast<__mmask16>(0xFFFF));
  if (i < count) body(i, lanes(count - i));
}

SUBTONE_INLINE ints load_some(__mmask16 mask, const void* values) { return _mm512_maskz_loadu_epi32(mask, values); }

void narrow(const int32_t* x, int64_t count, int32_t level_offset, uint8_t* levels) {
  // As in quantize_group: packing works within 128-bit lanes.
  const ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const ints offset = _mm512_set1_epi32(level_offset);
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    ints part[4];
    repeat<4>(SUBTONE_EACH(v) { part[v] = _mm512_add_epi32(_mm512_loadu_si512(x + i + kLanes * v), offset); });
    const ints low = _mm512_packs_epi32(part[0], part[1]), high = _mm512_packs_epi32(part[2], part[3]);
    _mm512_storeu_si512(levels + i, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
  }
  each_vector(count - i, [&](int64_t more, __mmask16 mask) {
    const ints part = _mm512_add_epi32(load_some(mask, x + i + more), offset);
    _mm_mask_storeu_epi8(levels + i + more, mask, _mm512_cvtepi32_epi8(part));
  });
}

void integer_sums(const IntegerProduct& product, const uint8_t* levels, int64_t frames, int32_t* sums) {
  for (int64_t t = 0; t < frames; ++t, levels += product.row_bytes())
    for (int64_t g = 0; g < product.groups; ++g) {
      const uint8_t* from = levels + g * product.group_size;
      ints sum = _mm512_setzero_si512();
      for (int64_t k = 0; k < product.group_size; k += 64) {
        const int64_t rest = product.group_size - k;
        const __mmask64 mask = rest >= 64 ? ~0ull : (1ull << rest) - 1;
        sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(mask, from + k), _mm512_set1_epi8(1));
      }
      *sums++ = _mm512_reduce_add_epi32(sum);
    }
}

// The int32 sums of one group for kFrames frames and a panel of kVectors * 16 outputs, [frame][vector][16]. As in
// multiply_group the sums are variables that live in registers throughout.
template <int kFrames, int kVectors>
__attribute__((noinline)) void product_sums(const int8_t* weights, const uint8_t* levels, int64_t row_bytes,
                                            int64_t quads, const int32_t* start, int32_t* to) {
  ints sums[kFrames][kVectors];
  repeat<kVectors>(SUBTONE_EACH(v) {
    const ints first = _mm512_loadu_si512(start + kLanes * v);
    repeat<kFrames>(SUBTONE_EACH(f) { sums[f][v] = first; });
  });
  for (int64_t k = 0; k < 4 * quads; k += 4, weights += 64 * kVectors) {
    ints part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) { part[v] = _mm512_loadu_si512(weights + 64 * v); });
    repeat<kFrames>(SUBTONE_EACH(f) {
      const ints quad = broadcast_quad(reinterpret_cast<const int8_t*>(levels) + f * row_bytes + k);
      repeat<kVectors>(SUBTONE_EACH(v) { sums[f][v] = _mm512_dpbusd_epi32(sums[f][v], quad, part[v]); });
    });
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      asm("" : "+v"(sums[f][v]));  // as in multiply_group
      _mm512_store_si512(to + kLanes * (f * kVectors + v), sums[f][v]);
    });
  });
}

using ProductSums = void (*)(const int8_t*, const uint8_t*, int64_t, int64_t, const int32_t*, int32_t*);

// [vectors - 1][frames - 1]
#define SUBTONE_TILES(v) \
  {product_sums<1, v>, product_sums<2, v>, product_sums<3, v>, product_sums<4, v>, product_sums<5, v>, \
   product_sums<6, v>}
constexpr ProductSums kProductSums[4][kTileFrames] = {SUBTONE_TILES(1), SUBTONE_TILES(2), SUBTONE_TILES(3),
                                                      SUBTONE_TILES(4)};
#undef SUBTONE_TILES

// One group and no correction, as most are.
template <bool kIsUpper>
void finish_tile(const IntegerProduct& product, const int32_t* sums, int64_t frames, int64_t vectors, int64_t n0,
                 int32_t* y) {
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t n = n0 + kLanes * v;
    const Ending<kIsUpper> ending(product.finish, n);
    const __mmask16 mask = lanes(product.outputs - n);
    const ints multiplier = _mm512_loadu_si512(product.multiplier + n), odd = upper_half(multiplier);
    for (int64_t f = 0; f < frames; ++f) {
      const ints sum = _mm512_load_si512(sums + kLanes * (f * vectors + v));
      const Totals totals = {_mm512_mul_epi32(sum, multiplier), _mm512_mul_epi32(upper_half(sum), odd)};
      _mm512_mask_storeu_epi32(y + f * product.y_width + n, mask, ending(totals));
    }
  }
}

// All groups of a tile; totals [frame][vector][even, odd][8].
template <bool kIsUpper>
void multiply_groups(const IntegerProduct& product, const uint8_t* levels, const int32_t* level_sums, int64_t frames,
                     int64_t vectors, int64_t n0, ProductSums add, int32_t* y) {
  alignas(64) int32_t sums[kTileFrames * kPanel];
  alignas(64) int64_t totals[kTileFrames * kPanel] = {};
  const int8_t* weights = product.panels + n0 * product.quads * 4;
  for (int64_t g = 0; g < product.groups; ++g) {
    const int64_t at = g * product.padded_outputs + n0, quads = product.last_quad(g) - product.first_quad(g);
    add(weights, levels + 4 * product.first_quad(g), product.row_bytes(), quads, product.start + at, sums);
    weights += quads * 4 * kLanes * vectors;
    for (int64_t v = 0; v < vectors; ++v) {
      const ints multiplier = _mm512_loadu_si512(product.multiplier + at + kLanes * v);
      for (int64_t f = 0; f < frames; ++f) {
        int64_t* total = totals + kLanes * (f * vectors + v);
        Totals more = times(_mm512_load_si512(sums + kLanes * (f * vectors + v)), multiplier);
        if (product.correction) {
          const Totals correction = load_totals(product.correction + at + kLanes * v);
          const ints level_sum = _mm512_set1_epi64(level_sums[f * product.groups + g]);
          more = plus(more, {_mm512_mullox_epi64(correction.even, level_sum),
                             _mm512_mullox_epi64(correction.odd, level_sum)});
        }
        _mm512_store_si512(total, _mm512_add_epi64(_mm512_load_si512(total), more.even));
        _mm512_store_si512(total + 8, _mm512_add_epi64(_mm512_load_si512(total + 8), more.odd));
      }
    }
  }
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t n = n0 + kLanes * v;
    const Ending<kIsUpper> ending(product.finish, n);
    for (int64_t f = 0; f < frames; ++f) {
      const int64_t* total = totals + kLanes * (f * vectors + v);
      _mm512_mask_storeu_epi32(y + f * product.y_width + n, lanes(product.outputs - n),
                               ending({_mm512_load_si512(total), _mm512_load_si512(total + 8)}));
    }
  }
}

void integer_multiply(const IntegerProduct& product, const uint8_t* levels, const int32_t* level_sums, int64_t frames,
                      Span panels, int32_t* y) {
  const bool is_plain = product.groups == 1 && !product.correction;
  const auto finish = product.finish.is_upper ? finish_tile<true> : finish_tile<false>;
  const auto multiply_all = product.finish.is_upper ? multiply_groups<true> : multiply_groups<false>;
  alignas(64) int32_t sums[kTileFrames * kPanel];
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel, vectors = smaller(kPanel, product.padded_outputs - n0) / kLanes;
    for (int64_t t = 0; t < frames; t += kTileFrames) {
      const int64_t count = smaller(kTileFrames, frames - t);
      const ProductSums add = kProductSums[vectors - 1][count - 1];
      const uint8_t* from = levels + t * product.row_bytes();
      int32_t* to = y + t * product.y_width;
      if (is_plain) {
        add(product.panels + n0 * product.quads * 4, from, product.row_bytes(), product.quads, product.start + n0, sums);
        finish(product, sums, count, vectors, n0, to);
      } else {
        multiply_all(product, from, level_sums + t * product.groups, count, vectors, n0, add, to);
      }
    }
  }
}

// The same bits, whatever they mean; transpose only moves them.
void integer_transpose(const int32_t* from, int64_t stride, int64_t rows, int64_t columns, int32_t* to,
                       int64_t to_stride) {
  transpose(reinterpret_cast<const float*>(from), stride, rows, columns, reinterpret_cast<float*>(to), to_stride);
}

template <bool kIsUpper>
void affine_rows(const IntegerAffine& affine, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  each_vector(width, [&](int64_t n, __mmask16 mask) {
    const Ending<kIsUpper> ending(affine.finish, n);
    const ints multiplier = _mm512_loadu_si512(affine.multiplier + n);
    for (int64_t t = 0; t < frames; ++t)
      _mm512_mask_storeu_epi32(y + t * width + n, mask, ending(times(load_some(mask, x + t * width + n), multiplier)));
  });
}

void integer_affine(const IntegerAffine& affine, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  (affine.finish.is_upper ? affine_rows<true> : affine_rows<false>)(affine, x, frames, width, y);
}

// y[i] = clip(total(i, mask)) of `pair`.
template <typename Body>
SUBTONE_INLINE void each_total(const IntegerPair& pair, int64_t count, int32_t* y, const Body& total) {
  if (pair.shift >= 32) {
    const Ending<true> ending(pair);
    each_vector(count, [&](int64_t i, __mmask16 mask) {
      _mm512_mask_storeu_epi32(y + i, mask, ending(total(i, mask)));
    });
  } else {
    const Ending<false> ending(pair);
    each_vector(count, [&](int64_t i, __mmask16 mask) {
      _mm512_mask_storeu_epi32(y + i, mask, ending(total(i, mask)));
    });
  }
}

void integer_add(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  const ints left = _mm512_set1_epi32(pair.left), right = _mm512_set1_epi32(pair.right);
  each_total(pair, count, y, [&](int64_t i, __mmask16 mask) {
    return plus(times(load_some(mask, x + i), left), times(load_some(mask, other + i), right));
  });
}

void integer_times(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  const ints left = _mm512_set1_epi32(pair.left);
  each_total(pair, count, y, [&](int64_t i, __mmask16 mask) {
    return times(_mm512_mullo_epi32(load_some(mask, x + i), load_some(mask, other + i)), left);
  });
}

void rescale(const IntegerPair& pair, const int32_t* x, int64_t count, int32_t* y) {
  const ints left = _mm512_set1_epi32(pair.left);
  each_total(pair, count, y,
             [&](int64_t i, __mmask16 mask) { return times(load_some(mask, x + i), left); });
}
