// Float kernels that a compiler vectorises from these plain loops: one source for every instruction set but AVX-512.
//
// Included inside the namespace of one instruction set, after kernels.h.

float finished(const Finish& finish, int64_t n, float value) {
  value = value * finish.gain[n];
  value = value + finish.bias[n];
  return !finish.relu || value > 0.0f ? value : 0.0f;
}

void affine(const Finish& finish, const float* x, int64_t frames, int64_t width, float* y) {
  for (int64_t t = 0; t < frames; ++t, x += width, y += width)
    for (int64_t n = 0; n < width; ++n) y[n] = finished(finish, n, x[n]);
}

void add(const float* x, const float* other, int64_t count, bool relu, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i] + other[i];
    y[i] = !relu || value > 0.0f ? value : 0.0f;
  }
}

void relu(const float* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void clip(const float* x, int64_t count, float low, float high, float* y) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i] > low ? x[i] : low;
    y[i] = value < high ? value : high;
  }
}

void transpose(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t d = 0; d < columns; ++d)
    for (int64_t r = 0; r < rows; ++r) to[d * to_stride + r] = from[r * stride + d];
}
