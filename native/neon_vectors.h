// Vectors of 4 floats or integers, and quads of bytes: what vectors.h and the loops behind it are written in, with NEON
// and its dot products.
//
// Included inside the namespace of arm_neon.cc. sdot multiplies signed bytes alone, so an unsigned byte loses 128 by
// `^ 0x80`, which every sum takes into account; it adds four products to an int32 and saturates nowhere.

#define SUBTONE_INLINE inline __attribute__((always_inline))

constexpr int kWidth = 4;
constexpr int kMostVectors = 4;
constexpr int kVectorBytes = 4 * kWidth;

using floats = float32x4_t;
using ints = int32x4_t;
using words = uint32x4_t;
using longs = int64x2_t;
using long_words = uint64x2_t;

struct Lanes {
  int64_t count;
};

SUBTONE_INLINE Lanes lanes(int64_t count) { return {count}; }

template <typename Vector, typename Item>
SUBTONE_INLINE Vector load_first(Lanes some, const Item* from) {
  Vector value = {};
  if (some.count >= kWidth)
    __builtin_memcpy(&value, from, sizeof value);
  else
    for (int64_t i = 0; i < some.count; ++i) value[i] = from[i];
  return value;
}

template <typename Vector, typename Item>
SUBTONE_INLINE void store_first(Item* to, Lanes some, Vector value) {
  if (some.count >= kWidth)
    __builtin_memcpy(to, &value, sizeof value);
  else
    for (int64_t i = 0; i < some.count; ++i) to[i] = value[i];
}

SUBTONE_INLINE floats all_floats(float value) { return vdupq_n_f32(value); }
SUBTONE_INLINE floats floats_of_bytes(const uint8_t* from) {
  uint32_t four;
  __builtin_memcpy(&four, from, sizeof four);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
// Not fmax: of two zeros, and where x is NaN, the second operand.
SUBTONE_INLINE floats larger_of(floats x, floats y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
SUBTONE_INLINE floats load_lanes(Lanes some, const float* from) { return load_first<floats>(some, from); }
SUBTONE_INLINE void store_lanes(float* to, Lanes some, floats x) { store_first(to, some, x); }
SUBTONE_INLINE ints load_lanes(Lanes some, const int32_t* from) { return load_first<ints>(some, from); }
SUBTONE_INLINE void store_lanes(int32_t* to, Lanes some, ints x) { store_first(to, some, x); }

// Quads of bytes as plus_products wants them.
constexpr int kPlanes = 1;
constexpr int32_t kTaken = 128;  // what an unsigned byte loses on the way

struct Quads {
  ints plane[kPlanes];
};

template <bool kIsSigned>
SUBTONE_INLINE Quads spread(ints quads) {
  if constexpr (kIsSigned)
    return {{quads}};
  else
    return {{vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(quads), vdupq_n_u8(128)))}};
}

// sums + x . weights, quad by quad.
SUBTONE_INLINE ints plus_products(ints sums, const Quads& x, const Quads& weights) {
  return vdotq_s32(sums, vreinterpretq_s8_s32(weights.plane[0]), vreinterpretq_s8_s32(x.plane[0]));
}

// 64-bit numbers of 4 outputs, two and two.
struct Totals {
  longs first, second;
};

SUBTONE_INLINE Totals times(ints x, ints y) {
  return {vmull_s32(vget_low_s32(x), vget_low_s32(y)), vmull_high_s32(x, y)};
}

SUBTONE_INLINE Totals load_totals(const int64_t* from) { return {vld1q_s64(from), vld1q_s64(from + 2)}; }

// Numbers that are not below 0.
SUBTONE_INLINE Totals widened(ints x) { return {vmovl_s32(vget_low_s32(x)), vmovl_high_s32(x)}; }

SUBTONE_INLINE ints lower_halves(const Totals& totals) {
  return vcombine_s32(vmovn_s64(totals.first), vmovn_s64(totals.second));
}

SUBTONE_INLINE ints upper_halves(const Totals& totals) {
  return vcombine_s32(vshrn_n_s64(totals.first, 32), vshrn_n_s64(totals.second, 32));
}

SUBTONE_INLINE longs shifted_down(longs x, longs bits) { return vshlq_s64(x, vnegq_s64(bits)); }
SUBTONE_INLINE longs shifted_down(longs x, int32_t bits) { return vshlq_s64(x, vdupq_n_s64(-bits)); }
SUBTONE_INLINE longs shifted_up(longs x, int32_t bits) { return vshlq_s64(x, vdupq_n_s64(bits)); }

// 64-bit numbers of 2 int32 and back, for vector_numbers.h.
SUBTONE_INLINE longs load_longs(const int32_t* from, int64_t count) {
  if (count >= 2) return vmovl_s32(vld1_s32(from));
  return longs{count > 0 ? from[0] : 0, 0};
}

SUBTONE_INLINE void store_longs(longs x, int64_t count, int32_t* to) {
  if (count >= 2)
    vst1_s32(to, vmovn_s64(x));
  else if (count > 0)
    to[0] = static_cast<int32_t>(x[0]);
}

SUBTONE_INLINE longs product_of_lower(longs x, longs y) { return vmull_s32(vmovn_s64(x), vmovn_s64(y)); }
SUBTONE_INLINE longs unsigned_product_of_lower(longs x, longs y) {
  const uint64x2_t left = vreinterpretq_u64_s64(x), right = vreinterpretq_u64_s64(y);
  return vreinterpretq_s64_u64(vmull_u32(vmovn_u64(left), vmovn_u64(right)));
}
