// Products, sums and affines of an integer-only program in the layout of integers.h. No floating-point number here
// either.
#include "pack.h"

namespace subtone {
namespace {

constexpr int64_t kMaxDepthwiseRows = 1 << 14;  // of bytes in one block: 1 MiB

// Shifts of `count` outputs in parts that are padded by themselves, and `offset` with their rounding terms.
int32_t pack_requantize(const subtone_integers& from, int64_t count, int64_t parts, PackedIntegers* packed,
                        Requantize* finish) {
  if (!from.shifts) return SUBTONE_NULL;
  const int64_t outputs = count / parts, padded = round_up(outputs, kLanes);
  packed->shift = Buffer<int32_t>(parts * padded);
  packed->offset = Buffer<int64_t>(parts * padded);
  for (int64_t i = 0; i < parts * padded; ++i) packed->shift[i] = 32;
  bool is_upper = true;
  for (int64_t n = 0; n < count; ++n) {
    const int32_t shift = from.shifts[n];
    if (!is_shift(shift)) return SUBTONE_RANGE;
    const int64_t at = n / outputs * padded + n % outputs;
    packed->shift[at] = shift;
    packed->offset[at] = INT64_C(1) << (shift - 1);
    is_upper = is_upper && shift >= 32;
  }
  *finish = {packed->offset.data(), packed->shift.data(), from.low, from.high, is_upper};
  return SUBTONE_OK;
}

// What `from` and its weight need of each other; `product` gets what all of its groups of rows share.
int32_t check_product(const subtone_op& op, IntegerProduct* product) {
  const subtone_integers& from = op.integers;
  if (op.weight.columns < 1 || op.weight.columns > SUBTONE_MAX_COLUMNS) return SUBTONE_SIZE;
  if (from.groups < 1 || op.weight.columns % from.groups) return SUBTONE_SIZE;
  if (!op.weight.codes || !op.weight.levels || !from.multiplier) return SUBTONE_NULL;
  product->columns = op.weight.columns;
  product->groups = from.groups;
  product->group_size = product->columns / product->groups;
  product->quads = 0;
  for (int64_t g = 0; g < product->groups; ++g) product->quads += product->last_quad(g) - product->first_quad(g);
  product->level_offset = from.is_signed ? 128 : 0;
  return SUBTONE_OK;
}

// Output n of `product`, row `row` of the weight: its weights, in panels of `panel_width`, and its integers.
void pack_row(const subtone_op& op, const IntegerProduct& product, int64_t row, int64_t n, int64_t panel_width,
              int8_t* panels, int32_t* start, int32_t* multiplier, int64_t* correction, int64_t* offset) {
  const subtone_integers& from = op.integers;
  const int64_t panel = n / panel_width * panel_width, rest = product.padded_outputs - panel;
  const int64_t width = rest < panel_width ? rest : panel_width;
  int8_t* to = panels + panel * product.quads * 4 + 4 * (n - panel);
  const uint8_t* codes = op.weight.codes + row * product.columns;
  const int32_t* multipliers = from.multiplier + row * product.groups;
  for (int64_t g = 0; g < product.groups; ++g) {
    int32_t sum = 0;
    for (int64_t k = g * product.group_size; k < (g + 1) * product.group_size; ++k) {
      const int8_t level = op.weight.levels[codes[k]];
      to[(k / 4 - product.first_quad(g)) * 4 * width + k % 4] = level;
      sum += level;
    }
    to += (product.last_quad(g) - product.first_quad(g)) * 4 * width;
    const int64_t at = g * product.padded_outputs + n;
    start[at] = -product.level_offset * sum;
    multiplier[at] = multipliers[g];
    if (!from.correction) continue;
    correction[at] = from.correction[row * product.groups + g];
    offset[n] = wrapped_sum(offset[n], wrapped_product(correction[at], -product.level_offset * product.group_size));
  }
  if (from.offset) offset[n] = wrapped_sum(offset[n], from.offset[row]);
}

}  // namespace

int32_t pack_products(const subtone_op& op, int64_t parts, int64_t panel_width, PackedIntegers* packed) {
  IntegerProduct product = {};
  int32_t status = check_product(op, &product);
  if (status != SUBTONE_OK) return status;
  product.outputs = op.weight.rows / parts;
  product.padded_outputs = round_up(product.outputs, kLanes);
  product.y_width = op.weight.rows;
  status = pack_requantize(op.integers, op.weight.rows, parts, packed, &product.finish);
  if (status != SUBTONE_OK) return status;
  const int64_t padded = product.padded_outputs, values = product.groups * padded, bytes = padded * product.quads * 4;
  packed->panels = Buffer<int8_t>(parts * bytes);
  packed->start = Buffer<int32_t>(parts * values);
  packed->multiplier = Buffer<int32_t>(parts * values);
  if (op.integers.correction) packed->correction = Buffer<int64_t>(parts * values);
  for (int64_t part = 0; part < parts; ++part) {
    product.panels = packed->panels.data() + part * bytes;
    product.start = packed->start.data() + part * values;
    product.multiplier = packed->multiplier.data() + part * values;
    product.correction = op.integers.correction ? packed->correction.data() + part * values : nullptr;
    product.finish.offset = packed->offset.data() + part * padded;
    product.finish.shift = packed->shift.data() + part * padded;
    for (int64_t n = 0; n < product.outputs; ++n)
      pack_row(op, product, part * product.outputs + n, n, panel_width, packed->panels.data() + part * bytes,
               packed->start.data() + part * values, packed->multiplier.data() + part * values,
               packed->correction.data() + (op.integers.correction ? part * values : 0),
               packed->offset.data() + part * padded);
    packed->products.push_back(product);
  }
  return SUBTONE_OK;
}

namespace {

int32_t pack_integer_conv1d(const subtone_op& op, int64_t inputs, int64_t outputs, PackedOp* packed) {
  const int32_t status = pack_taps(op, packed);
  if (status != SUBTONE_OK) return status;
  if (op.groups < 1 || inputs % op.groups || outputs % op.groups) return SUBTONE_SIZE;
  if (op.weight.rows != outputs || op.weight.columns != inputs / op.groups * op.kernel) return SUBTONE_SIZE;
  IntegerDepthwise depthwise = {{}, op.stride, op.dilation, op.padding};
  depthwise.product.quads = (op.kernel + 3) / 4;
  const bool is_depthwise = op.groups == inputs && outputs == inputs && op.integers.groups == 1 &&
                            depthwise.rows(kDepthwiseBlock) <= kMaxDepthwiseRows;
  packed->kernel = is_depthwise ? Kernel::kIntegerDepthwise : Kernel::kIntegerProduct;
  if (!is_depthwise) return pack_products(op, op.groups, kPanel, &packed->integers);
  const int32_t result = pack_products(op, 1, kLanes, &packed->integers);
  if (result != SUBTONE_OK) return result;
  depthwise.product = packed->integers.products[0];
  packed->integers.depthwise = depthwise;
  return SUBTONE_OK;
}

int32_t pack_integer_conv2d(const subtone_op& op, int64_t width, int64_t width_out, PackedOp* packed) {
  const int32_t status = pack_image(op, width, width_out, packed);
  if (status != SUBTONE_OK) return status;
  PackedIntegers& integers = packed->integers;
  const Image& image = packed->image;
  const bool is_depthwise = op.groups == op.in_channels && image.outputs == op.in_channels && op.integers.groups == 1;
  packed->kernel = is_depthwise ? Kernel::kIntegerImageDepthwise : Kernel::kIntegerImage;
  const int32_t result = is_depthwise ? pack_products(op, 1, kLanes, &integers)
                                      : pack_products(op, op.groups, kPanel, &integers);
  if (result != SUBTONE_OK) return result;
  for (IntegerProduct& product : integers.products) product.y_width = product.outputs;
  if (!is_depthwise) return SUBTONE_OK;
  integers.places = Buffer<int64_t>(integers.products[0].quads * 4);
  for (int64_t tap = 0; tap < integers.products[0].columns; ++tap) {
    const int64_t feature = tap / image.feature_kernel * image.padded_features + tap % image.feature_kernel;
    integers.places[tap] = feature * image.channels;
  }
  integers.image_depthwise = {integers.products[0], integers.places.data(), image.feature_stride * image.channels};
  return SUBTONE_OK;
}

int32_t pack_affine(const subtone_op& op, int64_t width, PackedIntegers* packed) {
  if (!op.integers.multiplier || !op.integers.offset) return SUBTONE_NULL;
  const int32_t status = pack_requantize(op.integers, width, 1, packed, &packed->affine.finish);
  if (status != SUBTONE_OK) return status;
  packed->multiplier = Buffer<int32_t>(round_up(width, kLanes));
  for (int64_t n = 0; n < width; ++n) {
    packed->multiplier[n] = op.integers.multiplier[n];
    packed->offset[n] = wrapped_sum(packed->offset[n], op.integers.offset[n]);
  }
  packed->affine.multiplier = packed->multiplier.data();
  return SUBTONE_OK;
}

}  // namespace

int32_t pack_integers(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const int64_t inputs = widths[op.input], outputs = widths[op.output];
  const subtone_integers& from = op.integers;
  if (from.low >= from.high) return SUBTONE_RANGE;
  switch (op.kind) {
    case SUBTONE_INTEGER_CONV1D:
      return pack_integer_conv1d(op, inputs, outputs, packed);
    case SUBTONE_INTEGER_CONV2D:
      return pack_integer_conv2d(op, inputs, outputs, packed);
    case SUBTONE_INTEGER_AFFINE:
      packed->kernel = Kernel::kIntegerAffine;
      return inputs == outputs ? pack_affine(op, inputs, &packed->integers) : SUBTONE_SIZE;
    case SUBTONE_INTEGER_ADD:
    case SUBTONE_INTEGER_MULTIPLY:
    case SUBTONE_RESCALE:
      packed->kernel = op.kind == SUBTONE_RESCALE       ? Kernel::kRescale
                       : op.kind == SUBTONE_INTEGER_ADD ? Kernel::kIntegerAdd
                                                        : Kernel::kIntegerTimes;
      if (!is_shift(from.shift)) return SUBTONE_RANGE;
      packed->integers.pair = {from.left_multiplier, from.right_multiplier, from.shift, from.low, from.high};
      if (op.kind != SUBTONE_RESCALE && widths[op.other] != inputs) return SUBTONE_SIZE;
      return inputs == outputs ? SUBTONE_OK : SUBTONE_SIZE;
    default:
      return pack_integer_sequences(op, widths, packed);
  }
}

}  // namespace subtone
