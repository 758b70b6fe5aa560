// Loops over arrays of vectors that stay in registers, and what ends a product: the same for every instruction set.
//
// Included inside the namespace of one instruction set, after its *_vectors.h, which gives
//   floats, ints                                   vectors of kWidth floats or int32, with the operators of GNU C
//   all_floats(value), larger_of(x, y)             one value in all lanes; x > y ? x : y
//   Lanes, lanes(count)                            the first `count` lanes, none to all
//   floats_of_bytes(from)                          kWidth bytes as floats
//   load_lanes(Lanes, from), store_lanes(to, Lanes, x)  of these alone; others are 0, or stay as they are in memory
//   kMostVectors                                   vectors of sums that a tile of kTileFrames frames has in registers

SUBTONE_INLINE int64_t smaller(int64_t left, int64_t right) {
  return left < right ? left : right;
}

SUBTONE_INLINE int64_t larger(int64_t left, int64_t right) {
  return left > right ? left : right;
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

SUBTONE_INLINE floats load(const float* from) {
  floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

SUBTONE_INLINE void store(float* to, floats value) { __builtin_memcpy(to, &value, sizeof value); }

constexpr int kLeastVectors = kLanes / kWidth;  // of the outputs of one vector of 16

// scale * (stored - offset) of the 16 outputs of a vector.
SUBTONE_INLINE void decode_lanes(const uint8_t* stored, const float* scale, const float* offset, float* weights) {
  repeat<kLeastVectors>(SUBTONE_EACH(v) {
    const floats level = floats_of_bytes(stored + kWidth * v) - load(offset + kWidth * v);
    store(weights + kWidth * v, load(scale + kWidth * v) * level);
  });
}

SUBTONE_INLINE floats finished(const Finish& finish, int64_t n, floats value) {
  value = value * load(finish.gain + n);
  value = value + load(finish.bias + n);
  // larger_of gives its second operand where both are zeros: -0 becomes +0, as `v > 0 ? v : 0` asks.
  return finish.relu ? larger_of(value, all_floats(0.0f)) : value;
}
