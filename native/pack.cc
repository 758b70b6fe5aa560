// Every kind of op: which values it reads and writes, which rows of them, and its constants in place.
#include "pack.h"

#include <cmath>

namespace subtone {
namespace {

bool is_size(int64_t value, int64_t lowest) { return value >= lowest && value <= SUBTONE_MAX_SIZE; }

bool has_shape(const subtone_weight& weight, int64_t rows, int64_t columns) {
  return weight.rows == rows && weight.columns == columns;
}

int32_t pack_conv1d(const subtone_op& op, int64_t inputs, int64_t outputs, PackedOp* packed) {
  const int32_t status = pack_taps(op, packed);
  if (status != SUBTONE_OK) return status;
  if (op.groups < 1 || inputs % op.groups || outputs % op.groups) return SUBTONE_SIZE;
  const int64_t depth = inputs / op.groups;
  if (!has_shape(op.weight, outputs, depth * op.kernel)) return SUBTONE_SIZE;
  const std::vector<int64_t> rows = in_order(outputs);
  if (op.weight.activation_bits) {
    const bool is_pointwise = op.kernel == 1 && op.stride == 1 && !op.padding && !op.padding_behind && op.groups == 1;
    packed->kernel = Kernel::kMultiply;
    return is_pointwise ? pack_product(op.weight, rows, op.gain, op.bias, op.relu, &packed->weight) : SUBTONE_SIZE;
  }
  const bool is_depthwise = op.groups == inputs && outputs == inputs;  // one channel: the same either way
  packed->kernel = is_depthwise ? Kernel::kDepthwise : Kernel::kDense;
  return pack_convolution(op.weight, rows, op.groups, depth, 1, op.kernel, is_depthwise, op.gain, op.bias, op.relu,
                          &packed->weight);
}

int32_t pack_conv2d(const subtone_op& op, int64_t width, int64_t width_out, PackedOp* packed) {
  const int32_t status = pack_image(op, width, width_out, packed);
  if (status != SUBTONE_OK) return status;
  const int64_t channels = op.in_channels, outputs = op.weight.rows;
  const bool is_depthwise = op.groups == channels && outputs == channels;
  packed->kernel = is_depthwise ? Kernel::kImageDepthwise : Kernel::kImage;
  const int32_t result =
      pack_convolution(op.weight, in_order(outputs), op.groups, channels / op.groups, op.kernel, op.feature_kernel,
                       is_depthwise, nullptr, op.bias, op.relu, &packed->weight);
  packed->weight.convolution.stride = op.feature_stride;
  packed->weight.convolution.plane_rows = packed->image.padded_features;
  return result;
}

// A recurrent weight (4 D, D): its rows so ordered that a panel holds all four gates of 16 units.
int32_t pack_recurrent(const subtone_weight& weight, int64_t gates, const float* bias, PackedWeight* packed) {
  const int64_t units = gates / 4;
  if (gates % 4 || !has_shape(weight, gates, units)) return SUBTONE_SIZE;
  std::vector<int64_t> rows(static_cast<size_t>(round_up(units, kLanes) * 4));
  for (size_t n = 0; n < rows.size(); ++n) {
    const int64_t at = static_cast<int64_t>(n), unit = at / kPanel * kLanes + at % kLanes;
    rows[n] = unit < units ? at % kPanel / kLanes * units + unit : -1;
  }
  if (weight.activation_bits) return pack_product(weight, rows, nullptr, bias, false, packed);
  if (!weight.floats) return SUBTONE_NULL;  // of codes every step would decode all
  return pack_convolution(weight, rows, 1, units, 1, 1, false, nullptr, bias, false, packed);
}

int32_t pack_attention(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const int32_t status = pack_window(op, widths, op.positions, packed);
  if (status != SUBTONE_OK) return status;
  packed->kernel = Kernel::kAttention;
  const int64_t width = widths[op.output], size = packed->position_rows * width;
  if (size) packed->table = padded_copy(op.positions, 0.0f, size, size);
  if (op.content_bias) packed->bias = padded_copy(op.content_bias, 0.0f, width, width);
  if (op.position_bias) packed->position_bias = padded_copy(op.position_bias, 0.0f, width, width);
  packed->attention.scale = 1.0f / std::sqrt(static_cast<float>(packed->attention.depth));
  packed->attention.content_bias = packed->bias.data();
  packed->attention.position_bias = packed->position_bias.data();
  return SUBTONE_OK;
}

int32_t pack_finish(const subtone_op& op, int64_t width, PackedOp* packed) {
  const int64_t padded = round_up(width, kLanes);
  packed->gain = padded_copy(op.gain, 1.0f, width, padded);
  packed->bias = padded_copy(op.bias, -0.0f, width, padded);
  packed->finish = {packed->gain.data(), packed->bias.data(), op.relu != 0};
  return SUBTONE_OK;
}

int64_t rows_out(const Taps& taps, int64_t rows, bool is_last) {
  if (!rows) return 0;
  const int64_t span = rows + taps.padding + (is_last ? taps.padding_behind : 0) - taps.dilation * (taps.kernel - 1) - 1;
  return span < 0 ? 0 : span / taps.stride + 1;
}

}  // namespace

std::vector<int64_t> in_order(int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n) rows[static_cast<size_t>(n)] = n;
  return rows;
}

// The sizes of a convolution's rows; SUBTONE_SIZE where one is none.
int32_t pack_taps(const subtone_op& op, PackedOp* packed) {
  packed->taps = {op.kernel, op.stride, op.dilation, op.padding, op.padding_behind};
  const bool fits = is_size(op.kernel, 1) && is_size(op.stride, 1) && is_size(op.dilation, 1) &&
                    is_size(op.padding, 0) && is_size(op.padding_behind, 0);
  return fits ? SUBTONE_OK : SUBTONE_SIZE;
}

int32_t pack_window(const subtone_op& op, const int64_t* widths, const void* positions, PackedOp* packed) {
  const int64_t width = widths[op.output];
  for (int32_t value : packed->reads)
    if (value >= 0 && widths[value] != width) return SUBTONE_SIZE;
  if (op.heads < 1 || width % op.heads || !is_size(op.left, -1) || !is_size(op.right, -1)) return SUBTONE_SIZE;
  const bool has_table = op.fourth < 0 && op.position_rows != 0, has_positions = op.fourth >= 0 || has_table;
  if (op.position_rows < 0 || op.position_rows > 2 * SUBTONE_MAX_FRAMES) return SUBTONE_SIZE;
  if (has_positions && (op.left < 0) != (op.right < 0)) return SUBTONE_SIZE;
  if (has_table && op.left >= 0 && op.position_rows != op.left + op.right + 1) return SUBTONE_SIZE;
  if (has_table && !positions) return SUBTONE_NULL;
  packed->position_rows = has_table ? op.position_rows : 0;
  Attention& attention = packed->attention;
  attention.heads = op.heads;
  attention.depth = width / op.heads;
  attention.width = width;
  attention.left = op.left;
  attention.right = op.right;
  return SUBTONE_OK;
}

int32_t pack_image(const subtone_op& op, int64_t width, int64_t width_out, PackedOp* packed) {
  const int32_t status = pack_taps(op, packed);
  if (status != SUBTONE_OK) return status;
  if (op.dilation != 1 || !is_size(op.in_channels, 1) || width % op.in_channels) return SUBTONE_SIZE;
  if (!is_size(op.feature_kernel, 1) || !is_size(op.feature_stride, 1) || !is_size(op.feature_padding, 0) ||
      !is_size(op.feature_padding_behind, 0))
    return SUBTONE_SIZE;
  const int64_t channels = op.in_channels, features = width / channels, outputs = op.weight.rows;
  if (!is_size(outputs, 1) || (op.groups != 1 && op.groups != channels) || outputs % op.groups) return SUBTONE_SIZE;
  const int64_t span = features + op.feature_padding + op.feature_padding_behind - op.feature_kernel;
  if (span < 0) return SUBTONE_SIZE;
  const int64_t features_out = span / op.feature_stride + 1;
  if (outputs * features_out != width_out) return SUBTONE_SIZE;
  const int64_t depth = channels / op.groups, padded = (features_out - 1) * op.feature_stride + op.feature_kernel;
  int64_t columns = 0, image_size = 0;
  if (__builtin_mul_overflow(depth * op.kernel, op.feature_kernel, &columns) ||
      __builtin_mul_overflow(padded * channels, op.kernel, &image_size))
    return SUBTONE_SIZE;
  if (!has_shape(op.weight, outputs, columns)) return SUBTONE_SIZE;
  packed->image = {channels,          features, features_out,      op.feature_padding,
                   padded,            outputs,  op.feature_kernel, op.feature_stride};
  return SUBTONE_OK;
}

int64_t PackedOp::end(const int64_t* rows, bool is_last) const {
  if (is_convolution()) return rows_out(taps, rows[0], is_last);
  switch (kernel) {
    case Kernel::kStack:
      return rows[0] / count;
    case Kernel::kSinusoids:
    case Kernel::kIntegerSinusoids:
      return is_last && rows[0] ? 2 * rows[0] - 1 : 0;
    case Kernel::kChannelNorm:
      return is_last ? rows[0] : 0;
    default:
      break;
  }
  int64_t least = rows[0];
  for (int which = 1; which < 3; ++which)  // all but an attention's positions
    if (reads[which] >= 0 && rows[which] < least) least = rows[which];
  if (!is_attention() || is_last) return least;
  return attention.right < 0 || least < attention.right ? 0 : least - attention.right;
}

int64_t PackedOp::first_needed(int which, int64_t row) const {
  if (is_convolution()) return row * taps.stride - taps.padding;
  switch (kernel) {
    case Kernel::kStack:
      return row * count;
    case Kernel::kChannelNorm:
    case Kernel::kSinusoids:
    case Kernel::kIntegerSinusoids:
      return 0;
    case Kernel::kAttention:
    case Kernel::kIntegerAttention:
      if (which == 0) return row;
      return which == 3 || attention.left < 0 ? 0 : row - attention.left;
    default:
      return row;
  }
}

int32_t pack_values(const subtone_op& op, PackedOp* packed) {
  int count = 1;
  switch (op.kind) {
    case SUBTONE_ADD:
    case SUBTONE_MULTIPLY:
    case SUBTONE_CONCAT:
    case SUBTONE_INTEGER_ADD:
    case SUBTONE_INTEGER_MULTIPLY:
      count = 2;
      break;
    case SUBTONE_SWITCHED_LSTM:
      count = 3;
      break;
    case SUBTONE_ATTENTION:
    case SUBTONE_INTEGER_ATTENTION:
      count = op.fourth < 0 ? 3 : 4;
      break;
    default:
      if (op.kind < SUBTONE_CONV1D || op.kind > SUBTONE_INTEGER_LSTM) return SUBTONE_VALUE;
  }
  const int32_t reads[kMaxReads] = {op.input, op.other, op.third, op.fourth};
  for (int which = 0; which < kMaxReads; ++which) packed->reads[which] = which < count ? reads[which] : -1;
  for (int which = 0; which < count; ++which)
    if (reads[which] < 0) return SUBTONE_VALUE;
  const bool has_cell =
      op.kind == SUBTONE_LSTM || op.kind == SUBTONE_SWITCHED_LSTM || op.kind == SUBTONE_INTEGER_LSTM;
  packed->writes[0] = op.output;
  packed->writes[1] = has_cell ? op.cell : -1;
  return op.output < 0 || (has_cell && (op.cell < 0 || op.cell == op.output)) ? SUBTONE_VALUE : SUBTONE_OK;
}

int32_t pack(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const int64_t inputs = widths[op.input], outputs = widths[op.output];
  packed->relu = op.relu != 0;
  packed->low = op.low;
  packed->high = op.high;
  const auto same_widths = [&](Kernel kernel) {
    packed->kernel = kernel;
    const int32_t other = packed->reads[1];
    return inputs == outputs && (other < 0 || widths[other] == inputs) ? SUBTONE_OK : SUBTONE_SIZE;
  };
  int32_t status = SUBTONE_OK;
  switch (op.kind) {
    case SUBTONE_CONV1D:
      return pack_conv1d(op, inputs, outputs, packed);
    case SUBTONE_CONV2D:
      return pack_conv2d(op, inputs, outputs, packed);
    case SUBTONE_STACK:
      packed->kernel = Kernel::kStack;
      packed->count = op.count;
      return is_size(op.count, 1) && inputs * op.count == outputs ? SUBTONE_OK : SUBTONE_SIZE;
    case SUBTONE_AFFINE:
      if ((status = same_widths(Kernel::kAffine)) != SUBTONE_OK) return status;
      return op.gain && op.bias ? pack_finish(op, outputs, packed) : SUBTONE_NULL;
    case SUBTONE_ADD:
      return same_widths(Kernel::kAdd);
    case SUBTONE_MULTIPLY:
      return same_widths(Kernel::kTimes);
    case SUBTONE_SCALE:
      return std::isfinite(op.low) ? same_widths(Kernel::kScale) : SUBTONE_RANGE;
    case SUBTONE_RELU:
      return same_widths(Kernel::kRelu);
    case SUBTONE_CLIP:
      if (!std::isfinite(op.low) || !std::isfinite(op.high) || !(op.low < op.high)) return SUBTONE_RANGE;
      return same_widths(Kernel::kClip);
    case SUBTONE_FUNCTION_OP:
      packed->function = op.function;
      if (op.function < SUBTONE_SIGMOID || op.function > SUBTONE_EXP) return SUBTONE_VALUE;
      return same_widths(Kernel::kFunction);
    case SUBTONE_GLU:
      packed->kernel = Kernel::kGlu;
      return inputs == 2 * outputs ? SUBTONE_OK : SUBTONE_SIZE;
    case SUBTONE_LAYER_NORM:
    case SUBTONE_CHANNEL_NORM:
      if (!std::isfinite(op.low) || !(op.low > 0.0f)) return SUBTONE_RANGE;
      status = same_widths(op.kind == SUBTONE_LAYER_NORM ? Kernel::kLayerNorm : Kernel::kChannelNorm);
      return status == SUBTONE_OK ? pack_finish(op, outputs, packed) : status;
    case SUBTONE_CONCAT:
      packed->kernel = Kernel::kConcat;
      return inputs + widths[op.other] == outputs ? SUBTONE_OK : SUBTONE_SIZE;
    case SUBTONE_COLUMNS:
      packed->kernel = Kernel::kColumns;
      packed->first = op.first;
      return is_size(op.first, 0) && op.first + outputs <= inputs ? SUBTONE_OK : SUBTONE_SIZE;
    case SUBTONE_EMBEDDING:
      packed->kernel = Kernel::kEmbedding;
      if (inputs != 1 || !is_size(op.weight.rows, 1) || op.weight.columns != outputs) return SUBTONE_SIZE;
      packed->count = op.weight.rows;
      if (!op.weight.floats)
        return pack_coded(op.weight, in_order(op.weight.rows), 1, op.weight.rows, 1, &packed->coded_table);
      packed->table = padded_copy(op.weight.floats, 0.0f, op.weight.rows * outputs, op.weight.rows * outputs);
      return SUBTONE_OK;
    case SUBTONE_ATTENTION:
      return pack_attention(op, widths, packed);
    case SUBTONE_SINUSOIDS:
      packed->kernel = Kernel::kSinusoids;
      if (outputs % 2) return SUBTONE_SIZE;
      if (!op.rotation) return SUBTONE_NULL;
      packed->rotation = Buffer<double>(outputs);
      for (int64_t i = 0; i < outputs; ++i) packed->rotation[i] = op.rotation[i];
      return SUBTONE_OK;
    case SUBTONE_LSTM:
    case SUBTONE_SWITCHED_LSTM:
      packed->kernel = op.kind == SUBTONE_LSTM ? Kernel::kLstm : Kernel::kSwitchedLstm;
      if (inputs != 4 * outputs || widths[op.cell] != outputs) return SUBTONE_SIZE;
      packed->zeros = Buffer<float>(outputs);
      status = pack_recurrent(op.weight, inputs, op.bias, &packed->weight);
      if (status != SUBTONE_OK || op.kind == SUBTONE_LSTM) return status;
      if (widths[op.other] > inputs || widths[op.third] != 1) return SUBTONE_SIZE;
      return pack_recurrent(op.small_weight, widths[op.other], op.small_bias, &packed->small);
    default:
      return pack_integers(op, widths, packed);
  }
}

}  // namespace subtone
