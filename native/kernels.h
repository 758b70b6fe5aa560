// What a kernel reads and writes: constants packed once at load, one layout for all instruction sets.
//
// Letters as in subtone.h: frames t, inputs k, outputs n, groups g. Files that are compiled for one
// instruction set include nothing but this header, integers.h, loops in a namespace that no other file sees (of that
// instruction set, vector*.h, plain_*.h, rowwise.h, attention.h, functions.h and integer_*.h) and <immintrin.h> or
// <arm_neon.h>: an inline function of the standard library compiled there could be the copy the linker keeps for every
// other machine.
#ifndef SUBTONE_KERNELS_H
#define SUBTONE_KERNELS_H

#include <stdint.h>

#include "integers.h"

namespace subtone {

constexpr int64_t kLanes = 16;       // outputs of one vector; outputs are padded to a multiple of it
constexpr int64_t kPanel = 64;       // outputs of one panel; the last may be 16, 32 or 48 wide
constexpr int64_t kTileFrames = 6;   // frames x 4 vectors of sums, 4 of weights, 1 of x: 29 of 32 registers
constexpr int32_t kLevelOffset = 128;  // byte of a weight = level + 128: vpdpbusd multiplies u8 by s8

struct Span {
  int64_t first, last;  // [first, last)
};

// v * gain + bias, then relu. Absent gain is 1, absent bias is -0.0f: both leave every float as it is.
struct Finish {
  const float* gain;  // (padded outputs)
  const float* bias;
  bool relu;
};

// An integer product: weights as u8, 4 inputs of one output together, each group padded by weights that meet a level
// of 0. What is stored of a weight is its level + level_offset; packed, with fewer than 8 bits, its code, which is that
// or an index into `table`.
struct Product {
  int64_t inputs, outputs, padded_outputs;  // packed: padded to whole panels
  int64_t groups, group_size, group_bytes;  // group_bytes = group_size up to a multiple of 4, packed of 8
  int32_t limit;                            // largest level of an activation
  int32_t bits, level_offset;
  const uint8_t* panels;  // [panel][groups * group_bytes / 4][outputs of panel][4]; packed: see packed_layout.h
  const uint8_t* table;   // packed: level + level_offset of each code (kTables), null where a code is that itself
  const float* scale;     // [panel][group][outputs of panel], as weights are read
  const float* zero_point;                  // the same; null where all are 0
  Finish finish;
  int64_t row_bytes() const { return groups * group_bytes; }
  // Where the outputs from n0 on, the first of a panel, have their scales of a group.
  int64_t scales_of(int64_t n0, int64_t group) const {
    const int64_t rest = padded_outputs - n0;
    return n0 * groups + group * (rest < kPanel ? rest : kPanel);
  }
  int64_t panel_bytes() const { return kPanel * row_bytes() * bits / 8; }
};

// A table has the entry of each code, of 6 bits at most, once for each place where a look-up may find the code:
// [place][64], entry i for code (i >> place) % 2^bits.
constexpr int kTables = 6;

// Activations of some frames on their integer grids.
struct Levels {
  int8_t* levels;  // [frame][row_bytes], 0 in the padding of a group
  int32_t* sums;   // [frame][group]: sum of the group's levels
  float* scale;    // [frame]
};

// A float convolution, or one group of one. Depthwise: panels of 16 channels, [panel][tap][16]. Dense: panels
// of 64 outputs, [panel][tap][input][outputs of panel]. Both padded by zeros. Of frame t, tap j of plane p
// meets row t * stride + p * plane_rows + j * dilation - padding; a convolution over frames has one plane,
// one over an image as many as it has taps in time. `padding` counts from the first row that is given, so
// that it may be negative in a stream.
struct Convolution {
  int64_t inputs, outputs, padded_outputs;
  int64_t kernel, stride, dilation, padding;
  int64_t planes, plane_rows;
  int64_t x_width, y_width;  // floats from one row of x, or of y, to the next
  const float* panels;
  const float* zeros;  // `inputs` zeros: what lies beyond both ends
  Finish finish;
};

// Weights that are multiplied as floats and kept in 1 to 8 bits: `scale * (stored - offset)`, what is stored of one
// being its code or the entry of `table` for it.
struct Coded {
  const uint8_t* blocks;  // kBlockCodes codes in `bits` vectors (packed_layout.h), in the order of a Convolution
  const uint8_t* table;   // of all 256 codes; null: a code itself
  const float *scale, *offset;  // [panel][group][outputs of panel]
  int64_t columns, groups;      // of each output
  int32_t bits;
};

constexpr int64_t kBlockCodes = 512;

// Attention; widths, limits and biases as in subtone.h. `offset` below: row of `positions` for distance 0.
struct Attention {
  int64_t heads, depth, width;
  int64_t left, right;  // -1: unlimited
  float scale;          // 1 / sqrt(depth)
  const float* content_bias;
  const float* position_bias;
};

// The rows that one run of attention sees: `rows` so far; each pointer is of row `*_base`.
struct AttentionRows {
  const float *query, *key, *value, *positions;
  int64_t query_base, key_base, value_base, rows, offset;
};

constexpr int64_t kQueries = 64;   // rows of a block of queries
constexpr int64_t kTogether = 4;   // of them that meet a row at once
constexpr int64_t kKeys = 256;     // keys transposed at once
// Floats from one transposed row to the next: an odd number of cache lines, which then crowd no set of the cache.
constexpr int64_t kKeyStride = 272, kPositionStride = 336;
static_assert(kKeyStride >= kKeys && kPositionStride >= kKeys + kQueries, "rows must not overlap");

// Floats of scratch for a block of queries; a row of `scores` has score_stride floats, one for each row that
// some query of the block sees.
struct AttentionScratch {
  float *content, *position;    // [kQueries][depth]: the queries with their biases
  float *keys, *positions;      // [depth][kKeyStride], [depth][kPositionStride]
  float* scores;                // [kQueries][score_stride]
  float* values;                // [score_stride][depth]
  int64_t score_stride;
};

// quantize: x (frames, inputs) -> levels. quantize_static: one row on the scale 1 / limit. multiply: levels of
// `frames` frames times the panels of `panels` -> y (frames, outputs), weights in bytes; multiply_codes: packed,
// without a table; multiply_indices: packed, with one. depthwise, dense: x (frames_in, x_width), whole -> frames `frames`
// of the panels `panels` of y (all frames, y_width). image_depthwise: the same with several planes, all rows given.
// decode: `width` outputs of one panel, from `first_output` on -> [column][output].
// cell_step: 16 units of an LSTM from `unit` on; of_hidden [gate][16]. transpose:
// (rows, columns), rows `stride` apart -> (columns, rows). attend: rows `queries` of one head -> y (width apart).
// narrow: int32 levels + level_offset -> bytes, unspecified beyond 0 .. 255. integer_sums: of the bytes of each frame
// and group. integer_multiply: bytes of `frames` frames times the panels of `panels`; sums null without a correction.
// integer_depthwise: as depthwise; `quads`: scratch of rows(kDepthwiseBlock) * 64 bytes. integer_image_depthwise: one row of an image, as image_depthwise.
// integer_transpose: as transpose. integer_attend: as attend. integer_cell_step: as cell_step, `limit` the largest level
// of a hidden state. Others: see subtone.h.
struct Kernels {
#define SUBTONE_KERNEL(name, arguments) void(*name) arguments;
#define SUBTONE_INTEGER_KERNEL SUBTONE_KERNEL
#include "kernels.inc"
#undef SUBTONE_INTEGER_KERNEL
#undef SUBTONE_KERNEL
};

#define SUBTONE_ISA_NAME(name) \
  namespace name {             \
  extern const Kernels kernels; \
  }
#include "kernels.inc"
#undef SUBTONE_ISA_NAME

}  // namespace subtone
#endif
