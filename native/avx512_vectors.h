// Vectors of 16 floats or integers: what vectors.h and the loops behind it are written in, with AVX-512.
//
// Included inside the namespace of x86_avx512.cc, and of x86_packed.h.

using floats = __m512;
using ints = __m512i;

#define SUBTONE_INLINE inline __attribute__((always_inline))

constexpr int kWidth = 16;
constexpr int kMostVectors = 4;

using Lanes = __mmask16;

SUBTONE_INLINE Lanes lanes(int64_t count) {
  return count >= kLanes ? 0xFFFF : static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1);
}

SUBTONE_INLINE floats all_floats(float value) { return _mm512_set1_ps(value); }
SUBTONE_INLINE floats larger_of(floats x, floats y) { return _mm512_max_ps(x, y); }
SUBTONE_INLINE floats load_lanes(Lanes some, const float* from) { return _mm512_maskz_loadu_ps(some, from); }
SUBTONE_INLINE void store_lanes(float* to, Lanes some, floats x) { _mm512_mask_storeu_ps(to, some, x); }

SUBTONE_INLINE floats floats_of_bytes(const uint8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

SUBTONE_INLINE ints broadcast_quad(const int8_t* levels) {
  int32_t quad;
  __builtin_memcpy(&quad, levels, sizeof quad);
  return _mm512_set1_epi32(quad);
}
