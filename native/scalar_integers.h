// The kernels of integer-only programs in plain C++, without a floating-point number.
//
// Included inside the namespace of scalar_integers.cc, after plain_levels.h. Totals are added as unsigned numbers: they
// wrap where a program that nobody has checked lets them overflow, and are those of the definition in every other.

int64_t wrapped_product(int64_t left, int64_t right) {
  return static_cast<int64_t>(static_cast<uint64_t>(left) * static_cast<uint64_t>(right));
}

int64_t wrapped_sum(int64_t left, int64_t right) {
  return static_cast<int64_t>(static_cast<uint64_t>(left) + static_cast<uint64_t>(right));
}

int32_t clipped(int64_t value, int32_t low, int32_t high) {
  return static_cast<int32_t>(value < low ? low : value > high ? high : value);
}

int32_t requantized(const IntegerPair& pair, int64_t total) {
  return clipped(wrapped_sum(total, INT64_C(1) << (pair.shift - 1)) >> pair.shift, pair.low, pair.high);
}

int32_t requantized(const Requantize& finish, int64_t n, int64_t total) {
  return clipped(wrapped_sum(total, finish.offset[n]) >> finish.shift[n], finish.low, finish.high);
}

void integer_multiply(const IntegerProduct& product, const uint8_t* levels, const int32_t* level_sums, int64_t frames,
                      Span panels, int32_t* y) {
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel;
    const int64_t width = smaller(kPanel, product.padded_outputs - n0);
    const int64_t outputs = smaller(width, product.outputs - n0);
    for (int64_t t = 0; t < frames; ++t) {
      const int8_t* weights = product.panels + n0 * product.quads * 4;
      const uint8_t* row = levels + t * product.row_bytes();
      int64_t total[kPanel] = {};
      for (int64_t g = 0; g < product.groups; ++g) {
        const int64_t at = g * product.padded_outputs + n0;
        uint32_t sums[kPanel];
        for (int64_t n = 0; n < width; ++n) sums[n] = static_cast<uint32_t>(product.start[at + n]);
        for (int64_t quad = product.first_quad(g); quad < product.last_quad(g); ++quad, weights += 4 * width) {
          const uint8_t* x = row + 4 * quad;
          for (int64_t n = 0; n < width; ++n)
            sums[n] += static_cast<uint32_t>(weights[4 * n] * x[0] + weights[4 * n + 1] * x[1] +
                                             weights[4 * n + 2] * x[2] + weights[4 * n + 3] * x[3]);
        }
        for (int64_t n = 0; n < outputs; ++n) {
          total[n] = wrapped_sum(total[n], wrapped_product(product.multiplier[at + n], static_cast<int32_t>(sums[n])));
          if (product.correction)
            total[n] = wrapped_sum(total[n],
                                   wrapped_product(product.correction[at + n], level_sums[t * product.groups + g]));
        }
      }
      for (int64_t n = 0; n < outputs; ++n)
        y[t * product.y_width + n0 + n] = requantized(product.finish, n0 + n, total[n]);
    }
  }
}

// `quads`: scratch, which kernels for vectors need.
void integer_depthwise(const IntegerDepthwise& conv, const int32_t* x, int64_t frames_in, Span frames, Span panels,
                       uint8_t*, int32_t* y) {
  const IntegerProduct& product = conv.product;
  for (int64_t t = frames.first; t < frames.last; ++t)
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kLanes;
      const int64_t width = smaller(kLanes, product.outputs - n0);
      const int8_t* weights = product.panels + n0 * product.quads * 4;
      uint32_t sums[kLanes], level_sums[kLanes] = {};
      for (int64_t n = 0; n < width; ++n) sums[n] = static_cast<uint32_t>(product.start[n0 + n]);
      for (int64_t tap = 0; tap < product.columns; ++tap) {
        const int64_t row = t * conv.stride + tap * conv.dilation - conv.padding;
        const bool exists = row >= 0 && row < frames_in;
        for (int64_t n = 0; n < width; ++n) {
          uint8_t level = static_cast<uint8_t>(product.level_offset);
          if (exists) narrow(x + row * product.y_width + n0 + n, 1, product.level_offset, &level);
          sums[n] += static_cast<uint32_t>(weights[tap / 4 * 4 * kLanes + 4 * n + tap % 4] * level);
          level_sums[n] += level;
        }
      }
      for (int64_t n = 0; n < width; ++n) {
        int64_t total = wrapped_product(product.multiplier[n0 + n], static_cast<int32_t>(sums[n]));
        if (product.correction)
          total = wrapped_sum(total, wrapped_product(product.correction[n0 + n], static_cast<int32_t>(level_sums[n])));
        y[t * product.y_width + n0 + n] = requantized(product.finish, n0 + n, total);
      }
    }
}

void integer_image_depthwise(const IntegerImageDepthwise& conv, const uint8_t* levels, int64_t features, Span panels,
                             int32_t* y) {
  const IntegerProduct& product = conv.product;
  for (int64_t f = 0; f < features; ++f, levels += conv.feature_bytes, y += product.y_width)
    for (int64_t n = panels.first * kLanes; n < smaller(panels.last * kLanes, product.outputs); ++n) {
      const int8_t* weights = product.panels + n / kLanes * kLanes * product.quads * 4 + n % kLanes * 4;
      uint32_t sum = static_cast<uint32_t>(product.start[n]), level_sum = 0;
      for (int64_t tap = 0; tap < product.columns; ++tap) {
        const uint8_t level = levels[conv.places[tap] + n];
        sum += static_cast<uint32_t>(weights[tap / 4 * 4 * kLanes + tap % 4] * level);
        level_sum += level;
      }
      int64_t total = wrapped_product(product.multiplier[n], static_cast<int32_t>(sum));
      if (product.correction)
        total = wrapped_sum(total, wrapped_product(product.correction[n], static_cast<int32_t>(level_sum)));
      y[n] = requantized(product.finish, n, total);
    }
}

void integer_affine(const IntegerAffine& affine, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  for (int64_t t = 0; t < frames; ++t, x += width, y += width)
    for (int64_t n = 0; n < width; ++n)
      y[n] = requantized(affine.finish, n, wrapped_product(affine.multiplier[n], x[n]));
}

void integer_add(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  for (int64_t i = 0; i < count; ++i)
    y[i] = requantized(pair, wrapped_sum(wrapped_product(pair.left, x[i]), wrapped_product(pair.right, other[i])));
}

void integer_times(const IntegerPair& pair, const int32_t* x, const int32_t* other, int64_t count, int32_t* y) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t product = static_cast<int32_t>(static_cast<uint32_t>(x[i]) * static_cast<uint32_t>(other[i]));
    y[i] = requantized(pair, wrapped_product(pair.left, product));
  }
}

void rescale(const IntegerPair& pair, const int32_t* x, int64_t count, int32_t* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = requantized(pair, wrapped_product(pair.left, x[i]));
}

// `start` null: from 0.
void byte_dots(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const int8_t* panels, int64_t panel_bytes,
               int64_t quads, int64_t num_panels, const int32_t* start, int32_t* y, int64_t y_stride) {
  for (int64_t r = 0; r < num_rows; ++r, rows += row_bytes, y += y_stride)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      uint32_t sums[kDotLanes];
      for (int64_t j = 0; j < kDotLanes; ++j)
        sums[j] = start ? static_cast<uint32_t>(start[panel * kDotLanes + j]) : 0;
      const int8_t* weights = panels + panel * panel_bytes;
      for (int64_t quad = 0; quad < quads; ++quad, weights += 4 * kDotLanes) {
        const uint8_t* x = rows + 4 * quad;
        for (int64_t j = 0; j < kDotLanes; ++j)
          sums[j] += static_cast<uint32_t>(weights[4 * j] * x[0] + weights[4 * j + 1] * x[1] +
                                           weights[4 * j + 2] * x[2] + weights[4 * j + 3] * x[3]);
      }
      for (int64_t j = 0; j < kDotLanes; ++j) y[panel * kDotLanes + j] = static_cast<int32_t>(sums[j]);
    }
}
