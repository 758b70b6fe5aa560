// The loop that integer_attention.h is written around: bytes of rows times bytes of panels, by vpdpbusd.
//
// Included inside the namespace of x86_avx512.cc, after avx512_vectors.h.

template <int kRows, int kPanels>
void dot_tile(const uint8_t* rows, int64_t row_bytes, const int8_t* panels, int64_t panel_bytes, int64_t quads,
              const int32_t* start, int32_t* y, int64_t y_stride) {
  ints sums[kRows][kPanels];
  repeat<kPanels>(SUBTONE_EACH(p) {
    const ints first = start ? _mm512_loadu_si512(start + kLanes * p) : _mm512_setzero_si512();
    repeat<kRows>(SUBTONE_EACH(r) { sums[r][p] = first; });
  });
  for (int64_t quad = 0; quad < quads; ++quad, panels += 4 * kLanes) {
    ints part[kPanels];
    repeat<kPanels>(SUBTONE_EACH(p) { part[p] = _mm512_loadu_si512(panels + p * panel_bytes); });
    repeat<kRows>(SUBTONE_EACH(r) {
      int32_t bytes;
      __builtin_memcpy(&bytes, rows + r * row_bytes + 4 * quad, sizeof bytes);
      const ints x = _mm512_set1_epi32(bytes);
      repeat<kPanels>(SUBTONE_EACH(p) { sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], x, part[p]); });
    });
  }
  repeat<kRows>(SUBTONE_EACH(r) {
    repeat<kPanels>(SUBTONE_EACH(p) { _mm512_storeu_si512(y + r * y_stride + kLanes * p, sums[r][p]); });
  });
}

using DotTile = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, int64_t, const int32_t*, int32_t*, int64_t);
constexpr int64_t kDotRows = 4, kDotPanels = 4;
#define SUBTONE_TILES(r) {dot_tile<r, 1>, dot_tile<r, 2>, dot_tile<r, 3>, dot_tile<r, 4>}
constexpr DotTile kDotTiles[kDotRows][kDotPanels] = {SUBTONE_TILES(1), SUBTONE_TILES(2), SUBTONE_TILES(3),
                                                     SUBTONE_TILES(4)};
#undef SUBTONE_TILES

void byte_dots(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const int8_t* panels, int64_t panel_bytes,
               int64_t quads, int64_t num_panels, const int32_t* start, int32_t* y, int64_t y_stride) {
  for (int64_t p = 0; p < num_panels; p += kDotPanels)
    for (int64_t r = 0; r < num_rows; r += kDotRows) {
      const DotTile tile = kDotTiles[smaller(kDotRows, num_rows - r) - 1][smaller(kDotPanels, num_panels - p) - 1];
      tile(rows + r * row_bytes, row_bytes, panels + p * panel_bytes, panel_bytes, quads,
           start ? start + p * kDotLanes : nullptr, y + r * y_stride + p * kDotLanes, y_stride);
    }
}
