// Functions, norms and steps of an LSTM of integer-only programs: one source for every instruction set.
//
// Included inside the namespace of one instruction set, after integer_functions.h. Products are of 32 bits and sums
// wrap, so that no level, whatever it is, makes a step undefined.

inline Numbers ended(Numbers total, int32_t shift, int32_t low, int32_t high) {
  return within(round_shift(total, shift), low, high);
}

inline Numbers ended(Numbers value, const IntegerPair& pair) {
  return ended(product(value, all(pair.left)), pair.shift, pair.low, pair.high);
}

// Two at a time: each is one long chain of steps, and one fills the waits of the other (a seventh of the time).
template <typename Body>
inline void each_number(const int32_t* x, int64_t count, int32_t* y, const Body& body) {
  int64_t i = 0;
  for (; i + 2 * kNumbers <= count; i += 2 * kNumbers) {
    const Numbers first = body(load_numbers(x + i, kNumbers));
    const Numbers second = body(load_numbers(x + i + kNumbers, kNumbers));
    store_numbers(first, kNumbers, y + i);
    store_numbers(second, kNumbers, y + i + kNumbers);
  }
  for (; i < count; i += kNumbers) store_numbers(body(load_numbers(x + i, count - i)), count - i, y + i);
}

// The order of subtone_function.
void integer_function(const IntegerFunction& op, const int32_t* x, int64_t count, int32_t* y) {
  const int32_t bits = op.fraction_bits;
  switch (op.function) {
    case 0:
      return each_number(x, count, y, [&](Numbers v) { return ended(sigmoid_of(v, bits), op.finish); });
    case 1:
      return each_number(x, count, y, [&](Numbers v) { return ended(tanh_of(v, bits), op.finish); });
    case 2:
      return each_number(x, count, y, [&](Numbers v) { return ended(silu_of(v, bits), op.finish); });
    case 3:
    case 4:
      return each_number(x, count, y, [&](Numbers v) { return ended(gelu_of(v, bits), op.finish); });
    default:
      return each_number(x, count, y, [&](Numbers v) { return ended(exponential_of(v, bits), op.finish); });
  }
}

void integer_glu(const IntegerFunction& op, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  for (int64_t t = 0; t < frames; ++t, x += 2 * width, y += width)
    for (int64_t n = 0; n < width; n += kNumbers) {
      const Numbers gate = sigmoid_of(load_numbers(x + width + n, width - n), op.fraction_bits);
      const Numbers value = product(load_numbers(x + n, width - n), gate);
      store_numbers(ended(value, op.finish), width - n, y + n);
    }
}

// d = n x - sum x, in 32 bits like the width, and v = n sum(x x) - (sum x)^2 + epsilon: exact for 16 bits.
void integer_norm(const IntegerNorm& op, const int32_t* x, int64_t frames, int64_t width, int32_t* y) {
  constexpr int32_t kNormBits = 22;
  for (int64_t t = 0; t < frames; ++t, x += width, y += width) {
    Numbers sum = all(0), squares = all(0);
    for (int64_t n = 0; n < width; n += kNumbers) {
      const Numbers value = load_numbers(x + n, width - n);
      sum = sum + value;
      squares = squares + product(value, value);
    }
    const uint64_t total = static_cast<uint64_t>(sum_of(sum)), size = static_cast<uint64_t>(width);
    const uint64_t variance =
        size * static_cast<uint64_t>(sum_of(squares)) - total * total + static_cast<uint64_t>(op.epsilon);
    const uint64_t bounded = variance - 1 < (UINT64_C(1) << 62) - 1 ? variance : 1;  // 0 and what overflows: 1
    const int32_t half_shift = (62 - bit_length(bounded)) >> 1;
    const uint64_t inverse = (UINT64_C(1) << 61) / floor_sqrt(bounded << (2 * half_shift));
    const int32_t spare = static_cast<int32_t>(inverse >> 31);  // it is 2^31, where the root is 2^30, or less
    const Numbers factor = all(static_cast<int64_t>(inverse >> spare));
    const int32_t shift = 61 - kNormBits - half_shift - spare;
    for (int64_t n = 0; n < width; n += kNumbers) {
      const Numbers value = load_numbers(x + n, width - n);
      const Numbers centred = product(value, all(width)) - all(static_cast<int64_t>(total));
      const Numbers normalized = round_shift(product(centred, factor), shift);
      const Numbers gained = product(normalized, load_numbers(op.gain + n, width - n));
      const Numbers result = (gained + load_wide(op.offset + n, width - n)) >> op.shift;
      store_numbers(within(result, op.low, op.high), width - n, y + n);
    }
  }
}

// 16 units of an LSTM from `unit` on: gates [gate][units], of_hidden [gate][16].
void integer_cell_step(const int32_t* gates, int32_t fraction_bits, const int32_t* of_hidden, int64_t units,
                       int64_t unit, const int32_t* cell, int32_t limit, int32_t* hidden, int32_t* new_cell) {
  constexpr int32_t kStateBits = 16;
  constexpr int64_t kMost = INT32_MAX;
  const int64_t size = units - unit < kLanes ? units - unit : kLanes;
  for (int64_t i = 0; i < size; i += kNumbers) {
    const int64_t count = size - i;
    Numbers sums[4];
    for (int64_t gate = 0; gate < 4; ++gate)
      sums[gate] = (load_numbers(gates + gate * units + unit + i, count) << (kStateBits - fraction_bits)) +
                   load_numbers(of_hidden + gate * kLanes + i, count);
    const Numbers taken = product(sigmoid_of(sums[0], kStateBits), tanh_of(sums[2], kStateBits));
    const Numbers kept = product(sigmoid_of(sums[1], kStateBits), load_numbers(cell + unit + i, count));
    const Numbers after = within(round_shift(kept + (taken << 1), kProbabilityBits), -kMost, kMost);
    const Numbers given = product(sigmoid_of(sums[3], kStateBits), tanh_of(after, kStateBits));
    store_numbers(ended(product(given, all(limit)), 2 * kProbabilityBits, -limit, limit), count, hidden + unit + i);
    store_numbers(after, count, new_cell + unit + i);
  }
}
