// What the kernels of an integer-only program read, packed once at load.
//
// No floating-point number is in this file, nor in scalar_integers.h: both serve a processor without one. Letters as
// in subtone.h. Levels of an input are bytes x + level_offset, level_offset 128 for int8 and 0 for uint8, so that they
// are unsigned in either case and weights stay the int8 that they are: what vpdpbusd multiplies.
#ifndef SUBTONE_INTEGERS_H
#define SUBTONE_INTEGERS_H

#include <stdint.h>

namespace subtone {

// clip((total + 2^(shift - 1)) >> shift, low, high). `offset` is what of the total no input changes, the rounding
// term included.
struct Requantize {
  const int64_t* offset;  // [padded output]
  const int32_t* shift;   // [padded output]
  int32_t low, high;
  bool is_upper;  // every shift is 32 or more: only the upper half of a total reaches the result
};

// Bytes [g * group_size, (g + 1) * group_size) of a row of levels are those of group g. Its quads are all that
// hold one of them; weights that meet a byte of another group are 0, so that rows of levels need no padding.
struct IntegerProduct {
  int64_t columns, outputs, padded_outputs;
  int64_t groups, group_size;
  int64_t quads;    // of all groups
  int64_t y_width;  // items from one frame of y to the next
  int32_t level_offset;
  const int8_t* panels;       // [panel][group][quad][outputs of panel][4]
  const int32_t* start;       // [group][padded output]: -level_offset times the sum of the group's weights
  const int32_t* multiplier;  // [group][padded output]
  const int64_t* correction;  // the same; null where there is none
  Requantize finish;

  int64_t row_bytes() const { return (columns + 3) / 4 * 4; }
  int64_t first_quad(int64_t group) const { return group * group_size / 4; }
  int64_t last_quad(int64_t group) const { return ((group + 1) * group_size + 3) / 4; }
};

// A convolution of one channel each, one multiplier a channel: `product` with panels of 16 channels, [panel][quad
// of taps][16][4]. Of frame t, tap j meets row t * stride + j * dilation - padding, x 0 beyond both ends.
struct IntegerDepthwise {
  IntegerProduct product;
  int64_t stride, dilation, padding;

  // Rows of bytes that a block of `frames` frames sees; a quad of taps starts in each.
  int64_t rows(int64_t frames) const {
    return (frames - 1) * stride + (product.quads - 1) * 4 * dilation + 1;
  }
};

// The same over an image: tap k of a feature meets the channels `places[k]` bytes behind it, as many as four for each
// quad; places of no tap are 0.
struct IntegerImageDepthwise {
  IntegerProduct product;
  const int64_t* places;
  int64_t feature_bytes;  // from one feature of the result to the next
};

constexpr int64_t kDepthwiseBlock = 128;  // frames of a depthwise convolution whose bytes are made at once

struct IntegerAffine {
  const int32_t* multiplier;  // [padded output]
  Requantize finish;
};

// left * x + right * other, or left * (x * other), or left * x; then as Requantize.
struct IntegerPair {
  int32_t left, right, shift, low, high;
};

// left * function(x), x in units of 2^-fraction_bits; then as Requantize. `function` of subtone_function.
struct IntegerFunction {
  int32_t function, fraction_bits;
  IntegerPair finish;
};

// Rows normalized in units of 2^-22, times gain[n], then as Requantize with one shift for all.
struct IntegerNorm {
  const int32_t* gain;    // [padded output]
  const int64_t* offset;  // the same; the rounding term included
  int64_t epsilon;
  int32_t shift, low, high;
};

// Attention; widths, limits and biases as in subtone.h. finish.left: of the sums of weighted values.
struct IntegerAttention {
  int64_t heads, depth, width;
  int64_t left, right;  // -1: unlimited
  int32_t content_multiplier, position_multiplier, score_shift;
  const int32_t* content_bias;  // may be null, like position_bias
  const int32_t* position_bias;
  IntegerPair finish;

  int64_t row_bytes() const { return (depth + 3) / 4 * 4; }
};

// The rows that one run of attention sees: `rows` so far; each pointer is of row `*_base`. offset: row of `positions`
// for distance 0.
struct IntegerAttentionRows {
  const int32_t *query, *key, *value, *positions;
  int64_t query_base, key_base, value_base, rows, offset;
};

constexpr int64_t kIntegerQueries = 256;  // rows of a block of queries, for which keys become bytes once
constexpr int64_t kAtOnce = 4;            // of them that meet a key at once
constexpr int64_t kDotLanes = 16;         // keys, or columns of a value, that share a panel
constexpr int64_t kMorePlaces = kIntegerQueries + 2 * kDotLanes;  // of positions, beyond the keys of a block

// Scratch of a block of queries that see `keys` rows, a multiple of kDotLanes, and meet `places` rows of positions.
// Panels: [panel][quad of what is summed][16][4], as those of products.
struct IntegerAttentionScratch {
  int64_t keys, places;
  uint8_t* queries;                      // [kIntegerQueries][row_bytes], level + 128
  uint8_t* weights;                      // [kAtOnce][3][keys], the lowest byte of each first
  uint8_t* row;                          // a row of levels as bytes: [row_bytes]
  int8_t *key_panels, *position_panels;  // of row_bytes columns
  int8_t* value_panels;                  // of `keys` columns
  int32_t *key_start, *position_start;   // [keys], [places]: what the sums of each begin with
  int32_t *scores, *of_positions;        // [kAtOnce][keys], [kAtOnce][places]
  int32_t* sums;                         // [kAtOnce][3][depth up to a multiple of kDotLanes]
};

}  // namespace subtone
#endif
