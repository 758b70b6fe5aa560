// Vectors of 8 floats or integers, and quads of bytes, with AVX2: what vectors.h and the loops behind it are written
// in.
//
// Included inside the namespace of x86_avx2.cc. Bytes are multiplied as pairs of 16-bit numbers, by vpmaddwd, since
// vpmaddubsw saturates: 2 * 255 * 127 passes 2^15. A product is at most 255 * 128 and a pair of them 2^16 - 2^8, which
// 32 bits hold whatever the bytes are.

#define SUBTONE_INLINE inline __attribute__((always_inline))

constexpr int kWidth = 8;
constexpr int kMostVectors = 2;
constexpr int kVectorBytes = 4 * kWidth;

using floats = __m256;
using ints = int32_t __attribute__((vector_size(kVectorBytes)));
using words = uint32_t __attribute__((vector_size(kVectorBytes)));
using longs = int64_t __attribute__((vector_size(kVectorBytes)));
using long_words = uint64_t __attribute__((vector_size(kVectorBytes)));

struct Lanes {
  __m256i mask;
};

SUBTONE_INLINE Lanes lanes(int64_t count) {
  const int32_t bounded = static_cast<int32_t>(count < 0 ? 0 : count < kWidth ? count : kWidth);
  return {_mm256_cmpgt_epi32(_mm256_set1_epi32(bounded), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
}

SUBTONE_INLINE floats all_floats(float value) { return _mm256_set1_ps(value); }
SUBTONE_INLINE floats floats_of_bytes(const uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
SUBTONE_INLINE floats larger_of(floats x, floats y) { return _mm256_max_ps(x, y); }
SUBTONE_INLINE floats load_lanes(Lanes some, const float* from) { return _mm256_maskload_ps(from, some.mask); }
SUBTONE_INLINE void store_lanes(float* to, Lanes some, floats x) { _mm256_maskstore_ps(to, some.mask, x); }
SUBTONE_INLINE ints load_lanes(Lanes some, const int32_t* from) { return (ints)_mm256_maskload_epi32(from, some.mask); }
SUBTONE_INLINE void store_lanes(int32_t* to, Lanes some, ints x) {
  _mm256_maskstore_epi32(to, some.mask, (__m256i)x);
}

// Quads of bytes as plus_products wants them: of each the bytes 0 and 2, then 1 and 3, as 16-bit numbers.
constexpr int kPlanes = 2;
constexpr int32_t kTaken = 0;  // what an unsigned byte loses on the way

struct Quads {
  ints plane[kPlanes];
};

template <bool kIsSigned>
SUBTONE_INLINE Quads spread(ints quads) {
  const __m256i bytes = (__m256i)quads;
  if constexpr (kIsSigned)
    return {(ints)_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), (ints)_mm256_srai_epi16(bytes, 8)};
  else
    return {(ints)_mm256_and_si256(bytes, _mm256_set1_epi16(255)), (ints)_mm256_srli_epi16(bytes, 8)};
}

// sums + x . weights, quad by quad.
SUBTONE_INLINE ints plus_products(ints sums, const Quads& x, const Quads& weights) {
  const __m256i first = _mm256_madd_epi16((__m256i)x.plane[0], (__m256i)weights.plane[0]);
  const __m256i second = _mm256_madd_epi16((__m256i)x.plane[1], (__m256i)weights.plane[1]);
  return (ints)_mm256_add_epi32(_mm256_add_epi32((__m256i)sums, first), second);
}

// 64-bit numbers of 8 outputs: those of even outputs, then those of odd ones.
struct Totals {
  longs first, second;
};

SUBTONE_INLINE Totals times(ints x, ints y) {
  const __m256i left = (__m256i)x, right = (__m256i)y;
  return {(longs)_mm256_mul_epi32(left, right),
          (longs)_mm256_mul_epi32(_mm256_srli_epi64(left, 32), _mm256_srli_epi64(right, 32))};
}

SUBTONE_INLINE Totals load_totals(const int64_t* from) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 4));
  return {(longs)_mm256_permute4x64_epi64(_mm256_unpacklo_epi64(low, high), 0xD8),
          (longs)_mm256_permute4x64_epi64(_mm256_unpackhi_epi64(low, high), 0xD8)};
}

// Numbers that are not below 0.
SUBTONE_INLINE Totals widened(ints x) {
  const __m256i numbers = (__m256i)x;
  return {(longs)_mm256_blend_epi32(numbers, _mm256_setzero_si256(), 0xAA), (longs)_mm256_srli_epi64(numbers, 32)};
}

SUBTONE_INLINE ints lower_halves(const Totals& totals) {
  return (ints)_mm256_blend_epi32((__m256i)totals.first, _mm256_slli_epi64((__m256i)totals.second, 32), 0xAA);
}

SUBTONE_INLINE ints upper_halves(const Totals& totals) {
  return (ints)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)totals.first, 32), (__m256i)totals.second, 0xAA);
}

// Arithmetic shifts of 64-bit numbers, which AVX2 lacks: of x + 2^63, which is not below 0, and of 2^63, apart.
SUBTONE_INLINE longs shifted_down(longs x, longs bits) {
  const long_words sign = (long_words)_mm256_set1_epi64x(INT64_MIN);
  const __m256i up = _mm256_srlv_epi64((__m256i)((long_words)x ^ sign), (__m256i)bits);
  return (longs)_mm256_sub_epi64(up, _mm256_srlv_epi64((__m256i)sign, (__m256i)bits));
}

SUBTONE_INLINE longs shifted_down(longs x, int32_t bits) {
  const __m256i sign = _mm256_set1_epi64x(INT64_MIN);
  const __m128i count = _mm_cvtsi32_si128(bits);
  return (longs)_mm256_sub_epi64(_mm256_srl_epi64(_mm256_xor_si256((__m256i)x, sign), count),
                                 _mm256_srl_epi64(sign, count));
}

SUBTONE_INLINE longs shifted_up(longs x, int32_t bits) {
  return (longs)_mm256_sll_epi64((__m256i)x, _mm_cvtsi32_si128(bits));
}

// 64-bit numbers of 4 int32 and back, for vector_numbers.h.
SUBTONE_INLINE longs load_longs(const int32_t* from, int64_t count) {
  if (count >= 4) return (longs)_mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return (longs)_mm256_cvtepi32_epi64(_mm_maskload_epi32(from, _mm256_castsi256_si128(lanes(count).mask)));
}

SUBTONE_INLINE void store_longs(longs x, int64_t count, int32_t* to) {
  const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
  const __m128i low = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32((__m256i)x, order));
  if (count >= 4)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low);
  else
    _mm_maskstore_epi32(to, _mm256_castsi256_si128(lanes(count).mask), low);
}

SUBTONE_INLINE longs product_of_lower(longs x, longs y) { return (longs)_mm256_mul_epi32((__m256i)x, (__m256i)y); }
SUBTONE_INLINE longs unsigned_product_of_lower(longs x, longs y) {
  return (longs)_mm256_mul_epu32((__m256i)x, (__m256i)y);
}
