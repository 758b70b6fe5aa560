// Integer kernels that a compiler vectorises from these plain loops, without a floating-point number: one source for
// every instruction set but AVX-512.
//
// Included inside the namespace of one instruction set, after kernels.h.

void narrow(const int32_t* x, int64_t count, int32_t level_offset, uint8_t* levels) {
  for (int64_t i = 0; i < count; ++i)
    levels[i] = static_cast<uint8_t>(static_cast<uint32_t>(x[i]) + static_cast<uint32_t>(level_offset));
}

void integer_sums(const IntegerProduct& product, const uint8_t* levels, int64_t frames, int32_t* sums) {
  for (int64_t t = 0; t < frames; ++t, levels += product.row_bytes())
    for (int64_t g = 0; g < product.groups; ++g) {
      int32_t sum = 0;
      for (int64_t k = g * product.group_size; k < (g + 1) * product.group_size; ++k) sum += levels[k];
      *sums++ = sum;
    }
}

void integer_transpose(const int32_t* from, int64_t stride, int64_t rows, int64_t columns, int32_t* to,
                       int64_t to_stride) {
  for (int64_t d = 0; d < columns; ++d)
    for (int64_t r = 0; r < rows; ++r) to[d * to_stride + r] = from[r * stride + d];
}
