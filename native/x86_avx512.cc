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

void quantize(const Product& product, const float* x, int64_t frames, const Levels& out) {
  constexpr float kSilent = 1.0f / (1ull << 50) / (1ull << 50);  // 2^-100
  const float limit = static_cast<float>(product.limit);
  const floats half = _mm512_set1_ps(0.5f);
  for (int64_t t = 0; t < frames; ++t, x += product.inputs) {
    floats largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < product.inputs; k += kLanes) {
      const floats part = _mm512_maskz_loadu_ps(lanes(product.inputs - k), x + k);
      largest = _mm512_max_ps(_mm512_abs_ps(part), largest);
    }
    const float absmax = _mm512_reduce_max_ps(largest);
    const bool silent = absmax < kSilent;
    const floats inverse = _mm512_set1_ps(silent ? 0.0f : limit / absmax);
    out.scale[t] = silent ? 0.0f : absmax / limit;
    for (int64_t g = 0; g < product.groups; ++g) {
      int8_t* row = out.levels + t * product.row_bytes() + g * product.group_bytes;
      const float* from = x + g * product.group_size;
      ints sum = _mm512_setzero_si512();
      for (int64_t k = 0; k < product.group_size; k += kLanes) {
        const __mmask16 present = lanes(product.group_size - k);
        const floats part = _mm512_maskz_loadu_ps(present, from + k);
        const floats position = _mm512_add_ps(_mm512_mul_ps(part, inverse), half);
        const ints level =
            _mm512_maskz_cvt_roundps_epi32(present, position, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        sum = _mm512_add_epi32(sum, level);
        // Levels and, behind the last of a group, zeros up to its multiple of 4.
        _mm512_mask_cvtsepi32_storeu_epi8(row + k, lanes(product.group_bytes - k), level);
      }
      out.sums[t * product.groups + g] = _mm512_reduce_add_epi32(sum);
    }
  }
}

// sums[f * kVectors + v] += the levels of frame f times 16 outputs of a panel, over `quads` quads of
// inputs. `sums` is read and written once: in between they are 24 variables, which stay in registers.
template <int kFrames, int kVectors>
SUBTONE_INLINE void multiply_group(const uint8_t* weights, const int8_t* levels, int64_t row_bytes, int64_t bytes,
                                   ints* sums) {
  ints sum[kFrames][kVectors];
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<kVectors>(SUBTONE_EACH(v) { sum[f][v] = sums[f * kVectors + v]; }); });
  for (int64_t k = 0; k < bytes; k += 4, weights += 64 * kVectors) {
    ints part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) { part[v] = _mm512_loadu_si512(weights + 64 * v); });
    repeat<kFrames>(SUBTONE_EACH(f) {
      const ints quad = broadcast_quad(levels + f * row_bytes + k);
      repeat<kVectors>(SUBTONE_EACH(v) { sum[f][v] = _mm512_dpbusd_epi32(sum[f][v], part[v], quad); });
    });
  }
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<kVectors>(SUBTONE_EACH(v) { sums[f * kVectors + v] = sum[f][v]; }); });
}

// kFrames frames times one panel of kVectors * 16 outputs.
template <int kFrames, int kVectors>
void multiply_tile(const Product& product, const Levels& in, int64_t t0, int64_t n0, float* y) {
  const int64_t row_bytes = product.row_bytes();
  const uint8_t* weights = product.panels + n0 * row_bytes;
  const int8_t* levels = in.levels + t0 * row_bytes;
  const int32_t* level_sums = in.sums + t0 * product.groups;
  ints sums[kFrames * kVectors];
  floats total[kFrames * kVectors];
  for (floats& part : total) part = _mm512_setzero_ps();

  for (int64_t g = 0; g < product.groups; ++g) {
    for (int f = 0; f < kFrames; ++f) {
      const ints start = _mm512_set1_epi32(-kLevelOffset * level_sums[f * product.groups + g]);
      for (int v = 0; v < kVectors; ++v) sums[f * kVectors + v] = start;
    }
    multiply_group<kFrames, kVectors>(weights, levels, row_bytes, product.group_bytes, sums);
    weights += product.group_bytes * kLanes * kVectors;
    levels += product.group_bytes;
    const int64_t row = g * product.padded_outputs + n0;
    for (int v = 0; v < kVectors; ++v) {
      const floats scale = _mm512_loadu_ps(product.scale + row + kLanes * v);
      for (int f = 0; f < kFrames; ++f) {
        floats sum = _mm512_cvtepi32_ps(sums[f * kVectors + v]);
        if (product.zero_point) {
          const floats level_sum = _mm512_set1_ps(static_cast<float>(level_sums[f * product.groups + g]));
          const floats zero_point = _mm512_loadu_ps(product.zero_point + row + kLanes * v);
          sum = _mm512_sub_ps(sum, _mm512_mul_ps(zero_point, level_sum));
        }
        total[f * kVectors + v] = _mm512_add_ps(total[f * kVectors + v], _mm512_mul_ps(sum, scale));
      }
    }
  }
  for (int f = 0; f < kFrames; ++f) {
    const floats frame_scale = _mm512_set1_ps(in.scale[t0 + f]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = n0 + kLanes * v;
      const floats value = finished(product.finish, n, _mm512_mul_ps(total[f * kVectors + v], frame_scale));
      _mm512_mask_storeu_ps(y + (t0 + f) * product.outputs + n, lanes(product.outputs - n), value);
    }
  }
}

// kFrames output frames times one panel of a dense float convolution.
template <int kFrames, int kVectors>
void dense_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t n0, float* y) {
  const float* weights = conv.panels + n0 * conv.kernel * conv.inputs;
  floats total[kFrames][kVectors];
  repeat<kFrames>(SUBTONE_EACH(f) { repeat<kVectors>(SUBTONE_EACH(v) { total[f][v] = _mm512_setzero_ps(); }); });
  for (int64_t tap = 0; tap < conv.kernel; ++tap) {
    const float* rows[kFrames];
    repeat<kFrames>(SUBTONE_EACH(f) {
      const int64_t row = (t0 + f) * conv.stride + tap * conv.dilation - conv.padding;
      rows[f] = row < 0 || row >= frames_in ? conv.zeros : x + row * conv.inputs;
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
      _mm512_mask_storeu_ps(y + (t0 + f) * conv.outputs + n, lanes(conv.outputs - n),
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

// Adds taps [first, last) to kFrames output frames of 16 channels. `x` is the channels' place in row 0
// and `first_row` the row of tap 0 of the first frame. With kChecked, rows beyond an end of x are left
// out: adding 0 * weight changes no bit of a sum that starts at +0.
template <int kFrames, bool kChecked>
SUBTONE_INLINE void add_taps(const Convolution& conv, const float* x, int64_t frames_in, int64_t first_row,
                             Span taps, const float* weights, __mmask16 mask, floats (&total)[kFrames]) {
  if (taps.first >= taps.last) return;
  int64_t offset[kFrames];  // of each frame's row from the first one's: the loop adds, never multiplies
  repeat<kFrames>(SUBTONE_EACH(f) { offset[f] = f * conv.stride * conv.inputs; });
  const int64_t stride = conv.stride, dilation = conv.dilation, step = dilation * conv.inputs;
  int64_t row = first_row + taps.first * dilation;
  int64_t at = row * conv.inputs;
  for (int64_t tap = taps.first; tap < taps.last; ++tap, row += dilation, at += step) {
    const floats weight = _mm512_loadu_ps(weights + kLanes * tap);
    repeat<kFrames>(SUBTONE_EACH(f) {
      if (kChecked && (row + f * stride < 0 || row + f * stride >= frames_in)) return;
      const floats part = _mm512_maskz_loadu_ps(mask, x + (at + offset[f]));
      total[f] = _mm512_add_ps(total[f], _mm512_mul_ps(part, weight));
    });
  }
}

constexpr int kDepthwiseFrames = 8;

template <int kFrames>
void depthwise_tile(const Convolution& conv, const float* x, int64_t frames_in, int64_t t0, int64_t n0, float* y) {
  const __mmask16 mask = lanes(conv.outputs - n0);
  const float* weights = conv.panels + n0 * conv.kernel;
  const int64_t first_row = t0 * conv.stride - conv.padding;
  const int64_t last_row = first_row + (kFrames - 1) * conv.stride;
  // Taps for which the rows of all frames exist: first_row + tap * dilation >= 0 and
  // last_row + tap * dilation < frames_in.
  Span inner = {0, conv.kernel};
  if (first_row < 0) inner.first = smaller((-first_row + conv.dilation - 1) / conv.dilation, conv.kernel);
  if (last_row + (conv.kernel - 1) * conv.dilation >= frames_in)
    inner.last = last_row >= frames_in ? 0 : (frames_in - 1 - last_row) / conv.dilation + 1;
  inner.last = larger(inner.first, inner.last);
  floats total[kFrames];
  repeat<kFrames>(SUBTONE_EACH(f) { total[f] = _mm512_setzero_ps(); });
  add_taps<kFrames, true>(conv, x + n0, frames_in, first_row, {0, inner.first}, weights, mask, total);
  if (mask == 0xFFFF)
    add_taps<kFrames, false>(conv, x + n0, frames_in, first_row, inner, weights, 0xFFFF, total);
  else
    add_taps<kFrames, false>(conv, x + n0, frames_in, first_row, inner, weights, mask, total);
  add_taps<kFrames, true>(conv, x + n0, frames_in, first_row, {inner.last, conv.kernel}, weights, mask, total);
  repeat<kFrames>(SUBTONE_EACH(f) {
    _mm512_mask_storeu_ps(y + (t0 + f) * conv.outputs + n0, mask, finished(conv.finish, n0, total[f]));
  });
}

using DepthwiseTile = void (*)(const Convolution&, const float*, int64_t, int64_t, int64_t, float*);
constexpr DepthwiseTile kDepthwiseTiles[kDepthwiseFrames] = {
    depthwise_tile<1>, depthwise_tile<2>, depthwise_tile<3>, depthwise_tile<4>,
    depthwise_tile<5>, depthwise_tile<6>, depthwise_tile<7>, depthwise_tile<8>};

void depthwise(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  // The rows that a block of frames reads stay in the second cache while the channels pass by.
  constexpr int64_t kBlockFrames = 128;
  for (int64_t block = frames.first; block < frames.last; block += kBlockFrames) {
    const int64_t last = smaller(block + kBlockFrames, frames.last);
    for (int64_t panel = panels.first; panel < panels.last; ++panel)
      for (int64_t t = block; t < last; t += kDepthwiseFrames)
        kDepthwiseTiles[smaller(kDepthwiseFrames, last - t) - 1](conv, x, frames_in, t, panel * kLanes, y);
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

}  // namespace

const Kernels kernels = {
#define SUBTONE_KERNEL(name, arguments) name,
#include "kernels.inc"
#undef SUBTONE_KERNEL
};

}  // namespace avx512vnni
}  // namespace subtone
