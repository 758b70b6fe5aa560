// The kernels with AVX-512 F, BW, VL and VNNI.
//
// Products of floats are rounded before they are added (mul, then add; never a fused instruction), as
// docs/numerics.md asks, so a float kernel can reach one multiply-add of 16 lanes a cycle at best.
// vpdpbusd multiplies u8 by s8, and only the s8 operand may be a 4-byte broadcast from memory: hence
// weights are stored as level + 128 and activations stay signed. It adds four products to an int32
// without saturating in between, so level -128 and 127 * 255 are harmless.
#include <immintrin.h>

#include "kernels.h"

namespace subtone {
namespace avx512vnni {
namespace {

#include "functions.h"

using floats = __m512;
using ints = __m512i;

#define SUBTONE_INLINE inline __attribute__((always_inline))

SUBTONE_INLINE int64_t smaller(int64_t left, int64_t right) {
  return left < right ? left : right;
}

SUBTONE_INLINE int64_t larger(int64_t left, int64_t right) {
  return left > right ? left : right;
}

SUBTONE_INLINE __mmask16 lanes(int64_t count) {
  return count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
}

template <int kValue>
struct Index {
  constexpr operator int() const { return kValue; }
};

// body(Index<0>()), ... body(Index<kCount - 1>()). A loop that the compiler unrolls after it has given
// arrays their place in memory leaves its registers there (GCC 12: a third of the speed); constant
// indices from the start keep an array of vectors in registers.
template <int kCount, int kFirst = 0, typename Body>
SUBTONE_INLINE void repeat(const Body& body) {
  if constexpr (kFirst < kCount) {
    body(Index<kFirst>());
    repeat<kCount, kFirst + 1>(body);
  }
}
#define SUBTONE_EACH(index) [&](auto index) __attribute__((always_inline))

SUBTONE_INLINE floats finished(const Finish& finish, int64_t n, floats value) {
  value = _mm512_mul_ps(value, _mm512_loadu_ps(finish.gain + n));
  value = _mm512_add_ps(value, _mm512_loadu_ps(finish.bias + n));
  // max returns its second operand where both are zeros: -0 becomes +0, as `v > 0 ? v : 0` asks.
  return finish.relu ? _mm512_max_ps(value, _mm512_setzero_ps()) : value;
}

SUBTONE_INLINE ints broadcast_quad(const int8_t* levels) {
  int32_t quad;
  __builtin_memcpy(&quad, levels, sizeof quad);
  return _mm512_set1_epi32(quad);
}

float largest_magnitude(const float* x, int64_t count) {
  floats largest[4];
  repeat<4>(SUBTONE_EACH(v) { largest[v] = _mm512_setzero_ps(); });
  int64_t k = 0;
  for (; k + 4 * kLanes <= count; k += 4 * kLanes)
    repeat<4>(SUBTONE_EACH(v) {
      largest[v] = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + k + kLanes * v)), largest[v]);
    });
  for (; k < count; k += kLanes)
    largest[0] = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(count - k), x + k)), largest[0]);
  return _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
}

SUBTONE_INLINE ints levels_of(floats x, floats inverse) {
  const floats position = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(0.5f));
  return _mm512_cvt_roundps_epi32(position, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

// Levels of one group, zeros up to its multiple of 4, and their sum.
int32_t quantize_group(const float* x, floats inverse, int64_t size, int64_t bytes, int8_t* levels) {
  // Packing four vectors works within 128-bit lanes; this puts their quads of bytes in order again.
  const ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  ints sum = _mm512_setzero_si512();
  int64_t k = 0;
  for (; k + 4 * kLanes <= size; k += 4 * kLanes) {
    ints part[4];
    repeat<4>(SUBTONE_EACH(v) { part[v] = levels_of(_mm512_loadu_ps(x + k + kLanes * v), inverse); });
    const ints low = _mm512_packs_epi32(part[0], part[1]), high = _mm512_packs_epi32(part[2], part[3]);
    const ints packed = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), packed);
    _mm512_storeu_si512(levels + k, packed);
  }
  for (; k < size; k += kLanes) {
    const ints part = levels_of(_mm512_maskz_loadu_ps(lanes(size - k), x + k), inverse);  // absent: 0
    sum = _mm512_add_epi32(sum, part);
    _mm512_mask_cvtsepi32_storeu_epi8(levels + k, lanes(bytes - k), part);
  }
  return _mm512_reduce_add_epi32(sum);
}

void quantize(const Product& product, const float* x, int64_t frames, const Levels& out) {
  constexpr float kSilent = 1.0f / (1ull << 50) / (1ull << 50);  // 2^-100
  const float limit = static_cast<float>(product.limit);
  for (int64_t t = 0; t < frames; ++t, x += product.inputs) {
    const float absmax = largest_magnitude(x, product.inputs);
    const bool silent = absmax < kSilent;
    const floats inverse = _mm512_set1_ps(silent ? 0.0f : limit / absmax);
    out.scale[t] = silent ? 0.0f : absmax / limit;
    for (int64_t g = 0; g < product.groups; ++g)
      out.sums[t * product.groups + g] =
          quantize_group(x + g * product.group_size, inverse, product.group_size, product.group_bytes,
                         out.levels + t * product.row_bytes() + g * product.group_bytes);
  }
}

// total[f][v] += what one group adds for frame f and 16 outputs. The sums are 24 variables that live in
// registers from the first product to the last; the totals of all groups stay in memory, which a call
// that is not inlined makes sure of (GCC 12 would spill the sums instead).
template <int kFrames, int kVectors, bool kHasZeroPoint>
__attribute__((noinline)) void multiply_group(const Product& product, const uint8_t* weights, const int8_t* levels,
                                              const int32_t* level_sums, int64_t row, float* total) {
  const int64_t row_bytes = product.row_bytes(), groups = product.groups;
  ints sums[kFrames][kVectors];
  repeat<kFrames>(SUBTONE_EACH(f) {
    const ints start = _mm512_set1_epi32(-kLevelOffset * level_sums[f * groups]);
    repeat<kVectors>(SUBTONE_EACH(v) { sums[f][v] = start; });
  });
  for (int64_t k = 0; k < product.group_bytes; k += 4, weights += 64 * kVectors) {
    ints part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) { part[v] = _mm512_loadu_si512(weights + 64 * v); });
    repeat<kFrames>(SUBTONE_EACH(f) {
      const ints quad = broadcast_quad(levels + f * row_bytes + k);
      repeat<kVectors>(SUBTONE_EACH(v) { sums[f][v] = _mm512_dpbusd_epi32(sums[f][v], part[v], quad); });
    });
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      const int64_t n = row + kLanes * v;
      // Nothing happens here; but without it GCC 12 keeps two copies of every sum, one of the type that
      // the product returns and one of the type that the loop carries, and spills both.
      asm("" : "+v"(sums[f][v]));
      floats sum = _mm512_cvtepi32_ps(sums[f][v]);
      if constexpr (kHasZeroPoint) {
        const floats level_sum = _mm512_set1_ps(static_cast<float>(level_sums[f * groups]));
        sum = _mm512_sub_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(product.zero_point + n), level_sum));
      }
      float* at = total + kLanes * (f * kVectors + v);
      _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), _mm512_mul_ps(sum, _mm512_loadu_ps(product.scale + n))));
    });
  });
}

// kFrames frames times one panel of kVectors * 16 outputs.
template <int kFrames, int kVectors>
void multiply_tile(const Product& product, const Levels& in, int64_t t0, int64_t n0, float* y) {
  alignas(64) float total[kFrames * kVectors * kLanes] = {};
  const uint8_t* weights = product.panels + n0 * product.row_bytes();
  const int8_t* levels = in.levels + t0 * product.row_bytes();
  const auto add_group =
      product.zero_point ? multiply_group<kFrames, kVectors, true> : multiply_group<kFrames, kVectors, false>;
  for (int64_t g = 0; g < product.groups; ++g) {
    add_group(product, weights, levels, in.sums + t0 * product.groups + g, g * product.padded_outputs + n0, total);
    weights += product.group_bytes * kLanes * kVectors;
    levels += product.group_bytes;
  }
  for (int f = 0; f < kFrames; ++f) {
    const floats frame_scale = _mm512_set1_ps(in.scale[t0 + f]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = n0 + kLanes * v;
      const floats sum = _mm512_load_ps(total + kLanes * (f * kVectors + v));
      const floats value = finished(product.finish, n, _mm512_mul_ps(sum, frame_scale));
      _mm512_mask_storeu_ps(y + (t0 + f) * product.outputs + n, lanes(product.outputs - n), value);
    }
  }
}

// kFrames output frames times one panel of a dense float convolution.
template <int kFrames, int kVectors>
void dense_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t n0, float* y) {
  const float* weights = conv.panels + n0 * conv.planes * conv.kernel * conv.inputs;
  floats total[kFrames][kVectors];
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<kVectors>(SUBTONE_EACH(v) { total[f][v] = _mm512_setzero_ps(); }); });
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
    for (int64_t k = 0; k < conv.inputs; ++k, weights += kLanes * kVectors) {
      floats part[kVectors];
      repeat<kVectors>(SUBTONE_EACH(v) { part[v] = _mm512_loadu_ps(weights + kLanes * v); });
      repeat<kFrames>(SUBTONE_EACH(f) {
        const floats value = _mm512_set1_ps(rows[f][k]);
        repeat<kVectors>(
            SUBTONE_EACH(v) { total[f][v] = _mm512_add_ps(total[f][v], _mm512_mul_ps(value, part[v])); });
      });
    }
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      const int64_t n = n0 + kLanes * v;
      _mm512_mask_storeu_ps(y + (t0 + f) * conv.y_width + n, lanes(conv.outputs - n),
                            finished(conv.finish, n, total[f][v]));
    });
  });
}

using MultiplyTile = void (*)(const Product&, const Levels&, int64_t, int64_t, float*);
using DenseTile = void (*)(const Convolution&, const float*, int64_t, int64_t, int64_t, float*);

// [vectors - 1][frames - 1]
#define SUBTONE_TILES(tile, v) {tile<1, v>, tile<2, v>, tile<3, v>, tile<4, v>, tile<5, v>, tile<6, v>}
constexpr MultiplyTile kMultiplyTiles[4][kTileFrames] = {
    SUBTONE_TILES(multiply_tile, 1), SUBTONE_TILES(multiply_tile, 2), SUBTONE_TILES(multiply_tile, 3),
    SUBTONE_TILES(multiply_tile, 4)};
constexpr DenseTile kDenseTiles[4][kTileFrames] = {
    SUBTONE_TILES(dense_tile, 1), SUBTONE_TILES(dense_tile, 2), SUBTONE_TILES(dense_tile, 3),
    SUBTONE_TILES(dense_tile, 4)};
#undef SUBTONE_TILES

void multiply(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y) {
  // One panel (inputs * 64 bytes) stays in the first cache while the frames of a block pass by.
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel;
    const auto& tiles = kMultiplyTiles[smaller(kPanel, product.padded_outputs - n0) / kLanes - 1];
    for (int64_t t = 0; t < frames; t += kTileFrames)
      tiles[smaller(kTileFrames, frames - t) - 1](product, levels, t, n0, y);
  }
}

void dense(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel;
    const auto& tiles = kDenseTiles[smaller(kPanel, conv.padded_outputs - n0) / kLanes - 1];
    for (int64_t t = frames.first; t < frames.last; t += kTileFrames)
      tiles[smaller(kTileFrames, frames.last - t) - 1](conv, x, frames_in, t, n0, y);
  }
}

SUBTONE_INLINE void add_product(floats x, const float* weights, floats* total) {
  *total = _mm512_add_ps(*total, _mm512_mul_ps(x, _mm512_loadu_ps(weights)));
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
                             int64_t row_step, Span taps, const float* weights, __mmask16 mask,
                             floats (&total)[kFrames]) {
  const int64_t x_width = conv.x_width, dilation = conv.dilation;
  for (int64_t tap = taps.first; tap < taps.last; ++tap) {
    const floats weight = _mm512_loadu_ps(weights + kLanes * tap);
    const int64_t row = first_row + tap * dilation;
    repeat<kFrames>(SUBTONE_EACH(f) {
      const int64_t at = row + f * row_step;
      if (kChecked && (at < 0 || at >= frames_in)) return;
      const floats part = _mm512_maskz_loadu_ps(mask, x + at * x_width);
      total[f] = _mm512_add_ps(total[f], _mm512_mul_ps(part, weight));
    });
  }
}

constexpr int kDepthwiseFrames = 8;

// Any tile: output frames t0, t0 + step, ... of 16 channels or fewer.
template <int kFrames>
void depthwise_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t step,
                    int64_t n0, float* y) {
  const __mmask16 mask = lanes(conv.outputs - n0);
  const float* weights = conv.panels + n0 * conv.kernel;
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
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = _mm512_setzero_ps(); });
  add_taps<kFrames, true>(conv, x + n0, frames_in, first_row, row_step, {some.first, all.first}, weights, mask, total);
  add_taps<kFrames, false>(conv, x + n0, frames_in, first_row, row_step, all, weights, mask, total);
  add_taps<kFrames, true>(conv, x + n0, frames_in, first_row, row_step, {all.last, some.last}, weights, mask, total);
  repeat<kFrames>(SUBTONE_EACH(f) {
    _mm512_mask_storeu_ps(y + (t0 + f * step) * conv.y_width + n0, mask, finished(conv.finish, n0, total[f]));
  });
}

// The tile that most are: stride 1, 16 channels, all rows inside, at least 8 taps. With frames
// `dilation` apart, tap j of frame f reads row f + j: each row is loaded once and meets a run of 8
// weights that lie together. By taps, as above, a row is loaded 8 times, from lines 2 KiB apart that
// crowd the same sets of the first cache: two thirds of the speed.
void depthwise_inner_tile(const Convolution& conv, const float* x, int64_t t0, int64_t n0, float* y) {
  constexpr int kFrames = kDepthwiseFrames;
  const int64_t row_step = conv.dilation * conv.x_width;
  const float* row = x + (t0 - conv.padding) * conv.x_width + n0;
  const float* weights = conv.panels + n0 * conv.kernel;
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = _mm512_setzero_ps(); });
  // Frame f takes part from row f to row f + kernel - 1: first rows for ever more frames, ...
  repeat<kFrames - 1>(SUBTONE_EACH(r) {
    const floats part = _mm512_loadu_ps(row);
    repeat<r + 1>(SUBTONE_EACH(f) { add_product(part, weights + kLanes * (r - f), &total[f]); });
    row += row_step;
  });
  weights += kLanes * (kFrames - 1);
  // ... then rows for all, `weights` being what frame 0 meets, ...
  for (int64_t r = kFrames - 1; r < conv.kernel; ++r, row += row_step, weights += kLanes) {
    const floats part = _mm512_loadu_ps(row);
    repeat<kFrames>(SUBTONE_EACH(f) { add_product(part, weights - kLanes * f, &total[f]); });
  }
  // ... then rows for ever fewer.
  repeat<kFrames - 1>(SUBTONE_EACH(r) {
    const floats part = _mm512_loadu_ps(row);
    repeat<kFrames - 1 - r>(SUBTONE_EACH(i) {
      constexpr int f = r + 1 + i;
      add_product(part, weights - kLanes * (f - r), &total[f]);
    });
    row += row_step;
  });
  repeat<kFrames>(SUBTONE_EACH(f) {
    _mm512_storeu_ps(y + (t0 + f * conv.dilation) * conv.y_width + n0, finished(conv.finish, n0, total[f]));
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
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kLanes;
      const bool has_inner = conv.stride == 1 && conv.kernel >= kDepthwiseFrames && n0 + kLanes <= conv.outputs;
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

// Output frames t0 .. t0 + kFrames - 1 of 16 channels of an image.
template <int kFrames>
void image_tile(const Convolution& conv, const float* x, int64_t t0, int64_t n0, float* y) {
  const __mmask16 mask = lanes(conv.outputs - n0);
  const float* weights = conv.panels + n0 * conv.planes * conv.kernel;
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = _mm512_setzero_ps(); });
  for (int64_t plane = 0; plane < conv.planes; ++plane)
    for (int64_t tap = 0; tap < conv.kernel; ++tap, weights += kLanes) {
      const float* row = x + (t0 * conv.stride + plane * conv.plane_rows + tap) * conv.x_width + n0;
      repeat<kFrames>(SUBTONE_EACH(f) {
        add_product(_mm512_maskz_loadu_ps(mask, row + f * conv.stride * conv.x_width), weights, &total[f]);
      });
    }
  repeat<kFrames>(SUBTONE_EACH(f) {
    _mm512_mask_storeu_ps(y + (t0 + f) * conv.y_width + n0, mask, finished(conv.finish, n0, total[f]));
  });
}

void image_depthwise(const Convolution& conv, const float* x, Span frames, Span panels, float* y) {
  constexpr int kFrames = 4;
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    int64_t t = frames.first;
    for (; t + kFrames <= frames.last; t += kFrames) image_tile<kFrames>(conv, x, t, panel * kLanes, y);
    for (; t < frames.last; ++t) image_tile<1>(conv, x, t, panel * kLanes, y);
  }
}

void affine(const Finish& finish, const float* x, int64_t frames, int64_t width, float* y) {
  for (int64_t t = 0; t < frames; ++t, x += width, y += width)
    for (int64_t n = 0; n < width; n += kLanes) {
      const __mmask16 mask = lanes(width - n);
      _mm512_mask_storeu_ps(y + n, mask, finished(finish, n, _mm512_maskz_loadu_ps(mask, x + n)));
    }
}

void add(const float* x, const float* other, int64_t count, bool relu, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = lanes(count - i);
    floats sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, other + i));
    if (relu) sum = _mm512_max_ps(sum, _mm512_setzero_ps());
    _mm512_mask_storeu_ps(y + i, mask, sum);
  }
}

void relu(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = lanes(count - i);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_max_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_setzero_ps()));
  }
}

// Both give their second operand where the operands are equal or one is NaN, as the contract has it.
void clip(const float* x, int64_t count, float low, float high, float* y) {
  const floats lowest = _mm512_set1_ps(low), highest = _mm512_set1_ps(high);
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 mask = lanes(count - i);
    const floats value = _mm512_max_ps(_mm512_maskz_loadu_ps(mask, x + i), lowest);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_min_ps(value, highest));
  }
}

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

#include "rowwise.h"
#include "attention.h"

}  // namespace

const Kernels kernels = {
#define SUBTONE_KERNEL(name, arguments) name,
#include "kernels.inc"
#undef SUBTONE_KERNEL
};

}  // namespace avx512vnni
}  // namespace subtone
