// The two loops that attention.h is written around: weighted sums of rows, and transposed rows.
//
// Included inside the namespace of x86_avx512.cc, after avx512_vectors.h.

// kSums sums of `count` rows times factors, of kVectors * 16 columns or fewer: `last` masks the last vector.
template <int kSums, int kVectors>
void combine_tile(const float* factors, int64_t factor_stride, int64_t count, const float* rows, int64_t stride,
                  __mmask16 last, float* y, int64_t y_stride) {
  floats total[kSums][kVectors];
  repeat<kSums>(SUBTONE_EACH(q) { repeat<kVectors>(SUBTONE_EACH(v) { total[q][v] = _mm512_setzero_ps(); }); });
  for (int64_t i = 0; i < count; ++i, rows += stride) {
    floats part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) {
      part[v] = _mm512_maskz_loadu_ps(v == kVectors - 1 ? last : 0xFFFF, rows + kLanes * v);
    });
    repeat<kSums>(SUBTONE_EACH(q) {
      const floats factor = _mm512_set1_ps(factors[q * factor_stride + i]);
      repeat<kVectors>(
          SUBTONE_EACH(v) { total[q][v] = _mm512_add_ps(total[q][v], _mm512_mul_ps(factor, part[v])); });
    });
  }
  repeat<kSums>(SUBTONE_EACH(q) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      _mm512_mask_storeu_ps(y + q * y_stride + kLanes * v, v == kVectors - 1 ? last : 0xFFFF, total[q][v]);
    });
  });
}

using CombineTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, __mmask16, float*, int64_t);
#define SUBTONE_TILES(q) {combine_tile<q, 1>, combine_tile<q, 2>, combine_tile<q, 3>, combine_tile<q, 4>}
constexpr CombineTile kCombineTiles[kTogether][4] = {SUBTONE_TILES(1), SUBTONE_TILES(2), SUBTONE_TILES(3),
                                                     SUBTONE_TILES(4)};
#undef SUBTONE_TILES

void combine(const float* factors, int64_t factor_stride, int64_t num_sums, int64_t count, const float* rows,
             int64_t stride, int64_t width, float* y, int64_t y_stride) {
  const auto& tiles = kCombineTiles[num_sums - 1];
  for (int64_t j = 0; j < width; j += 4 * kLanes) {
    const int64_t vectors = smaller(4, (width - j + kLanes - 1) / kLanes);
    tiles[vectors - 1](factors, factor_stride, count, rows + j, stride, lanes(width - j - (vectors - 1) * kLanes), y + j,
                       y_stride);
  }
}

// 16 x 16 at most: rows interleaved by ones, by pairs, then by halves and quarters of vectors.
SUBTONE_INLINE void transpose_tile(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to,
                                   int64_t to_stride) {
  floats row[16], pairs[16];
  repeat<16>(SUBTONE_EACH(i) {
    row[i] = i < rows ? _mm512_maskz_loadu_ps(lanes(columns), from + i * stride) : _mm512_setzero_ps();
  });
  repeat<8>(SUBTONE_EACH(i) {
    pairs[2 * i] = _mm512_unpacklo_ps(row[2 * i], row[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(row[2 * i], row[2 * i + 1]);
  });
  repeat<4>(SUBTONE_EACH(i) {  // row[4 i + c]: columns c, 4 + c, 8 + c, 12 + c of rows 4 i .. 4 i + 3
    repeat<2>(SUBTONE_EACH(half) {
      const __m512d low = _mm512_castps_pd(pairs[4 * i + half]), high = _mm512_castps_pd(pairs[4 * i + 2 + half]);
      row[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      row[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    });
  });
  repeat<4>(SUBTONE_EACH(c) {
    const floats even_low = _mm512_shuffle_f32x4(row[c], row[4 + c], 0x88);
    const floats even_high = _mm512_shuffle_f32x4(row[8 + c], row[12 + c], 0x88);
    const floats odd_low = _mm512_shuffle_f32x4(row[c], row[4 + c], 0xDD);
    const floats odd_high = _mm512_shuffle_f32x4(row[8 + c], row[12 + c], 0xDD);
    pairs[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    pairs[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
    pairs[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    pairs[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
  });
  repeat<16>(SUBTONE_EACH(c) {
    if (c < columns) _mm512_mask_storeu_ps(to + c * to_stride, lanes(rows), pairs[c]);
  });
}

void transpose(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t r = 0; r < rows; r += kLanes)
      transpose_tile(from + r * stride + c, stride, smaller(kLanes, rows - r), smaller(kLanes, columns - c),
                     to + c * to_stride + r, to_stride);
}
