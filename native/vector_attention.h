// Weighted sums of rows, the loop that takes the time of attention.h.
//
// One source for every instruction set. Included inside the namespace of each, after vectors.h.

// kSums sums of `count` rows times factors, of kVectors * kWidth columns or fewer: `last` lanes of the last vector.
template <int kSums, int kVectors>
void combine_tile(const float* factors, int64_t factor_stride, int64_t count, const float* rows, int64_t stride,
                  Lanes last, float* y, int64_t y_stride) {
  floats total[kSums][kVectors];
  repeat<kSums>(SUBTONE_EACH(q) { repeat<kVectors>(SUBTONE_EACH(v) { total[q][v] = all_floats(0.0f); }); });
  for (int64_t i = 0; i < count; ++i, rows += stride) {
    floats part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) {
      if constexpr (v == kVectors - 1)
        part[v] = load_lanes(last, rows + kWidth * v);
      else
        part[v] = load(rows + kWidth * v);
    });
    repeat<kSums>(SUBTONE_EACH(q) {
      const floats factor = all_floats(factors[q * factor_stride + i]);
      repeat<kVectors>(SUBTONE_EACH(v) { total[q][v] = total[q][v] + factor * part[v]; });
    });
  }
  repeat<kSums>(SUBTONE_EACH(q) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      if constexpr (v == kVectors - 1)
        store_lanes(y + q * y_stride + kWidth * v, last, total[q][v]);
      else
        store(y + q * y_stride + kWidth * v, total[q][v]);
    });
  });
}

using CombineTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, Lanes, float*, int64_t);

template <int kVectors>
constexpr CombineTile kCombineTiles[kTogether] = {combine_tile<1, kVectors>, combine_tile<2, kVectors>,
                                                  combine_tile<3, kVectors>, combine_tile<4, kVectors>};

template <int kVectors = 1>
const CombineTile* combine_tiles(int64_t vectors) {
  if constexpr (kVectors < kMostVectors)
    if (vectors > kVectors) return combine_tiles<kVectors + 1>(vectors);
  return kCombineTiles<kVectors>;
}

void combine(const float* factors, int64_t factor_stride, int64_t num_sums, int64_t count, const float* rows,
             int64_t stride, int64_t width, float* y, int64_t y_stride) {
  for (int64_t j = 0; j < width; j += kMostVectors * kWidth) {
    const int64_t vectors = smaller(kMostVectors, (width - j + kWidth - 1) / kWidth);
    combine_tiles(vectors)[num_sums - 1](factors, factor_stride, count, rows + j, stride,
                                         lanes(width - j - (vectors - 1) * kWidth), y + j, y_stride);
  }
}
