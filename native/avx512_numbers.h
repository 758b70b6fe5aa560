// Eight 64-bit numbers at a time: what integer_functions.h is written in. scalar_numbers.h says what each means.
//
// Included inside the namespace of x86_avx512.cc, after avx512_vectors.h.

struct Numbers {
  ints value;
};

constexpr int64_t kNumbers = 8;

SUBTONE_INLINE __mmask8 first_of(int64_t count) {
  return count >= kNumbers ? 0xFF : static_cast<__mmask8>((1u << (count > 0 ? count : 0)) - 1);
}

SUBTONE_INLINE Numbers all(int64_t value) { return {_mm512_set1_epi64(value)}; }

// `count` of them, 0 in the place of those behind.
SUBTONE_INLINE Numbers load_numbers(const int32_t* from, int64_t count) {
  return {_mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(first_of(count), from))};
}
SUBTONE_INLINE Numbers load_wide(const int64_t* from, int64_t count) {
  return {_mm512_maskz_loadu_epi64(first_of(count), from)};
}
// The lower 32, or 8, bits of `count` of them.
SUBTONE_INLINE void store_numbers(Numbers x, int64_t count, int32_t* to) {
  _mm256_mask_storeu_epi32(to, first_of(count), _mm512_cvtepi64_epi32(x.value));
}
SUBTONE_INLINE void store_bytes(Numbers x, int64_t count, uint8_t* to) {
  _mm_mask_storeu_epi8(to, first_of(count), _mm512_cvtepi64_epi8(x.value));
}
SUBTONE_INLINE Numbers first_numbers(Numbers x, int64_t count) {
  return {_mm512_maskz_mov_epi64(first_of(count), x.value)};
}
SUBTONE_INLINE int64_t sum_of(Numbers x) { return _mm512_reduce_add_epi64(x.value); }
SUBTONE_INLINE int64_t highest_of(Numbers x) { return _mm512_reduce_max_epi64(x.value); }

SUBTONE_INLINE Numbers operator+(Numbers x, Numbers y) { return {_mm512_add_epi64(x.value, y.value)}; }
SUBTONE_INLINE Numbers operator-(Numbers x, Numbers y) { return {_mm512_sub_epi64(x.value, y.value)}; }
SUBTONE_INLINE Numbers operator&(Numbers x, Numbers y) { return {_mm512_and_si512(x.value, y.value)}; }
SUBTONE_INLINE Numbers operator>>(Numbers x, int32_t bits) {
  return {_mm512_sra_epi64(x.value, _mm_cvtsi32_si128(bits))};
}
SUBTONE_INLINE Numbers operator>>(Numbers x, Numbers bits) { return {_mm512_srav_epi64(x.value, bits.value)}; }
SUBTONE_INLINE Numbers operator<<(Numbers x, int32_t bits) {
  return {_mm512_sll_epi64(x.value, _mm_cvtsi32_si128(bits))};
}
SUBTONE_INLINE Numbers lower(Numbers x, Numbers y) { return {_mm512_min_epi64(x.value, y.value)}; }
SUBTONE_INLINE Numbers higher(Numbers x, Numbers y) { return {_mm512_max_epi64(x.value, y.value)}; }
SUBTONE_INLINE Numbers where_negative(Numbers x, Numbers then, Numbers otherwise) {
  const __mmask8 is_negative = _mm512_cmplt_epi64_mask(x.value, _mm512_setzero_si512());
  return {_mm512_mask_blend_epi64(is_negative, otherwise.value, then.value)};
}

SUBTONE_INLINE Numbers product(Numbers x, Numbers y) { return {_mm512_mul_epi32(x.value, y.value)}; }
SUBTONE_INLINE Numbers unsigned_product(Numbers x, Numbers y) { return {_mm512_mul_epu32(x.value, y.value)}; }
