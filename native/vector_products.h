// Products of floats on integer grids, and what quantizes them, for AVX2 and NEON.
//
// Included inside the namespace of one instruction set, after vector_quads.h.

float largest_magnitude(const float* x, int64_t count) {
  floats largest[4];
  repeat<4>(SUBTONE_EACH(v) { largest[v] = all_floats(0.0f); });
  const auto magnitudes = [](floats value) __attribute__((always_inline)) {
    return (floats)((words)value & (words)all_ints(INT32_MAX));
  };
  int64_t k = 0;
  for (; k + 4 * kWidth <= count; k += 4 * kWidth)
    repeat<4>(SUBTONE_EACH(v) { largest[v] = larger_of(magnitudes(load(x + k + kWidth * v)), largest[v]); });
  for (; k < count; k += kWidth)
    largest[0] = larger_of(magnitudes(load_lanes(lanes(count - k), x + k)), largest[0]);
  const floats all = larger_of(larger_of(largest[0], largest[1]), larger_of(largest[2], largest[3]));
  float result = 0.0f;
  for (int i = 0; i < kWidth; ++i) result = all[i] > result ? all[i] : result;
  return result;
}

// floor(x * inverse + 0.5), within the bytes that a finite x never leaves.
SUBTONE_INLINE ints levels_of(floats x, floats inverse) {
  floats position = x * inverse + all_floats(0.5f);
  position = larger_of(position, all_floats(-128.0f));
  const floats highest = all_floats(127.0f);
  position = (floats)((position < highest) ? (ints)position : (ints)highest);
  const ints level = __builtin_convertvector(position, ints);
  return level + (position < __builtin_convertvector(level, floats));  // true is -1
}

void quantize(const Product& product, const float* x, int64_t frames, const Levels& out) {
  constexpr float kSilent = 1.0f / (1ull << 50) / (1ull << 50);  // 2^-100
  const float limit = static_cast<float>(product.limit);
  for (int64_t t = 0; t < frames; ++t, x += product.inputs) {
    const float absmax = largest_magnitude(x, product.inputs);
    const bool silent = absmax < kSilent;
    const floats inverse = all_floats(silent ? 0.0f : limit / absmax);
    out.scale[t] = silent ? 0.0f : absmax / limit;
    for (int64_t g = 0; g < product.groups; ++g) {
      int8_t* row = out.levels + t * product.row_bytes() + g * product.group_bytes;
      const float* from = x + g * product.group_size;
      ints sums = all_ints(0);
      int64_t k = 0;
      for (; k + kWidth <= product.group_size; k += kWidth) {
        const ints level = levels_of(load(from + k), inverse);
        sums = sums + level;
        for (int i = 0; i < kWidth; ++i) row[k + i] = static_cast<int8_t>(level[i]);
      }
      const ints level = levels_of(load_lanes(lanes(product.group_size - k), from + k), inverse);  // absent: 0
      sums = sums + level;
      for (int i = 0; k < product.group_bytes; ++k, ++i) row[k] = i < kWidth ? static_cast<int8_t>(level[i]) : 0;
      int32_t sum = 0;
      for (int i = 0; i < kWidth; ++i) sum += sums[i];
      out.sums[t * product.groups + g] = sum;
    }
  }
}

// total[row][n] += what one group of weights adds, its sums done.
SUBTONE_INLINE void add_group(const Product& product, const int32_t* sums, int64_t level_sum, int64_t row,
                              int64_t width, float* total) {
  const floats of_levels = all_floats(static_cast<float>(level_sum));
  for (int64_t n = 0; n < width; n += kWidth) {
    floats sum = __builtin_convertvector(load(sums + n), floats);
    if (product.zero_point) sum = sum - load(product.zero_point + row + n) * of_levels;
    store(total + n, load(total + n) + sum * load(product.scale + row + n));
  }
}

constexpr int64_t kUnpackedQuads = 16;  // of packed weights at once: 4 KiB of bytes

// As add_panel, of packed weights.
void add_packed(const Product& product, int64_t panel, const SpreadRows& rows, int64_t num_rows, Span quads,
                int32_t* sums) {
  constexpr int64_t kQuads = kBlockInputs / 4;
  alignas(64) uint8_t bytes[kUnpackedQuads * 4 * kPanel];
  for (int64_t first = quads.first; first < quads.last; first += kUnpackedQuads) {
    const int64_t last = smaller(first + kUnpackedQuads, quads.last);
    for (int64_t quad = first; quad < last; quad += kQuads)
      unpack_stored(product, panel, quad / kQuads, bytes + (quad - first) * 4 * kPanel);
    add_panel<false>(num_rows, bytes, kPanel, rows, first, last, sums);
  }
}

// Few rows after each other meet all panels: rows are spread once, and the weights of a layer stay in the second cache.
template <bool kIsPacked>
void multiply_panels(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  const int64_t group_quads = product.group_bytes / 4, row_quads = product.row_bytes() / 4;
  for (int64_t t = 0; t < frames; t += kQuadFrames) {
    const int64_t rows = smaller(kQuadFrames, frames - t);
    alignas(64) SpreadRows spread_rows;
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kPanel, width = smaller(kPanel, product.padded_outputs - n0);
      const uint8_t* weights = product.panels + panel * product.panel_bytes();
      alignas(64) int32_t sums[kQuadFrames][kPanel];
      alignas(64) float total[kQuadFrames][kPanel] = {};
      for (int64_t g = 0, quad = 0; g < product.groups; ++g) {
        const int32_t* level_sums = in.sums + t * product.groups + g;
        for (int64_t r = 0; r < rows; ++r) {
          const int32_t start = (kTaken - product.level_offset) * level_sums[r * product.groups];
          for (int64_t n = 0; n < width; n += kWidth) store(sums[r] + n, all_ints(start));
        }
        for (int64_t end = quad + group_quads, next; quad < end; quad = next) {
          next = spread_rows.reach<true>(in.levels + t * product.row_bytes(), product.row_bytes(), rows, quad, end,
                                         row_quads);
          if constexpr (kIsPacked)
            add_packed(product, panel, spread_rows, rows, {quad, next}, sums[0]);
          else
            add_panel<false>(rows, weights + 4 * quad * width, width, spread_rows, quad, next, sums[0]);
        }
        for (int64_t r = 0; r < rows; ++r)
          add_group(product, sums[r], level_sums[r * product.groups], product.scales_of(n0, g), width, total[r]);
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < width; n += kWidth) {
          const floats value = load(total[r] + n) * all_floats(in.scale[t + r]);
          store_lanes(y + (t + r) * product.outputs + n0 + n, lanes(product.outputs - n0 - n),
                      finished(product.finish, n0 + n, value));
        }
    }
  }
}

void multiply(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  multiply_panels<false>(product, in, frames, panels, y);
}

void multiply_codes(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  multiply_panels<true>(product, in, frames, panels, y);
}

void multiply_indices(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  multiply_panels<true>(product, in, frames, panels, y);
}
