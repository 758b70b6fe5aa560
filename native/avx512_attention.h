// Transposed rows, for attention.h, with AVX-512.
//
// Included inside the namespace of x86_avx512.cc, after vectors.h.

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
