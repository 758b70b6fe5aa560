// Float convolutions: dense, depthwise along frames, and depthwise over an image.
//
// One source for every instruction set. Included inside the namespace of each, after vectors.h.

// kFrames output frames times kVectors vectors of a panel of a dense float convolution: the outputs from n0 on, whose
// weights in the panel begin at `weights`, in rows of `width`.
template <int kFrames, int kVectors>
void dense_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t n0,
                const float* weights, int64_t width, float* y) {
  floats total[kFrames][kVectors];
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<kVectors>(SUBTONE_EACH(v) { total[f][v] = all_floats(0.0f); }); });
  int64_t first_row = t0 * conv.stride - conv.padding;  // of the tap
  for (int64_t tap = 0, end = conv.kernel; tap < conv.planes * conv.kernel; ++tap, first_row += conv.dilation) {
    if (tap == end) {
      first_row += conv.plane_rows - conv.kernel * conv.dilation;
      end += conv.kernel;
    }
    const float* rows[kFrames];
    repeat<kFrames>(SUBTONE_EACH(f) {
      const int64_t row = first_row + f * conv.stride;
      rows[f] = row < 0 || row >= frames_in ? conv.zeros : x + row * conv.x_width;
    });
    for (int64_t k = 0; k < conv.inputs; ++k, weights += width) {
      floats part[kVectors];
      repeat<kVectors>(SUBTONE_EACH(v) { part[v] = load(weights + kWidth * v); });
      repeat<kFrames>(SUBTONE_EACH(f) {
        const floats value = all_floats(rows[f][k]);
        repeat<kVectors>(SUBTONE_EACH(v) { total[f][v] = total[f][v] + value * part[v]; });
      });
    }
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      const int64_t n = n0 + kWidth * v;
      store_lanes(y + (t0 + f) * conv.y_width + n, lanes(conv.outputs - n), finished(conv.finish, n, total[f][v]));
    });
  });
}

using DenseTile = void (*)(const Convolution&, const float*, int64_t, int64_t, int64_t, const float*, int64_t, float*);

template <int kVectors>
constexpr DenseTile kDenseTiles[kTileFrames] = {dense_tile<1, kVectors>, dense_tile<2, kVectors>,
                                                dense_tile<3, kVectors>, dense_tile<4, kVectors>,
                                                dense_tile<5, kVectors>, dense_tile<6, kVectors>};

template <int kVectors = kLeastVectors>
const DenseTile* dense_tiles(int64_t vectors) {
  if constexpr (kVectors < kMostVectors)
    if (vectors > kVectors) return dense_tiles<kVectors + kLeastVectors>(vectors);
  return kDenseTiles<kVectors>;
}

void dense(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  constexpr int64_t kMost = kMostVectors * kWidth;
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel, width = smaller(kPanel, conv.padded_outputs - n0);
    const float* weights = conv.panels + n0 * conv.planes * conv.kernel * conv.inputs;
    for (int64_t n = 0; n < width; n += kMost) {
      const DenseTile* tiles = dense_tiles(smaller(kMost, width - n) / kWidth);
      for (int64_t t = frames.first; t < frames.last; t += kTileFrames)
        tiles[smaller(kTileFrames, frames.last - t) - 1](conv, x, frames_in, t, n0 + n, weights + n, width, y);
    }
  }
}

SUBTONE_INLINE void add_product(floats x, const float* weights, floats* total) {
  *total = *total + x * load(weights);
}

// What tap 0 of channels n, n + 1, ... of a panel meets.
SUBTONE_INLINE const float* weights_of(const Convolution& conv, int64_t n) {
  return conv.panels + n / kLanes * kLanes * conv.planes * conv.kernel + n % kLanes;
}

// Number of taps j in 0 .. kernel - 1 with j * dilation < distance.
SUBTONE_INLINE int64_t taps_before(int64_t distance, int64_t dilation, int64_t kernel) {
  return distance <= 0 ? 0 : smaller((distance - 1) / dilation + 1, kernel);
}

// Adds taps [first, last) to kFrames output frames, whose rows are `row_step` apart; `x` is the
// channels' place in row 0 and `first_row` the row of tap 0 of the first frame. With kChecked, rows
// beyond an end of x are left out: adding 0 * weight changes no bit of a sum that starts at +0.
template <int kFrames, bool kChecked>
SUBTONE_INLINE void add_taps(const Convolution& conv, const float* x, int64_t frames_in, int64_t first_row,
                             int64_t row_step, Span taps, const float* weights, Lanes channels,
                             floats (&total)[kFrames]) {
  const int64_t x_width = conv.x_width, dilation = conv.dilation;
  for (int64_t tap = taps.first; tap < taps.last; ++tap) {
    const floats weight = load(weights + kLanes * tap);
    const int64_t row = first_row + tap * dilation;
    repeat<kFrames>(SUBTONE_EACH(f) {
      const int64_t at = row + f * row_step;
      if (kChecked && (at < 0 || at >= frames_in)) return;
      total[f] = total[f] + load_lanes(channels, x + at * x_width) * weight;
    });
  }
}

constexpr int kDepthwiseFrames = 8;

// Any tile: output frames t0, t0 + step, ... of kWidth channels or fewer.
template <int kFrames>
void depthwise_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t step,
                    int64_t n0, float* y) {
  const Lanes channels = lanes(conv.outputs - n0);
  const float* weights = weights_of(conv, n0);
  const int64_t dilation = conv.dilation, row_step = step * conv.stride;
  const int64_t first_row = t0 * conv.stride - conv.padding;
  const int64_t last_row = first_row + (kFrames - 1) * row_step;
  // Taps whose row exists for some frame of the tile, and among them those whose row exists for all.
  const Span some = {taps_before(-last_row, dilation, conv.kernel),
                     taps_before(frames_in - first_row, dilation, conv.kernel)};
  Span all = {taps_before(-first_row, dilation, conv.kernel), taps_before(frames_in - last_row, dilation, conv.kernel)};
  all.first = smaller(all.first, some.last);
  all.last = larger(all.first, all.last);
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = all_floats(0.0f); });
  x += n0;
  add_taps<kFrames, true>(conv, x, frames_in, first_row, row_step, {some.first, all.first}, weights, channels, total);
  add_taps<kFrames, false>(conv, x, frames_in, first_row, row_step, all, weights, channels, total);
  add_taps<kFrames, true>(conv, x, frames_in, first_row, row_step, {all.last, some.last}, weights, channels, total);
  repeat<kFrames>(SUBTONE_EACH(f) {
    store_lanes(y + (t0 + f * step) * conv.y_width + n0, channels, finished(conv.finish, n0, total[f]));
  });
}

// The tile that most are: stride 1, all channels and rows inside, at least 8 taps. With frames
// `dilation` apart, tap j of frame f reads row f + j: each row is loaded once and meets a run of 8
// weights that lie together. By taps, as above, a row is loaded 8 times, from lines 2 KiB apart that
// crowd the same sets of the first cache: two thirds of the speed.
void depthwise_inner_tile(const Convolution& conv, const float* x, int64_t t0, int64_t n0, float* y) {
  constexpr int kFrames = kDepthwiseFrames;
  const int64_t row_step = conv.dilation * conv.x_width;
  const float* row = x + (t0 - conv.padding) * conv.x_width + n0;
  const float* weights = weights_of(conv, n0);
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = all_floats(0.0f); });
  // Frame f takes part from row f to row f + kernel - 1: first rows for ever more frames, ...
  repeat<kFrames - 1>(SUBTONE_EACH(r) {
    const floats part = load(row);
    repeat<r + 1>(SUBTONE_EACH(f) { add_product(part, weights + kLanes * (r - f), &total[f]); });
    row += row_step;
  });
  weights += kLanes * (kFrames - 1);
  // ... then rows for all, `weights` being what frame 0 meets, ...
  for (int64_t r = kFrames - 1; r < conv.kernel; ++r, row += row_step, weights += kLanes) {
    const floats part = load(row);
    repeat<kFrames>(SUBTONE_EACH(f) { add_product(part, weights - kLanes * f, &total[f]); });
  }
  // ... then rows for ever fewer.
  repeat<kFrames - 1>(SUBTONE_EACH(r) {
    const floats part = load(row);
    repeat<kFrames - 1 - r>(SUBTONE_EACH(i) {
      constexpr int f = r + 1 + i;
      add_product(part, weights - kLanes * (f - r), &total[f]);
    });
    row += row_step;
  });
  repeat<kFrames>(SUBTONE_EACH(f) {
    store(y + (t0 + f * conv.dilation) * conv.y_width + n0, finished(conv.finish, n0, total[f]));
  });
}

using DepthwiseTile = void (*)(const Convolution&, const float*, int64_t, int64_t, int64_t, int64_t, float*);
constexpr DepthwiseTile kDepthwiseTiles[kDepthwiseFrames] = {
    depthwise_tile<1>, depthwise_tile<2>, depthwise_tile<3>, depthwise_tile<4>,
    depthwise_tile<5>, depthwise_tile<6>, depthwise_tile<7>, depthwise_tile<8>};

void depthwise(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  const int64_t step = conv.stride == 1 ? conv.dilation : 1;  // between the frames of a tile
  const int64_t tile = kDepthwiseFrames * step, span = (kDepthwiseFrames - 1) * step + (conv.kernel - 1) * conv.dilation;
  // The rows that a block of about 128 frames reads stay in the second cache while the channels pass by.
  const int64_t block_frames = larger(128 / tile, 1) * tile;
  for (int64_t block = frames.first; block < frames.last; block += block_frames) {
    const int64_t last = smaller(block + block_frames, frames.last);
    for (int64_t n0 = panels.first * kLanes; n0 < smaller(panels.last * kLanes, conv.outputs); n0 += kWidth) {
      const bool has_inner = conv.stride == 1 && conv.kernel >= kDepthwiseFrames && n0 + kWidth <= conv.outputs;
      for (int64_t phase = block; phase < smaller(block + step, last); ++phase)
        for (int64_t t = phase; t < last; t += tile) {
          const int64_t count = smaller(kDepthwiseFrames, (last - t + step - 1) / step);
          const bool is_inside = t >= conv.padding && t - conv.padding + span < frames_in;
          if (has_inner && is_inside && count == kDepthwiseFrames)
            depthwise_inner_tile(conv, x, t, n0, y);
          else
            kDepthwiseTiles[count - 1](conv, x, frames_in, t, step, n0, y);
        }
    }
  }
}

// Output frames t0 .. t0 + kFrames - 1 of kWidth channels of an image.
template <int kFrames>
void image_tile(const Convolution& conv, const float* x, int64_t t0, int64_t n0, float* y) {
  const Lanes channels = lanes(conv.outputs - n0);
  const float* weights = weights_of(conv, n0);
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = all_floats(0.0f); });
  for (int64_t plane = 0; plane < conv.planes; ++plane)
    for (int64_t tap = 0; tap < conv.kernel; ++tap, weights += kLanes) {
      const float* row = x + (t0 * conv.stride + plane * conv.plane_rows + tap) * conv.x_width + n0;
      repeat<kFrames>(SUBTONE_EACH(f) {
        add_product(load_lanes(channels, row + f * conv.stride * conv.x_width), weights, &total[f]);
      });
    }
  repeat<kFrames>(SUBTONE_EACH(f) {
    store_lanes(y + (t0 + f) * conv.y_width + n0, channels, finished(conv.finish, n0, total[f]));
  });
}

void image_depthwise(const Convolution& conv, const float* x, Span frames, Span panels, float* y) {
  constexpr int kFrames = 4;
  for (int64_t n0 = panels.first * kLanes; n0 < smaller(panels.last * kLanes, conv.outputs); n0 += kWidth) {
    int64_t t = frames.first;
    for (; t + kFrames <= frames.last; t += kFrames) image_tile<kFrames>(conv, x, t, n0, y);
    for (; t < frames.last; ++t) image_tile<1>(conv, x, t, n0, y);
  }
}
