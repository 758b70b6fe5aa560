// What vectors of 64-bit numbers need and no instruction gives: division.
//
// Included inside the namespace of one instruction set, after its Numbers.

// By Newton's rule: from a line that is within 1/17 of 2^46 / y, two steps give it within 1.2e-5 and never more than
// it is, so that the quotient is the one sought or one less, which its remainder tells.
inline Numbers quotient(Numbers x, Numbers y) {
  constexpr int64_t kStart = 1515870810, kSlope = 7710;  // 24 / 17 of 2^30, 8 / 17 of 2^14
  const Numbers one = all(INT64_C(1) << 46);
  Numbers inverse = all(kStart) - unsigned_product(y, all(kSlope));
  for (int step = 0; step < 2; ++step) {
    const Numbers rest = (one - unsigned_product(inverse, y)) >> 16;  // in units of 2^-30
    inverse = inverse + (product(rest, inverse) >> 30);
  }
  const Numbers estimate = unsigned_product(x, inverse) >> 46;
  const Numbers rest = x - unsigned_product(estimate, y);
  return where_negative(rest - y, estimate, estimate + all(1));
}
