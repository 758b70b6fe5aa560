// The kernels in plain C++: what every machine can run, and the short truth beside the fast ones.
// Loops run over outputs or channels innermost, so that a compiler can vectorise them.
#include "kernels.h"

namespace subtone {
namespace scalar {
namespace {

#include "functions.h"
#include "packed_layout.h"

void decode_lanes(const uint8_t* stored, const float* scale, const float* offset, float* weights) {
  for (int i = 0; i < kLanes; ++i) weights[i] = scale[i] * (static_cast<float>(stored[i]) - offset[i]);
}

#include "plain_codes.h"

int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

#include "plain_rows.h"

void quantize(const Product& product, const float* x, int64_t frames, const Levels& out) {
  constexpr float kSilent = 1.0f / (1ull << 50) / (1ull << 50);  // 2^-100
  const float limit = static_cast<float>(product.limit);
  for (int64_t t = 0; t < frames; ++t, x += product.inputs) {
    float absmax = 0.0f;
    for (int64_t k = 0; k < product.inputs; ++k) {
      const float magnitude = x[k] < 0.0f ? -x[k] : x[k];
      absmax = magnitude > absmax ? magnitude : absmax;
    }
    const bool silent = absmax < kSilent;
    const float inverse = silent ? 0.0f : limit / absmax;
    out.scale[t] = silent ? 0.0f : absmax / limit;
    for (int64_t g = 0; g < product.groups; ++g) {
      int8_t* row = out.levels + t * product.row_bytes() + g * product.group_bytes;
      const float* from = x + g * product.group_size;
      int32_t sum = 0;
      for (int64_t k = 0; k < product.group_size; ++k) {
        float position = from[k] * inverse + 0.5f;  // not contracted: -ffp-contract=off
        position = position > -128.0f ? position : -128.0f;  // finite x never needs these two
        position = position < 127.0f ? position : 127.0f;
        int32_t level = static_cast<int32_t>(position);
        level -= position < static_cast<float>(level);  // floor
        row[k] = static_cast<int8_t>(level);
        sum += level;
      }
      for (int64_t k = product.group_size; k < product.group_bytes; ++k) row[k] = 0;
      out.sums[t * product.groups + g] = sum;
    }
  }
}

// sums[n] += 4 inputs times what is stored of their weights, for the `width` outputs of a panel.
void add_quad(const int8_t* levels, const uint8_t* weights, int64_t width, int32_t* sums) {
  for (int64_t n = 0; n < width; ++n)
    sums[n] += weights[4 * n] * levels[0] + weights[4 * n + 1] * levels[1] + weights[4 * n + 2] * levels[2] +
               weights[4 * n + 3] * levels[3];
}

// The product of one frame and one panel; add_group(g, sums) adds what the quads of group g give.
template <typename AddGroup>
void multiply_panel(const Product& product, const Levels& in, int64_t t, int64_t n0, const AddGroup& add_group,
                    float* y) {
  const int64_t width = smaller(kPanel, product.padded_outputs - n0);
  float total[kPanel] = {};
  for (int64_t g = 0; g < product.groups; ++g) {
    const int32_t level_sum = in.sums[t * product.groups + g];
    int32_t sums[kPanel];
    for (int64_t n = 0; n < width; ++n) sums[n] = -product.level_offset * level_sum;
    add_group(g, sums);
    const int64_t row = product.scales_of(n0, g);
    for (int64_t n = 0; n < width; ++n) {
      float sum = static_cast<float>(sums[n]);
      if (product.zero_point) sum = sum - product.zero_point[row + n] * static_cast<float>(level_sum);
      total[n] = total[n] + sum * product.scale[row + n];
    }
  }
  const int64_t outputs = smaller(width, product.outputs - n0);
  for (int64_t n = 0; n < outputs; ++n)
    y[t * product.outputs + n0 + n] = finished(product.finish, n0 + n, total[n] * in.scale[t]);
}

void multiply(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel, width = smaller(kPanel, product.padded_outputs - n0);
    const int64_t group_bytes = product.group_bytes;
    const uint8_t* weights = product.panels + panel * product.panel_bytes();
    for (int64_t t = 0; t < frames; ++t) {
      const auto add_group = [&](int64_t g, int32_t* sums) {
        const int8_t* levels = in.levels + t * product.row_bytes() + g * group_bytes;
        for (int64_t k = 0; k < group_bytes; k += 4)
          add_quad(levels + k, weights + (g * group_bytes + k) * width, width, sums);
      };
      multiply_panel(product, in, t, n0, add_group, y);
    }
  }
}

void multiply_codes(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  const int64_t blocks = product.group_bytes / kBlockInputs;
  for (int64_t panel = panels.first; panel < panels.last; ++panel)
    for (int64_t t = 0; t < frames; ++t) {
      const auto add_group = [&](int64_t g, int32_t* sums) {
        const int8_t* levels = in.levels + t * product.row_bytes() + g * product.group_bytes;
        uint8_t bytes[64 * kBlockFields];
        for (int64_t block = 0; block < blocks; ++block, levels += kBlockInputs) {
          unpack_stored(product, panel, g * blocks + block, bytes);
          for (int64_t k = 0; k < kBlockInputs; k += 4) add_quad(levels + k, bytes + k * kPanel, kPanel, sums);
        }
      };
      multiply_panel(product, in, t, panel * kPanel, add_group, y);
    }
}

void multiply_indices(const Product& product, const Levels& in, int64_t frames, Span panels, float* y) {
  multiply_codes(product, in, frames, panels, y);  // unpack_stored looks them up
}

void depthwise(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  for (int64_t t = frames.first; t < frames.last; ++t)
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kLanes;
      const int64_t width = smaller(kLanes, conv.outputs - n0);
      const float* weights = conv.panels + n0 * conv.kernel;
      float total[kLanes] = {};
      for (int64_t tap = 0; tap < conv.kernel; ++tap, weights += kLanes) {
        const int64_t row = t * conv.stride + tap * conv.dilation - conv.padding;
        if (row < 0 || row >= frames_in) continue;  // adding 0 * weight changes no bit of a sum from +0
        const float* from = x + row * conv.x_width + n0;
        for (int64_t n = 0; n < width; ++n) total[n] = total[n] + from[n] * weights[n];
      }
      for (int64_t n = 0; n < width; ++n)
        y[t * conv.y_width + n0 + n] = finished(conv.finish, n0 + n, total[n]);
    }
}

void image_depthwise(const Convolution& conv, const float* x, Span frames, Span panels, float* y) {
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kLanes;
    const int64_t width = smaller(kLanes, conv.outputs - n0);
    for (int64_t t = frames.first; t < frames.last; ++t) {
      const float* weights = conv.panels + n0 * conv.planes * conv.kernel;
      float total[kLanes] = {};
      for (int64_t plane = 0; plane < conv.planes; ++plane)
        for (int64_t tap = 0; tap < conv.kernel; ++tap, weights += kLanes) {
          const float* from = x + (t * conv.stride + plane * conv.plane_rows + tap) * conv.x_width + n0;
          for (int64_t n = 0; n < width; ++n) total[n] = total[n] + from[n] * weights[n];
        }
      for (int64_t n = 0; n < width; ++n) y[t * conv.y_width + n0 + n] = finished(conv.finish, n0 + n, total[n]);
    }
  }
}

void dense(const Convolution& conv, const float* x, int64_t frames_in, Span frames, Span panels, float* y) {
  for (int64_t panel = panels.first; panel < panels.last; ++panel) {
    const int64_t n0 = panel * kPanel;
    const int64_t width = smaller(kPanel, conv.padded_outputs - n0);
    for (int64_t t = frames.first; t < frames.last; ++t) {
      const float* weights = conv.panels + n0 * conv.planes * conv.kernel * conv.inputs;
      float total[kPanel] = {};
      for (int64_t plane = 0; plane < conv.planes; ++plane)
        for (int64_t tap = 0; tap < conv.kernel; ++tap) {
          const int64_t row = t * conv.stride + plane * conv.plane_rows + tap * conv.dilation - conv.padding;
          const float* from = row < 0 || row >= frames_in ? conv.zeros : x + row * conv.x_width;
          for (int64_t k = 0; k < conv.inputs; ++k, weights += width)
            for (int64_t n = 0; n < width; ++n) total[n] = total[n] + from[k] * weights[n];
        }
      const int64_t outputs = smaller(width, conv.outputs - n0);
      for (int64_t n = 0; n < outputs; ++n)
        y[t * conv.y_width + n0 + n] = finished(conv.finish, n0 + n, total[n]);
    }
  }
}

void combine(const float* factors, int64_t factor_stride, int64_t num_sums, int64_t count, const float* rows,
             int64_t stride, int64_t width, float* y, int64_t y_stride) {
  for (int64_t q = 0; q < num_sums; ++q, factors += factor_stride, y += y_stride)
    for (int64_t j0 = 0; j0 < width; j0 += kPanel) {
      const int64_t size = smaller(kPanel, width - j0);
      float total[kPanel] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < size; ++j) total[j] = total[j] + factors[i] * rows[i * stride + j0 + j];
      for (int64_t j = 0; j < size; ++j) y[j0 + j] = total[j];
    }
}

#include "rowwise.h"
#include "window.h"
#include "attention.h"

}  // namespace

// In scalar_integers.cc.
#define SUBTONE_INTEGER_KERNEL(name, arguments) void name arguments;
#include "kernels.inc"
#undef SUBTONE_INTEGER_KERNEL

const Kernels kernels = {
#define SUBTONE_KERNEL(name, arguments) name,
#define SUBTONE_INTEGER_KERNEL SUBTONE_KERNEL
#include "kernels.inc"
#undef SUBTONE_INTEGER_KERNEL
#undef SUBTONE_KERNEL
};

}  // namespace scalar
}  // namespace subtone
