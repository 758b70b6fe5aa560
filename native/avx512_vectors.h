// Vectors of 16 floats, loops over arrays of them that stay in registers, and what ends a product.
//
// Included inside the namespace of x86_avx512.cc, like the files beside it, and of x86_packed.h.

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
