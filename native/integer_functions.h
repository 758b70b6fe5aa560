// The functions of docs/numerics.md, section 7, in integers: one source for every instruction set.
//
// `Numbers` are one or more 64-bit numbers (scalar_numbers.h, avx512_numbers.h), so that each line below is a line of
// runtime/fixed_point.py. No floating-point number is here, and no table. Included inside the namespace of one
// instruction set, after its Numbers.

constexpr int32_t kUnitBits = 30, kProbabilityBits = 15, kFractionBits = 16;
constexpr int64_t kOne = INT64_C(1) << kUnitBits;
constexpr int64_t kLog2E = 1549082005;
constexpr int64_t kPowers[4] = {-744163075, 257059888, -57045411, 7277686};
constexpr int64_t kFarthest = 22;  // exp is 0 that far below 0
constexpr int64_t kGeluLinear = 104580, kGeluCubic = 76616618, kGeluFarthest = 8;

inline Numbers round_shift(Numbers x, int32_t shift) { return (x + all(INT64_C(1) << (shift - 1))) >> shift; }

inline Numbers within(Numbers x, int64_t low, int64_t high) { return lower(higher(x, all(low)), all(high)); }

inline Numbers absolute(Numbers x) { return higher(x, all(0) - x); }

// e^-x of x >= 0, in units of 2^-16 and at most 22, in units of 2^-30. Of `k + rs(p * r, 30)` the k joins the rounding
// term, `(p + (1 << (z - 1))) >> z` is `((2 p >> z) + 1) >> 1`, which holds for z = 0 too.
inline Numbers decayed(Numbers x) {
  const Numbers t = product(x, all(kLog2E));
  const Numbers whole = t >> (kFractionBits + kUnitBits);
  const Numbers r = (t >> kFractionBits) & all(kOne - 1);
  Numbers power = all(kPowers[3]);
  for (int degree = 2; degree >= 0; --degree)
    power = (product(power, r) + all(kPowers[degree] * kOne + kOne / 2)) >> kUnitBits;
  power = (product(power, r) + all(kOne * kOne + kOne / 2)) >> kUnitBits;
  return (((power + power) >> whole) + all(1)) >> 1;
}

// min(x, 22) in units of 2^-16.
inline Numbers distance_of(Numbers x, int32_t fraction_bits) {
  return lower(x, all(kFarthest << fraction_bits)) << (kFractionBits - fraction_bits);
}

// e^x of x <= 0 in units of 2^-30.
inline Numbers exponential_of(Numbers x, int32_t fraction_bits) {
  return decayed(distance_of(higher(all(0) - x, all(0)), fraction_bits));
}

// rs(2^30 + e^-x, 14).
inline Numbers one_plus_decayed(Numbers x) {
  return (decayed(x) + all(kOne + (1 << (kUnitBits - 17)))) >> (kUnitBits - 16);
}

inline Numbers sigmoid_of(Numbers x, int32_t fraction_bits) {
  const Numbers below = one_plus_decayed(distance_of(absolute(x), fraction_bits));
  const Numbers value = quotient(all(INT64_C(1) << (16 + kProbabilityBits)) + (below >> 1), below);
  return where_negative(x, all(INT64_C(1) << kProbabilityBits) - value, value);
}

inline Numbers tanh_of(Numbers x, int32_t fraction_bits) {
  const Numbers distance = absolute(x);
  const Numbers below = one_plus_decayed(distance_of(distance + distance, fraction_bits));
  const Numbers value = quotient(((all(1 << 17) - below) << kProbabilityBits) + (below >> 1), below);
  return where_negative(x, all(0) - value, value);
}

inline Numbers silu_of(Numbers x, int32_t fraction_bits) { return product(x, sigmoid_of(x, fraction_bits)); }

inline Numbers gelu_of(Numbers x, int32_t fraction_bits) {
  const int64_t farthest = kGeluFarthest << fraction_bits;
  const Numbers clipped = within(x, -farthest, farthest) << (kFractionBits - fraction_bits);
  const Numbers square = round_shift(product(clipped, clipped), 16);
  const Numbers factor = all(kGeluLinear) + round_shift(product(square, all(kGeluCubic)), kUnitBits);
  const Numbers argument = round_shift(product(clipped, factor), 16);
  return product(x, sigmoid_of(argument, kFractionBits));
}

// Of 0 < value < 2^62, each a few times a row: one number at a time.
inline int32_t bit_length(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

inline uint64_t floor_sqrt(uint64_t value) {
  uint64_t root = UINT64_C(1) << ((bit_length(value) + 1) >> 1);
  for (int step = 0; step < 6; ++step) {
    const uint64_t next = (root + value / root) >> 1;
    root = next < root ? next : root;
  }
  return root;
}
