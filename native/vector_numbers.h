// A few 64-bit numbers at a time: what integer_functions.h is written in. scalar_numbers.h says what each means.
//
// Included inside the namespace of one instruction set, after vectors.h; for AVX2 and NEON.

struct Numbers {
  longs value;
};

constexpr int64_t kNumbers = kWidth / 2;

SUBTONE_INLINE Numbers all(int64_t value) { return {longs{} + value}; }

// `count` of them, 0 in the place of those behind.
SUBTONE_INLINE Numbers load_numbers(const int32_t* from, int64_t count) { return {load_longs(from, count)}; }
SUBTONE_INLINE Numbers load_wide(const int64_t* from, int64_t count) {
  longs value = {};
  if (count >= kNumbers)
    __builtin_memcpy(&value, from, sizeof value);
  else
    for (int64_t i = 0; i < count; ++i) value[i] = from[i];
  return {value};
}
// The lower 32, or 8, bits of `count` of them.
SUBTONE_INLINE void store_numbers(Numbers x, int64_t count, int32_t* to) { store_longs(x.value, count, to); }
SUBTONE_INLINE void store_bytes(Numbers x, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < kNumbers && i < count; ++i) to[i] = static_cast<uint8_t>(x.value[i]);
}
SUBTONE_INLINE Numbers first_numbers(Numbers x, int64_t count) {
  longs places;
  for (int i = 0; i < kNumbers; ++i) places[i] = i;
  return {x.value & (places < longs{} + count)};
}
SUBTONE_INLINE int64_t sum_of(Numbers x) {
  uint64_t sum = 0;
  for (int i = 0; i < kNumbers; ++i) sum += static_cast<uint64_t>(x.value[i]);
  return static_cast<int64_t>(sum);
}
SUBTONE_INLINE int64_t highest_of(Numbers x) {
  int64_t highest = x.value[0];
  for (int i = 1; i < kNumbers; ++i) highest = x.value[i] > highest ? x.value[i] : highest;
  return highest;
}

SUBTONE_INLINE Numbers operator+(Numbers x, Numbers y) {
  return {(longs)((long_words)x.value + (long_words)y.value)};
}
SUBTONE_INLINE Numbers operator-(Numbers x, Numbers y) {
  return {(longs)((long_words)x.value - (long_words)y.value)};
}
SUBTONE_INLINE Numbers operator&(Numbers x, Numbers y) { return {x.value & y.value}; }
SUBTONE_INLINE Numbers operator>>(Numbers x, int32_t bits) { return {shifted_down(x.value, bits)}; }
SUBTONE_INLINE Numbers operator>>(Numbers x, Numbers bits) { return {shifted_down(x.value, bits.value)}; }
SUBTONE_INLINE Numbers operator<<(Numbers x, int32_t bits) { return {shifted_up(x.value, bits)}; }
SUBTONE_INLINE Numbers lower(Numbers x, Numbers y) { return {x.value < y.value ? x.value : y.value}; }
SUBTONE_INLINE Numbers higher(Numbers x, Numbers y) { return {x.value > y.value ? x.value : y.value}; }
SUBTONE_INLINE Numbers where_negative(Numbers x, Numbers then, Numbers otherwise) {
  return {x.value < 0 ? then.value : otherwise.value};
}

SUBTONE_INLINE Numbers product(Numbers x, Numbers y) { return {product_of_lower(x.value, y.value)}; }
SUBTONE_INLINE Numbers unsigned_product(Numbers x, Numbers y) {
  return {unsigned_product_of_lower(x.value, y.value)};
}
