// Convolutions of levels with a channel of its own for each output: along frames, and over an image.
//
// Included inside the namespace of x86_avx512.cc, after avx512_integers.h. A vector holds 16 channels of four taps
// each, a quad, in the order in which vpdpbusd multiplies them: a quarter of the instructions that floats take.

// Row r of `quads`, 64 bytes, holds the bytes of 16 channels in rows first_row + r, then those `dilation` behind
// it, and twice and three times that: each row shifts those of the row `dilation` before it by one byte.
void make_quads(const IntegerDepthwise& conv, const int32_t* x, int64_t frames_in, int64_t first_row, int64_t rows,
                __mmask16 mask, uint8_t* quads) {
  const ints zero = _mm512_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(conv.product.level_offset) << 24));
  const int64_t dilation = conv.dilation, width = conv.product.y_width;
  const auto shifted_in = [&](ints bytes, int64_t row) __attribute__((always_inline)) {
    ints fresh = _mm512_setzero_si512();
    if (row >= 0 && row < frames_in) fresh = _mm512_slli_epi32(load_some(mask, x + row * width), 24);
    // The two share no bit; x + 128 differs from x in the uppermost bit of its byte alone.
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(bytes, 8), fresh, zero, 0x96);
  };
  for (int64_t phase = 0; phase < smaller(dilation, rows); ++phase) {
    ints bytes = _mm512_setzero_si512();
    int64_t row = first_row + phase;
    for (int tap = 0; tap < 3; ++tap, row += dilation) bytes = shifted_in(bytes, row);
    for (int64_t r = phase; r < rows; r += dilation, row += dilation) {
      bytes = shifted_in(bytes, row);
      _mm512_store_si512(quads + 64 * r, bytes);
    }
  }
}

// What the sum of a quad of levels meets of which `count` taps are left; its other bytes are of no tap.
SUBTONE_INLINE ints ones_of(int64_t count) {
  return _mm512_set1_epi32(count < 4 ? 0x01010101 >> 8 * (4 - count) : 0x01010101);
}

// What the sums of the levels of 16 outputs add to their totals; such a sum is not below 0.
SUBTONE_INLINE Totals corrected(const IntegerProduct& product, int64_t n0, ints level_sum) {
  const Totals correction = load_totals(product.correction + n0);
  return {_mm512_mullox_epi64(correction.even, _mm512_maskz_mov_epi32(0x5555, level_sum)),
          _mm512_mullox_epi64(correction.odd, upper_half(level_sum))};
}

// kFrames frames of 16 channels; `quads`: what tap 0 of the first frame meets.
template <int kFrames, bool kIsUpper, bool kHasCorrection>
SUBTONE_INLINE void integer_depthwise_tile(const IntegerDepthwise& conv, const uint8_t* quads, int64_t n0,
                                           __mmask16 mask, const Ending<kIsUpper>& ending, int32_t* y) {
  const IntegerProduct& product = conv.product;
  const int8_t* weights = product.panels + n0 * product.quads * 4;
  const int64_t frame_bytes = 64 * conv.stride, quad_bytes = 4 * 64 * conv.dilation;
  ints sums[kFrames], level_sums[kHasCorrection ? kFrames : 1];
  repeat<kFrames>(SUBTONE_EACH(f) {
    sums[f] = _mm512_loadu_si512(product.start + n0);
    if constexpr (kHasCorrection) level_sums[f] = _mm512_setzero_si512();
  });
  for (int64_t tap = 0; tap < product.columns; tap += 4, weights += 64, quads += quad_bytes) {
    const ints part = _mm512_loadu_si512(weights);
    const ints ones = ones_of(product.columns - tap);
    repeat<kFrames>(SUBTONE_EACH(f) {
      const ints bytes = _mm512_loadu_si512(quads + f * frame_bytes);
      sums[f] = _mm512_dpbusd_epi32(sums[f], bytes, part);
      if constexpr (kHasCorrection) level_sums[f] = _mm512_dpbusd_epi32(level_sums[f], bytes, ones);
    });
  }
  const ints multiplier = _mm512_loadu_si512(product.multiplier + n0), odd = upper_half(multiplier);
  repeat<kFrames>(SUBTONE_EACH(f) {
    asm("" : "+v"(sums[f]));  // as in multiply_group
    Totals totals = {_mm512_mul_epi32(sums[f], multiplier), _mm512_mul_epi32(upper_half(sums[f]), odd)};
    if constexpr (kHasCorrection) totals = plus(totals, corrected(product, n0, level_sums[f]));
    _mm512_mask_storeu_epi32(y + f * product.y_width + n0, mask, ending(totals));
  });
}

template <bool kIsUpper, bool kHasCorrection>
void depthwise_block(const IntegerDepthwise& conv, const uint8_t* quads, int64_t frames, int64_t n0, __mmask16 mask,
                     int32_t* y) {
  const Ending<kIsUpper> ending(conv.product.finish, n0);
  const int64_t width = conv.product.y_width, frame_bytes = 64 * conv.stride;
  int64_t t = 0;
  for (; t + 8 <= frames; t += 8)
    integer_depthwise_tile<8, kIsUpper, kHasCorrection>(conv, quads + t * frame_bytes, n0, mask, ending, y + t * width);
  for (; t < frames; ++t)
    integer_depthwise_tile<1, kIsUpper, kHasCorrection>(conv, quads + t * frame_bytes, n0, mask, ending, y + t * width);
}

void integer_depthwise(const IntegerDepthwise& conv, const int32_t* x, int64_t frames_in, Span frames, Span panels,
                       uint8_t* quads, int32_t* y) {
  const IntegerProduct& product = conv.product;
  const auto block = product.finish.is_upper
                         ? (product.correction ? depthwise_block<true, true> : depthwise_block<true, false>)
                         : (product.correction ? depthwise_block<false, true> : depthwise_block<false, false>);
  for (int64_t t = frames.first; t < frames.last; t += kDepthwiseBlock) {
    const int64_t count = smaller(kDepthwiseBlock, frames.last - t);
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t n0 = panel * kLanes;
      const __mmask16 mask = lanes(product.outputs - n0);
      make_quads(conv, x + n0, frames_in, t * conv.stride - conv.padding, conv.rows(count), mask, quads);
      block(conv, quads, count, n0, mask, y + t * product.y_width);
    }
  }
}

// A quad of taps of 16 channels, interleaved: bytes of tap i become byte i of each channel.
template <bool kIsUpper, bool kHasCorrection>
void image_block(const IntegerImageDepthwise& conv, const uint8_t* levels, int64_t features, int64_t n0, int32_t* y) {
  const IntegerProduct& product = conv.product;
  const __mmask16 mask = lanes(product.outputs - n0);
  const Ending<kIsUpper> ending(product.finish, n0);
  const ints start = _mm512_loadu_si512(product.start + n0), multiplier = _mm512_loadu_si512(product.multiplier + n0);
  levels += n0;
  for (int64_t f = 0; f < features; ++f, levels += conv.feature_bytes) {
    const int8_t* weights = product.panels + n0 * product.quads * 4;
    ints sum = start, level_sum = _mm512_setzero_si512();
    for (int64_t tap = 0; tap < product.columns; tap += 4, weights += 64) {
      const auto bytes_of = [&](int64_t which) __attribute__((always_inline)) {
        return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, levels + conv.places[tap + which]));
      };
      const ints low = _mm512_or_si512(bytes_of(0), _mm512_slli_epi32(bytes_of(1), 8));
      const ints high = _mm512_or_si512(_mm512_slli_epi32(bytes_of(2), 16), _mm512_slli_epi32(bytes_of(3), 24));
      const ints bytes = _mm512_or_si512(low, high);
      sum = _mm512_dpbusd_epi32(sum, bytes, _mm512_loadu_si512(weights));
      if (kHasCorrection) level_sum = _mm512_dpbusd_epi32(level_sum, bytes, ones_of(product.columns - tap));
    }
    Totals totals = times(sum, multiplier);
    if (kHasCorrection) totals = plus(totals, corrected(product, n0, level_sum));
    _mm512_mask_storeu_epi32(y + f * product.y_width + n0, mask, ending(totals));
  }
}

void integer_image_depthwise(const IntegerImageDepthwise& conv, const uint8_t* levels, int64_t features, Span panels,
                             int32_t* y) {
  const IntegerProduct& product = conv.product;
  const auto block = product.finish.is_upper ? (product.correction ? image_block<true, true> : image_block<true, false>)
                                             : (product.correction ? image_block<false, true>
                                                                   : image_block<false, false>);
  for (int64_t panel = panels.first; panel < panels.last; ++panel) block(conv, levels, features, panel * kLanes, y);
}
