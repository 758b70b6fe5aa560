// Functions, norms, embeddings, attention, sinusoids and recurrences of an integer-only program in the layout of
// integers.h. No floating-point number here either.
#include <cstring>

#include "pack.h"

namespace subtone {
namespace {

// `count` of them and zeros up to `padded`; nothing for null.
Buffer<int32_t> copy_of(const int32_t* values, int64_t count, int64_t padded) {
  if (!values) return {};
  Buffer<int32_t> copy(padded);
  std::memcpy(copy.data(), values, static_cast<size_t>(count) * sizeof(int32_t));
  return copy;
}

int32_t pack_function(const subtone_op& op, PackedOp* packed) {
  const subtone_integers& from = op.integers;
  if (op.function < SUBTONE_SIGMOID || op.function > SUBTONE_EXP) return SUBTONE_VALUE;
  if (!is_shift(from.shift)) return SUBTONE_RANGE;
  if (from.fraction_bits < 0 || from.fraction_bits > SUBTONE_MAX_FRACTION_BITS) return SUBTONE_RANGE;
  packed->integers.function = {op.function, from.fraction_bits,
                               {from.left_multiplier, 0, from.shift, from.low, from.high}};
  return SUBTONE_OK;
}

int32_t pack_norm(const subtone_op& op, int64_t width, PackedIntegers* packed) {
  const subtone_integers& from = op.integers;
  if (width > SUBTONE_MAX_NORM_COLUMNS) return SUBTONE_SIZE;
  if (!from.multiplier) return SUBTONE_NULL;
  if (!is_shift(from.shift) || from.epsilon < 0) return SUBTONE_RANGE;
  const int64_t padded = round_up(width, kLanes);
  packed->multiplier = copy_of(from.multiplier, width, padded);
  packed->offset = Buffer<int64_t>(padded);
  for (int64_t n = 0; n < width; ++n)
    packed->offset[n] = wrapped_sum(INT64_C(1) << (from.shift - 1), from.offset ? from.offset[n] : 0);
  packed->norm = {packed->multiplier.data(), packed->offset.data(), from.epsilon, from.shift, from.low, from.high};
  return SUBTONE_OK;
}

// All its rows, requantized: a row is read, never computed.
int32_t pack_embedding(const subtone_op& op, int64_t width, PackedOp* packed) {
  const subtone_integers& from = op.integers;
  const int64_t rows = op.weight.rows;
  if (rows < 1 || rows > SUBTONE_MAX_SIZE || op.weight.columns != width) return SUBTONE_SIZE;
  if (from.groups < 1 || width % from.groups) return SUBTONE_SIZE;
  if (!op.weight.codes || !op.weight.levels || !from.multiplier || !from.shifts) return SUBTONE_NULL;
  const int64_t size = width / from.groups;
  packed->count = rows;
  packed->integers.table = Buffer<int32_t>(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t shift = from.shifts[i];
    if (!is_shift(shift)) return SUBTONE_RANGE;
    for (int64_t n = 0; n < width; ++n) {
      const int64_t at = i * from.groups + n / size;
      const int64_t level = op.weight.levels[op.weight.codes[i * width + n]];
      int64_t total = wrapped_sum(INT64_C(1) << (shift - 1), wrapped_product(from.multiplier[at], level));
      if (from.correction) total = wrapped_sum(total, from.correction[at]);
      total >>= shift;
      packed->integers.table[i * width + n] =
          static_cast<int32_t>(total < from.low ? from.low : total > from.high ? from.high : total);
    }
  }
  return SUBTONE_OK;
}

int32_t pack_integer_attention(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const subtone_integers& from = op.integers;
  const int32_t status = pack_window(op, widths, from.positions, packed);
  if (status != SUBTONE_OK) return status;
  if (!is_shift(from.shift) || !is_shift(from.score_shift)) return SUBTONE_RANGE;
  PackedIntegers& integers = packed->integers;
  const int64_t width = widths[op.output], size = packed->position_rows * width;
  if (size) integers.table = copy_of(from.positions, size, size);
  integers.content_bias = copy_of(from.content_bias, width, width);
  integers.position_bias = copy_of(from.position_bias, width, width);
  integers.attention = {packed->attention.heads,
                        packed->attention.depth,
                        width,
                        op.left,
                        op.right,
                        from.content_multiplier,
                        from.position_multiplier,
                        from.score_shift,
                        integers.content_bias.data(),
                        integers.position_bias.data(),
                        {from.left_multiplier, 0, from.shift, from.low, from.high}};
  return SUBTONE_OK;
}

// The recurrent product with its rows so ordered that a panel holds all four gates of 16 units; a row of no unit gives 0.
int32_t pack_recurrent_product(const subtone_op& op, int64_t units, PackedIntegers* packed) {
  const subtone_weight& weight = op.weight;
  const subtone_integers& from = op.integers;
  if (weight.rows != 4 * units || weight.columns != units || from.groups < 1 || units % from.groups)
    return SUBTONE_SIZE;
  if (!weight.codes || !weight.levels || !from.multiplier || !from.shifts) return SUBTONE_NULL;
  const int64_t rows = round_up(units, kLanes) * 4, groups = from.groups;
  Buffer<uint8_t> codes(rows * units);
  Buffer<int32_t> multiplier(rows * groups), shifts(rows);
  Buffer<int64_t> correction(rows * groups), offset(rows);
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t unit = n / kPanel * kLanes + n % kLanes, row = n % kPanel / kLanes * units + unit;
    shifts[n] = 1;
    if (unit >= units) continue;
    shifts[n] = from.shifts[row];
    std::memcpy(codes.data() + n * units, weight.codes + row * units, static_cast<size_t>(units));
    for (int64_t g = 0; g < groups; ++g) {
      multiplier[n * groups + g] = from.multiplier[row * groups + g];
      if (from.correction) correction[n * groups + g] = from.correction[row * groups + g];
    }
    if (from.offset) offset[n] = from.offset[row];
  }
  subtone_op ordered = op;
  ordered.weight.rows = rows;
  ordered.weight.codes = codes.data();
  ordered.integers.multiplier = multiplier.data();
  ordered.integers.correction = from.correction ? correction.data() : nullptr;
  ordered.integers.offset = offset.data();
  ordered.integers.shifts = shifts.data();
  ordered.integers.is_signed = 1;
  ordered.integers.low = -INT32_MAX;
  ordered.integers.high = INT32_MAX;
  return pack_products(ordered, 1, kPanel, packed);
}

int32_t pack_integer_lstm(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const subtone_integers& from = op.integers;
  const int64_t units = widths[op.output];
  if (widths[op.input] != 4 * units || widths[op.cell] != units) return SUBTONE_SIZE;
  if (from.fraction_bits < 0 || from.fraction_bits > SUBTONE_MAX_FRACTION_BITS) return SUBTONE_RANGE;
  if (from.high < 1 || from.high > 127 || from.low != -from.high) return SUBTONE_RANGE;
  packed->zeros = Buffer<float>(units);  // whose bits are those of an int32 of 0
  packed->integers.function.fraction_bits = from.fraction_bits;
  packed->integers.function.finish.high = from.high;
  return pack_recurrent_product(op, units, &packed->integers);
}

}  // namespace

int32_t pack_integer_sequences(const subtone_op& op, const int64_t* widths, PackedOp* packed) {
  const int64_t inputs = widths[op.input], outputs = widths[op.output];
  switch (op.kind) {
    case SUBTONE_INTEGER_FUNCTION:
      packed->kernel = Kernel::kIntegerFunction;
      return inputs == outputs ? pack_function(op, packed) : SUBTONE_SIZE;
    case SUBTONE_INTEGER_GLU:
      packed->kernel = Kernel::kIntegerGlu;
      return inputs == 2 * outputs ? pack_function(op, packed) : SUBTONE_SIZE;
    case SUBTONE_INTEGER_LAYER_NORM:
      packed->kernel = Kernel::kIntegerNorm;
      return inputs == outputs ? pack_norm(op, outputs, &packed->integers) : SUBTONE_SIZE;
    case SUBTONE_INTEGER_EMBEDDING:
      packed->kernel = Kernel::kIntegerEmbedding;
      return inputs == 1 ? pack_embedding(op, outputs, packed) : SUBTONE_SIZE;
    case SUBTONE_INTEGER_ATTENTION:
      packed->kernel = Kernel::kIntegerAttention;
      return pack_integer_attention(op, widths, packed);
    case SUBTONE_INTEGER_SINUSOIDS:
      packed->kernel = Kernel::kIntegerSinusoids;
      if (outputs % 2) return SUBTONE_SIZE;
      if (!op.integers.rotation) return SUBTONE_NULL;
      packed->integers.table = copy_of(op.integers.rotation, outputs, outputs);
      packed->integers.pair = {0, 0, 0, op.integers.low, op.integers.high};
      return SUBTONE_OK;
    case SUBTONE_INTEGER_LSTM:
      packed->kernel = Kernel::kIntegerLstm;
      return pack_integer_lstm(op, widths, packed);
    default:
      return SUBTONE_VALUE;
  }
}

}  // namespace subtone
