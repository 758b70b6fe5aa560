// The kernels of integer-only programs, for AVX2 and NEON.
//
// Included inside the namespace of one instruction set, after vector_quads.h. A 64-bit total of a vector of outputs is
// two vectors, `Totals` of avx2_vectors.h and neon_vectors.h; sums wrap.

SUBTONE_INLINE Totals plus(const Totals& left, const Totals& right) {
  return {(longs)((long_words)left.first + (long_words)right.first),
          (longs)((long_words)left.second + (long_words)right.second)};
}

SUBTONE_INLINE Totals times(const Totals& left, const Totals& right) {
  return {(longs)((long_words)left.first * (long_words)right.first),
          (longs)((long_words)left.second * (long_words)right.second)};
}

// What ends an op, for a vector of outputs. kIsUpper: all shifts are 32 or more, so that a result lies in the upper half
// of its total, shifted by what is left of the shift; else results are clipped before they lose their own upper half.
template <bool kIsUpper>
struct Ending {
  Totals offset, shifts;
  ints shift, low, high;  // shifts less 32 with kIsUpper

  SUBTONE_INLINE Ending(const Requantize& finish, int64_t n)
      : offset(load_totals(finish.offset + n)), shifts(widened(load(finish.shift + n))),
        shift(load(finish.shift + n) - 32), low(all_ints(finish.low)), high(all_ints(finish.high)) {}

  SUBTONE_INLINE explicit Ending(const IntegerPair& pair)
      : shifts(widened(all_ints(pair.shift))), shift(all_ints(pair.shift - 32)), low(all_ints(pair.low)),
        high(all_ints(pair.high)) {
    offset.first = offset.second = longs{} + (INT64_C(1) << (pair.shift - 1));
  }

  SUBTONE_INLINE ints operator()(const Totals& totals) const {
    Totals sum = plus(totals, offset);
    if constexpr (kIsUpper) {
      const ints value = upper_halves(sum) >> shift, raised = value > low ? value : low;
      return raised < high ? raised : high;
    } else {
      const longs lowest = longs{} + low[0], highest = longs{} + high[0];
      const auto clipped = [&](longs value) __attribute__((always_inline)) {
        const longs raised = value > lowest ? value : lowest;
        return raised < highest ? raised : highest;
      };
      sum.first = clipped(shifted_down(sum.first, shifts.first));
      sum.second = clipped(shifted_down(sum.second, shifts.second));
      return lower_halves(sum);
    }
  }
};

// One group of sums, [row][kPanel], times its multipliers, and level sums times corrections, added to totals.
SUBTONE_INLINE Totals scaled(const IntegerProduct& product, int64_t at, ints sum, int32_t level_sum) {
  const Totals totals = times(sum, load(product.multiplier + at));
  if (!product.correction) return totals;
  const longs factor = longs{} + level_sum;
  return plus(totals, times(load_totals(product.correction + at), Totals{factor, factor}));
}

struct PanelTotals {
  Totals of[kQuadFrames][kPanel / kWidth];
};

template <bool kIsUpper>
void finish_rows(const IntegerProduct& product, const PanelTotals& totals, int64_t rows, int64_t n0, int64_t width,
                 int32_t* y) {
  for (int64_t n = 0; n < width; n += kWidth) {
    const Ending<kIsUpper> ending(product.finish, n0 + n);
    const Lanes some = lanes(product.outputs - n0 - n);
    for (int64_t r = 0; r < rows; ++r)
      store_lanes(y + r * product.y_width + n0 + n, some, ending(totals.of[r][n / kWidth]));
  }
}

void integer_multiply(const IntegerProduct& product, const uint8_t* levels, const int32_t* level_sums, int64_t frames,
                      Span panels, int32_t* y) {
  const int64_t row_bytes = product.row_bytes();
  const auto finish = product.finish.is_upper ? finish_rows<true> : finish_rows<false>;
  for (int64_t t = 0; t < frames; t += kQuadFrames) {
    const int64_t rows = smaller(kQuadFrames, frames - t);
    alignas(64) SpreadRows spread_rows;
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kPanel, width = smaller(kPanel, product.padded_outputs - n0);
      const int8_t* weights = product.panels + n0 * product.quads * 4;
      alignas(64) int32_t sums[kQuadFrames][kPanel];
      alignas(64) PanelTotals totals;
      for (int64_t g = 0; g < product.groups; ++g) {
        const int64_t at = g * product.padded_outputs + n0, end = product.last_quad(g);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t n = 0; n < width; n += kWidth) store(sums[r] + n, load(product.start + at + n));
        for (int64_t quad = product.first_quad(g), next; quad < end; quad = next) {
          next = spread_rows.reach<false>(levels + t * row_bytes, row_bytes, rows, quad, end, row_bytes / 4);
          add_panel<true>(rows, weights, width, spread_rows, quad, next, sums[0]);
          weights += 4 * width * (next - quad);
        }
        for (int64_t n = 0; n < width; n += kWidth)
          for (int64_t r = 0; r < rows; ++r) {
            const int32_t level_sum = product.correction ? level_sums[(t + r) * product.groups + g] : 0;
            const Totals more = scaled(product, at + n, load(sums[r] + n), level_sum);
            Totals& total = totals.of[r][n / kWidth];
            total = g ? plus(total, more) : more;
          }
      }
      finish(product, totals, rows, n0, width, y + t * product.y_width);
    }
  }
}

// Rows of bytes times bytes of panels: what integer_attention.h is written around.
void byte_dots(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const int8_t* panels, int64_t panel_bytes,
               int64_t quads, int64_t num_panels, const int32_t* start, int32_t* y, int64_t y_stride) {
  for (int64_t r = 0; r < num_rows; r += kQuadFrames) {
    const int64_t together = smaller(kQuadFrames, num_rows - r);
    const AddQuads add_quads = kAddQuads<true>[together - 1];
    for (int64_t q = 0; q < together; ++q)
      for (int64_t j = 0; j < num_panels * kDotLanes; ++j) y[(r + q) * y_stride + j] = start ? start[j] : 0;
    alignas(64) SpreadRows spread_rows;
    for (int64_t quad = 0, next; quad < quads; quad = next) {
      next = spread_rows.reach<false>(rows + r * row_bytes, row_bytes, together, quad, quads, quads);
      for (int64_t panel = 0; panel < num_panels; ++panel)
        add_quads(panels + panel * panel_bytes + quad * 4 * kDotLanes, 4 * kDotLanes, spread_rows, quad, next,
                  y + r * y_stride + panel * kDotLanes, y_stride);
    }
  }
}

// count items; kWidth or fewer of them are body(first item, lanes).
template <typename Body>
SUBTONE_INLINE void each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) body(i, lanes(kWidth));
  if (i < count) body(i, lanes(count - i));
}

template <bool kIsUpper>
void affine_rows(const IntegerAffine& affine, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  each_vector(width, [&](int64_t n, Lanes some) {
    const Ending<kIsUpper> ending(affine.finish, n);
    const ints multiplier = load(affine.multiplier + n);
    for (int64_t t = 0; t < frames; ++t)
      store_lanes(y + t * width + n, some, ending(times(load_lanes(some, x + t * width + n), multiplier)));
  });
}

void integer_affine(const IntegerAffine& affine, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  (affine.finish.is_upper ? affine_rows<true> : affine_rows<false>)(affine, x, frames, width, y);
}

// y[i] = clip(total(i, lanes)) of `pair`.
template <typename Body>
SUBTONE_INLINE void each_total(const IntegerPair& pair, int64_t count, int32_t* y, const Body& total) {
  const auto run = [&](const auto& ending) __attribute__((always_inline)) {
    each_vector(count, [&](int64_t i, Lanes some) { store_lanes(y + i, some, ending(total(i, some))); });
  };
  if (pair.shift >= 32)
    run(Ending<true>(pair));
  else
    run(Ending<false>(pair));
}

void integer_add(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  const ints left = all_ints(pair.left), right = all_ints(pair.right);
  each_total(pair, count, y, [&](int64_t i, Lanes some) {
    return plus(times(load_lanes(some, x + i), left), times(load_lanes(some, other + i), right));
  });
}

void integer_times(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  const ints left = all_ints(pair.left);
  each_total(pair, count, y, [&](int64_t i, Lanes some) {
    const words product = (words)load_lanes(some, x + i) * (words)load_lanes(some, other + i);
    return times((ints)product, left);
  });
}

void rescale(const IntegerPair& pair, const int32_t* x, int64_t count, int32_t* y) {
  const ints left = all_ints(pair.left);
  each_total(pair, count, y, [&](int64_t i, Lanes some) { return times(load_lanes(some, x + i), left); });
}
