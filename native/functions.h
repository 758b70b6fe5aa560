// exp, sigmoid, tanh and what is made of them, in the steps of src/subtone/runtime/functions.py: one IEEE
// operation each, so that every compiler and every vector width gives the same bits.
//
// Included inside the namespace of one instruction set (no guard: it is compiled once for each), after kernels.h.

inline float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }

inline float magnitude(float x) { return from_bits(bits_of(x) & 0x7FFFFFFFu); }

inline float with_sign(float value, float of) {
  return from_bits((bits_of(value) & 0x7FFFFFFFu) | (bits_of(of) & 0x80000000u));
}

inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;  // no number becomes -87: the conversion below is always defined
  x = x < 88.0f ? x : 88.0f;
  const float position = x * 1.44269504f + 0.5f;
  int32_t n = static_cast<int32_t>(position);
  n -= position < static_cast<float>(n);  // floor
  const float whole = static_cast<float>(n);
  const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float value = (p * (r * r) + r) + 1.0f;
  return value * from_bits(static_cast<uint32_t>(n + 127) << 23);
}

inline float sigmoid(float x) {
  const float e = exponential(-magnitude(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

inline float tangent(float x) {
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square + -5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square + -3.33332819422e-1f;
  const float near = (p * square) * x + x;
  const float e = exponential(-2.0f * magnitude(x));
  const float far = with_sign((1.0f - e) / (1.0f + e), x);
  const uint32_t is_near = -static_cast<uint32_t>(magnitude(x) < 0.625f);  // both are computed: no jump
  return from_bits((bits_of(near) & is_near) | (bits_of(far) & ~is_near));
}

inline float error_function(float x) {
  const float t = 1.0f / (1.0f + 0.3275911f * magnitude(x));
  float p = 1.061405429f;
  p = p * t + -1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t + -0.284496736f;
  p = p * t + 0.254829592f;
  return with_sign(1.0f - (p * t) * exponential(-(x * x)), x);
}

inline float silu(float x) { return x * sigmoid(x); }

inline float gelu(float x) { return (0.5f * x) * (1.0f + error_function(x * 0.70710678f)); }

inline float gelu_tanh(float x) {
  const float inner = 0.7978845608f * (x + (0.044715f * x) * (x * x));
  return (0.5f * x) * (1.0f + tangent(inner));
}

// Of 16 lanes: i and i + 8 are added, then i + 4, i + 2, i + 1.
inline float folded(float (&lanes)[kLanes]) {
  for (int64_t distance = kLanes / 2; distance; distance /= 2)
    for (int64_t i = 0; i < distance; ++i) lanes[i] = lanes[i] + lanes[i + distance];
  return lanes[0];
}

// Lane i takes values i, i + 16, ... ascending, from +0.
inline float lane_sum(const float* values, int64_t count) {
  float lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] = lanes[i] + values[k + i];
  for (int64_t i = 0; k + i < count; ++i) lanes[i] = lanes[i] + values[k + i];
  return folded(lanes);
}
