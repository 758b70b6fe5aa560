// Convolutions of levels with a channel of its own for each output, along frames and over an image: AVX2 and NEON.
//
// Included inside the namespace of one instruction set, after vector_integers.h. A lane holds four taps of a channel,
// a quad, in the order in which panels have them. Levels are unsigned bytes here: what they lose when they are spread
// (kTaken) is given back by the sum of the weights.

// Row r of `quads`, 64 bytes, holds the bytes of 16 channels in rows first_row + r, then those `dilation` behind
// it, and twice and three times that: each row shifts those of the row `dilation` before it by one byte. Here for the
// channels of one vector.
void make_quads(const IntegerDepthwise& conv, const int32_t* x, int64_t frames_in, int64_t first_row, int64_t rows,
                Lanes channels, uint8_t* quads) {
  const words zero = (words)all_ints(0) + (static_cast<uint32_t>(conv.product.level_offset) << 24);
  const int64_t dilation = conv.dilation, width = conv.product.y_width;
  const auto shifted_in = [&](words bytes, int64_t row) __attribute__((always_inline)) {
    words fresh = {};
    if (row >= 0 && row < frames_in) fresh = (words)load_lanes(channels, x + row * width) << 24;
    // The two share no bit; x + 128 differs from x in the uppermost bit of its byte alone.
    return (bytes >> 8) ^ fresh ^ zero;
  };
  for (int64_t phase = 0; phase < smaller(dilation, rows); ++phase) {
    words bytes = {};
    int64_t row = first_row + phase;
    for (int tap = 0; tap < 3; ++tap, row += dilation) bytes = shifted_in(bytes, row);
    for (int64_t r = phase; r < rows; r += dilation, row += dilation) {
      bytes = shifted_in(bytes, row);
      __builtin_memcpy(quads + 4 * kLanes * r, &bytes, sizeof bytes);
    }
  }
}

// What the sum of a quad of levels meets of which `count` taps are left; its other bytes are of no tap.
SUBTONE_INLINE Quads ones_of(int64_t count) {
  return spread<true>(all_ints(count < 4 ? 0x01010101 >> 8 * (4 - count) : 0x01010101));
}

// kFrames outputs of a vector of channels, from n on. quads_at(f, tap): the bytes that taps tap .. tap + 3 of output f
// meet.
template <int kFrames, bool kIsUpper, bool kHasCorrection, typename QuadsAt>
SUBTONE_INLINE void channel_sums(const IntegerProduct& product, int64_t n, const Ending<kIsUpper>& ending,
                                 const QuadsAt& quads_at, int32_t* y) {
  const int8_t* weights = product.panels + n / kLanes * kLanes * product.quads * 4 + n % kLanes * 4;
  const Quads taken = spread<false>(all_ints(0));
  const Lanes channels = lanes(product.outputs - n);
  ints sums[kFrames], level_sums[kHasCorrection ? kFrames : 1] = {}, lost = {};
  repeat<kFrames>(SUBTONE_EACH(f) { sums[f] = load(product.start + n); });
  for (int64_t tap = 0; tap < product.columns; tap += 4, weights += 4 * kLanes) {
    const Quads part = spread<true>(load_quads(weights));
    if constexpr (kTaken != 0) lost = plus_products(lost, taken, part);
    repeat<kFrames>(SUBTONE_EACH(f) {
      const Quads bytes = spread<false>(quads_at(f, tap));
      sums[f] = plus_products(sums[f], bytes, part);
      if constexpr (kHasCorrection) level_sums[f] = plus_products(level_sums[f], bytes, ones_of(product.columns - tap));
    });
  }
  repeat<kFrames>(SUBTONE_EACH(f) {
    Totals totals = times((ints)((words)sums[f] - (words)lost), load(product.multiplier + n));
    if constexpr (kHasCorrection) {
      const ints level_sum = level_sums[f] + kTaken * static_cast<int32_t>(product.columns);
      totals = plus(totals, times(load_totals(product.correction + n), widened(level_sum)));
    }
    store_lanes(y + f * product.y_width + n, channels, ending(totals));
  });
}

template <bool kIsUpper, bool kHasCorrection>
void depthwise_block(const IntegerDepthwise& conv, const uint8_t* quads, int64_t frames, int64_t n, int32_t* y) {
  constexpr int kTogether = kHasCorrection ? 4 : 8;
  const Ending<kIsUpper> ending(conv.product.finish, n);
  const int64_t frame_bytes = 4 * kLanes * conv.stride, tap_bytes = 4 * kLanes * conv.dilation;
  const auto quads_at = [&](int64_t f, int64_t tap) __attribute__((always_inline)) {
    return load_quads(quads + f * frame_bytes + tap * tap_bytes);
  };
  int64_t t = 0;
  for (; t + kTogether <= frames; t += kTogether, quads += kTogether * frame_bytes)
    channel_sums<kTogether, kIsUpper, kHasCorrection>(conv.product, n, ending, quads_at, y + t * conv.product.y_width);
  for (; t < frames; ++t, quads += frame_bytes)
    channel_sums<1, kIsUpper, kHasCorrection>(conv.product, n, ending, quads_at, y + t * conv.product.y_width);
}

void integer_depthwise(const IntegerDepthwise& conv, const int32_t* x, int64_t frames_in, Span frames, Span panels,
                       uint8_t* quads, int32_t* y) {
  const IntegerProduct& product = conv.product;
  const auto block = product.finish.is_upper
                         ? (product.correction ? depthwise_block<true, true> : depthwise_block<true, false>)
                         : (product.correction ? depthwise_block<false, true> : depthwise_block<false, false>);
  for (int64_t t = frames.first; t < frames.last; t += kDepthwiseBlock) {
    const int64_t count = smaller(kDepthwiseBlock, frames.last - t);
    for (int64_t n = panels.first * kLanes; n < smaller(panels.last * kLanes, product.outputs); n += kWidth) {
      uint8_t* from = quads + n % kLanes * 4;
      make_quads(conv, x + n, frames_in, t * conv.stride - conv.padding, conv.rows(count), lanes(product.outputs - n),
                 from);
      block(conv, from, count, n, y + t * product.y_width);
    }
  }
}

template <bool kIsUpper, bool kHasCorrection>
void image_block(const IntegerImageDepthwise& conv, const uint8_t* levels, int64_t features, int64_t n, int32_t* y) {
  const IntegerProduct& product = conv.product;
  const Ending<kIsUpper> ending(product.finish, n);
  const int64_t count = smaller(kWidth, product.outputs - n);
  // Bytes of tap i of a quad become byte i of each channel.
  const auto quads_at = [&](int64_t, int64_t tap) __attribute__((always_inline)) {
    words quads = {};
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* from = levels + n + i;
      quads[i] = from[conv.places[tap]] | static_cast<uint32_t>(from[conv.places[tap + 1]]) << 8 |
                 static_cast<uint32_t>(from[conv.places[tap + 2]]) << 16 |
                 static_cast<uint32_t>(from[conv.places[tap + 3]]) << 24;
    }
    return (ints)quads;
  };
  for (int64_t f = 0; f < features; ++f, levels += conv.feature_bytes, y += product.y_width)
    channel_sums<1, kIsUpper, kHasCorrection>(product, n, ending, quads_at, y);
}

void integer_image_depthwise(const IntegerImageDepthwise& conv, const uint8_t* levels, int64_t features, Span panels,
                             int32_t* y) {
  const IntegerProduct& product = conv.product;
  const auto block = product.finish.is_upper ? (product.correction ? image_block<true, true> : image_block<true, false>)
                                             : (product.correction ? image_block<false, true>
                                                                   : image_block<false, false>);
  for (int64_t n = panels.first * kLanes; n < smaller(panels.last * kLanes, product.outputs); n += kWidth)
    block(conv, levels, features, n, y);
}
