// One 64-bit number at a time: what integer_functions.h is written in, in plain C++. avx512_numbers.h has eight.
//
// Included inside the namespace of scalar.cc. Sums and differences wrap, as those of vectors do: a program that
// nobody has checked gives the same numbers everywhere, and no step of it is undefined.

struct Numbers {
  int64_t value;
};

constexpr int64_t kNumbers = 1;

inline Numbers all(int64_t value) { return {value}; }
inline Numbers load_numbers(const int32_t* from, int64_t) { return {*from}; }
inline Numbers load_wide(const int64_t* from, int64_t) { return {*from}; }
inline void store_numbers(Numbers x, int64_t, int32_t* to) { *to = static_cast<int32_t>(x.value); }
inline void store_bytes(Numbers x, int64_t, uint8_t* to) { *to = static_cast<uint8_t>(x.value); }
inline Numbers first_numbers(Numbers x, int64_t) { return x; }
inline int64_t sum_of(Numbers x) { return x.value; }
inline int64_t highest_of(Numbers x) { return x.value; }

inline Numbers operator+(Numbers x, Numbers y) {
  return {static_cast<int64_t>(static_cast<uint64_t>(x.value) + static_cast<uint64_t>(y.value))};
}
inline Numbers operator-(Numbers x, Numbers y) {
  return {static_cast<int64_t>(static_cast<uint64_t>(x.value) - static_cast<uint64_t>(y.value))};
}
inline Numbers operator&(Numbers x, Numbers y) { return {x.value & y.value}; }
inline Numbers operator>>(Numbers x, int32_t bits) { return {x.value >> bits}; }
inline Numbers operator>>(Numbers x, Numbers bits) { return {x.value >> bits.value}; }
inline Numbers operator<<(Numbers x, int32_t bits) {
  return {static_cast<int64_t>(static_cast<uint64_t>(x.value) << bits)};
}
inline Numbers lower(Numbers x, Numbers y) { return x.value < y.value ? x : y; }
inline Numbers higher(Numbers x, Numbers y) { return x.value > y.value ? x : y; }
inline Numbers where_negative(Numbers x, Numbers then, Numbers otherwise) { return x.value < 0 ? then : otherwise; }

// Of the lower 32 bits of each, signed; the same, not signed.
inline Numbers product(Numbers x, Numbers y) {
  return {static_cast<int64_t>(static_cast<int32_t>(x.value)) * static_cast<int32_t>(y.value)};
}
inline Numbers unsigned_product(Numbers x, Numbers y) {
  const uint64_t left = static_cast<uint32_t>(x.value), right = static_cast<uint32_t>(y.value);
  return {static_cast<int64_t>(left * right)};
}

// floor(x / y) of 0 <= x < 2^32 and 2^16 <= y <= 2^17, the quotient at most 2^15.
inline Numbers quotient(Numbers x, Numbers y) {
  return {static_cast<uint32_t>(x.value) / static_cast<uint32_t>(y.value)};
}
