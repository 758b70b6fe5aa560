// Kernels whose plain loops a compiler vectorises well for every instruction set: one source, compiled for each.
//
// Included inside the namespace of one instruction set, after functions.h.

void times(const float* x, const float* other, int64_t count, float* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * other[i];
}

void scale(const float* x, int64_t count, float factor, float* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor;
}

// The order of subtone_function.
void function(int32_t which, const float* x, int64_t count, float* __restrict y) {
  switch (which) {
    case 0:
      for (int64_t i = 0; i < count; ++i) y[i] = sigmoid(x[i]);
      return;
    case 1:
      for (int64_t i = 0; i < count; ++i) y[i] = tangent(x[i]);
      return;
    case 2:
      for (int64_t i = 0; i < count; ++i) y[i] = silu(x[i]);
      return;
    case 3:
      for (int64_t i = 0; i < count; ++i) y[i] = gelu(x[i]);
      return;
    case 4:
      for (int64_t i = 0; i < count; ++i) y[i] = gelu_tanh(x[i]);
      return;
    default:
      for (int64_t i = 0; i < count; ++i) y[i] = exponential(x[i]);
  }
}

void glu(const float* x, int64_t frames, int64_t width, float* __restrict y) {
  for (int64_t t = 0; t < frames; ++t, x += 2 * width, y += width)
    for (int64_t n = 0; n < width; ++n) y[n] = x[n] * sigmoid(x[width + n]);
}

void layer_norm(const Finish& finish, float epsilon, const float* x, int64_t frames, int64_t width,
                float* __restrict y) {
  const float count = static_cast<float>(width);
  const float *gain = finish.gain, *bias = finish.bias;
  for (int64_t t = 0; t < frames; ++t, x += width, y += width) {
    const float mean = lane_sum(x, width) / count;
    float lanes[kLanes] = {};
    int64_t k = 0;
    for (; k + kLanes <= width; k += kLanes)
      for (int64_t i = 0; i < kLanes; ++i) {
        const float centred = x[k + i] - mean;
        lanes[i] = lanes[i] + centred * centred;
      }
    for (int64_t i = 0; k + i < width; ++i) {
      const float centred = x[k + i] - mean;
      lanes[i] = lanes[i] + centred * centred;
    }
    const float variance = folded(lanes) / count;
    const float inverse = 1.0f / __builtin_sqrtf(variance + epsilon);
    for (int64_t n = 0; n < width; ++n) y[n] = ((x[n] - mean) * inverse) * gain[n] + bias[n];
  }
}

// 16 columns at a time, a vector of them in each of 16 lanes of rows.
void channel_norm(const Finish& finish, float epsilon, const float* x, int64_t frames_in, int64_t width, Span frames,
                  Span columns, float* __restrict y) {
  const float count = static_cast<float>(frames_in);
  for (int64_t n0 = columns.first; n0 < columns.last; n0 += kLanes) {
    const int64_t size = columns.last - n0 < kLanes ? columns.last - n0 : kLanes;
    float mean[kLanes] = {}, inverse[kLanes] = {};
    for (int pass = 0; pass < 2; ++pass) {
      float lanes[kLanes][kLanes] = {};  // [row % 16][column]
      for (int64_t t = 0; t < frames_in; ++t) {
        const float* row = x + t * width + n0;
        float(&lane)[kLanes] = lanes[t % kLanes];
        for (int64_t n = 0; n < size; ++n) {
          const float value = row[n] - mean[n];  // the first time less 0, which changes no sum from +0
          lane[n] = lane[n] + (pass ? value * value : value);
        }
      }
      for (int64_t distance = kLanes / 2; distance; distance /= 2)
        for (int64_t i = 0; i < distance; ++i)
          for (int64_t n = 0; n < kLanes; ++n) lanes[i][n] = lanes[i][n] + lanes[i + distance][n];
      for (int64_t n = 0; n < size; ++n) {
        if (pass)
          inverse[n] = 1.0f / __builtin_sqrtf(lanes[0][n] / count + epsilon);
        else
          mean[n] = lanes[0][n] / count;
      }
    }
    for (int64_t t = frames.first; t < frames.last; ++t)
      for (int64_t n = 0; n < size; ++n) {
        const float value = (x[t * width + n0 + n] - mean[n]) * inverse[n];
        y[(t - frames.first) * width + n0 + n] = value * finish.gain[n0 + n] + finish.bias[n0 + n];
      }
  }
}

void quantize_static(const Product& product, const float* x, const Levels& out) {
  const float limit = static_cast<float>(product.limit);
  const float step = 1.0f / limit, inverse = 1.0f / step;
  out.scale[0] = step;
  for (int64_t g = 0; g < product.groups; ++g, x += product.group_size) {
    int8_t* __restrict row = out.levels + g * product.group_bytes;
    int32_t sum = 0;
    for (int64_t k = 0; k < product.group_size; ++k) {
      float position = x[k] * inverse + 0.5f;
      position = position > -limit ? position : -limit;  // -limit and what is below become -limit
      position = position < limit ? position : limit;
      int32_t level = static_cast<int32_t>(position);
      level -= position < static_cast<float>(level);  // floor
      row[k] = static_cast<int8_t>(level);
      sum += level;
    }
    for (int64_t k = product.group_size; k < product.group_bytes; ++k) row[k] = 0;
    out.sums[g] = sum;
  }
}

void cell_step(const float* gates, const float* of_hidden, int64_t units, int64_t unit, const float* cell,
               float* hidden, float* new_cell) {
  const int64_t size = units - unit < kLanes ? units - unit : kLanes;
  float sums[4][kLanes] = {}, before[kLanes] = {}, after[kLanes], given[kLanes];
  for (int64_t gate = 0; gate < 4; ++gate)
    for (int64_t i = 0; i < size; ++i)
      sums[gate][i] = gates[gate * units + unit + i] + of_hidden[gate * kLanes + i];
  for (int64_t i = 0; i < size; ++i) before[i] = cell[unit + i];
  for (int64_t i = 0; i < kLanes; ++i) {
    after[i] = sigmoid(sums[1][i]) * before[i] + sigmoid(sums[0][i]) * tangent(sums[2][i]);
    given[i] = sigmoid(sums[3][i]) * tangent(after[i]);
  }
  for (int64_t i = 0; i < size; ++i) {
    new_cell[unit + i] = after[i];
    hidden[unit + i] = given[i];
  }
}
