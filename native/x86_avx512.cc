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

// x86_packed.cc
void multiply_codes(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y);
void multiply_indices(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y);

namespace {

#include "functions.h"

#include "avx512_vectors.h"
#include "vectors.h"

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

// Levels of one group, zeros up to `bytes`, and their sum.
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
    const ints start = _mm512_set1_epi32(-product.level_offset * level_sums[f * groups]);
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
    add_group(product, weights, levels, in.sums + t0 * product.groups + g, product.scales_of(n0, g), total);
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

using MultiplyTile = void (*)(const Product&, const Levels&, int64_t, int64_t, float*);

// [vectors - 1][frames - 1]
#define SUBTONE_TILES(v)                                                                         \
  {multiply_tile<1, v>, multiply_tile<2, v>, multiply_tile<3, v>, multiply_tile<4, v>, multiply_tile<5, v>, \
   multiply_tile<6, v>}
constexpr MultiplyTile kMultiplyTiles[4][kTileFrames] = {SUBTONE_TILES(1), SUBTONE_TILES(2), SUBTONE_TILES(3),
                                                         SUBTONE_TILES(4)};
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

#include "avx512_attention.h"
#include "vector_attention.h"
#include "vector_convolutions.h"
#include "packed_layout.h"
#include "plain_codes.h"
#include "avx512_integers.h"
#include "avx512_integer_convolutions.h"
#include "avx512_integer_attention.h"
#include "avx512_numbers.h"
#include "quotients.h"
#include "rowwise.h"
#include "window.h"
#include "attention.h"
#include "integer_functions.h"
#include "integer_rowwise.h"
#include "integer_attention.h"

}  // namespace

#define SUBTONE_KERNEL(name, arguments) name,
#define SUBTONE_INTEGER_KERNEL SUBTONE_KERNEL

constexpr Kernels kernels = {
#include "kernels.inc"
};

}  // namespace avx512vnni

// The same with what VBMI does better. A constant: code that ran when the library is loaded would be of this instruction
// set on a machine without it.
namespace avx512vbmi {
using namespace avx512vnni;

// x86_packed_vbmi.cc
void multiply_indices(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y);

constexpr Kernels kernels = {
#include "kernels.inc"
};

#undef SUBTONE_INTEGER_KERNEL
#undef SUBTONE_KERNEL

}  // namespace avx512vbmi
}  // namespace subtone
