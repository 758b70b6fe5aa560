// An op with its constants in the layout of kernels.h, and what it says of the rows it needs and gives.
#ifndef SUBTONE_PACK_H
#define SUBTONE_PACK_H

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "kernels.h"
#include "subtone.h"

namespace subtone {

constexpr int64_t kAlignment = 64;  // one cache line, one vector

// `count` zeroed values on a cache line; throws std::bad_alloc.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : Buffer(uninitialized(count, kAlignment)) {
    for (int64_t i = 0; i < count; ++i) data_[i] = T();
  }
  static Buffer uninitialized(int64_t count, int64_t alignment) {
    if (count < 0 || static_cast<uint64_t>(count) > PTRDIFF_MAX / sizeof(T)) throw std::bad_alloc();
    Buffer buffer;
    buffer.alignment_ = std::align_val_t(alignment);
    buffer.data_ = static_cast<T*>(operator new(static_cast<size_t>(count) * sizeof(T), buffer.alignment_));
    buffer.size_ = count;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() { operator delete(data_, alignment_); }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(alignment_, other.alignment_);
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
  std::align_val_t alignment_ = std::align_val_t(kAlignment);
};

class Slab;

enum class Kernel {  // integer-only: from kIntegerProduct on
  kMultiply, kDepthwise, kDense, kImage, kImageDepthwise, kStack, kAffine, kAdd, kTimes, kScale, kRelu, kClip,
  kFunction, kGlu, kLayerNorm, kChannelNorm, kConcat, kColumns, kEmbedding, kAttention, kSinusoids, kLstm,
  kSwitchedLstm, kIntegerProduct, kIntegerDepthwise, kIntegerImage, kIntegerImageDepthwise, kIntegerAdd,
  kIntegerTimes, kRescale, kIntegerAffine, kIntegerFunction, kIntegerGlu, kIntegerNorm, kIntegerEmbedding,
  kIntegerAttention, kIntegerSinusoids, kIntegerLstm
};

// What `coded` points into, once settled in a slab.
struct CodedWeight {
  Coded coded;
  Buffer<uint8_t> blocks, table;
  Buffer<float> scale, offset;

  bool exists() const { return coded.bits > 0; }
  void settle(Slab* slab);
};

// A weight for one kernel: `product` in integers, `convolution` in float; and what these point into. A grouped
// convolution is `groups` of them, one after the other, each padded by itself. A convolution of few bits has no `panels`
// but `codes`, decoded where they are used.
struct PackedWeight {
  Product product;
  Convolution convolution;
  CodedWeight codes;
  bool is_integer;
  int64_t groups, panel_width, columns;  // of a convolution also weights of an output
  Buffer<uint8_t> levels, table;
  Buffer<float> weights, zeros, scale, zero_point, gain, bias;

  // Moves what is read in every run there.
  void settle(Slab* slab);
  int64_t outputs() const { return is_integer ? product.outputs : convolution.outputs; }
  int64_t panels() const { return (outputs() + panel_width - 1) / panel_width; }  // of a group
  int64_t num_bytes() const {
    const int64_t num_floats = weights.size() + zeros.size() + scale.size() + zero_point.size() + gain.size() + bias.size();
    const int64_t of_levels = is_integer ? product.padded_outputs * product.row_bytes() * product.bits / 8 : 0;
    return of_levels + table.size() + num_floats * static_cast<int64_t>(sizeof(float));
  }
};

// The same of an integer-only op: a product for each group of a convolution, or one that is depthwise; or another op.
struct PackedIntegers {
  std::vector<IntegerProduct> products;
  IntegerDepthwise depthwise;
  IntegerImageDepthwise image_depthwise;
  IntegerAffine affine;
  IntegerPair pair;
  IntegerFunction function;  // of a GLU, its sigmoid; of an LSTM, its fraction_bits
  IntegerNorm norm;
  IntegerAttention attention;
  Buffer<int8_t> panels;
  Buffer<int32_t> start, multiplier, shift;
  Buffer<int32_t> table;  // of an embedding or of positions; of sinusoids the rotation
  Buffer<int32_t> content_bias, position_bias;
  Buffer<int64_t> correction, offset, places;

  void settle(Slab* slab);
  int64_t panels_of_product() const { return (products[0].outputs + kPanel - 1) / kPanel; }
};

// Rows of a convolution.
struct Taps {
  int64_t kernel, stride, dilation, padding, padding_behind;
};

// An image: x (T, channels * features), y (T', outputs * features_out); padded by zeros to `padded_features`.
struct Image {
  int64_t channels, features, features_out, feature_padding, padded_features, outputs;
  int64_t feature_kernel, feature_stride;
};

constexpr int kMaxReads = 4, kMaxWrites = 2;

struct PackedOp {
  Kernel kernel;
  int32_t reads[kMaxReads];    // input, other, third, fourth; -1 where there is none
  int32_t writes[kMaxWrites];  // output, cell
  bool relu;
  float low, high;  // kClip; kScale: the factor; norms: epsilon
  int32_t function;
  int64_t count, first;     // kStack; kColumns
  Taps taps;                // of convolutions
  Image image;              // kImage, kIntegerImage, and depthwise
  PackedWeight weight;      // products, convolutions, recurrences
  PackedWeight small;       // kSwitchedLstm
  CodedWeight coded_table;  // kEmbedding: row after row; without it `table`
  PackedIntegers integers;  // kInteger..., kRescale
  Finish finish;            // kAffine, norms
  Attention attention;      // kAttention; of kIntegerAttention its window and widths
  int64_t position_rows;    // of the table; 0: none
  Buffer<float> gain, bias, table, position_bias, zeros;
  Buffer<double> rotation;  // kSinusoids

  bool is_convolution() const {
    return kernel == Kernel::kMultiply || kernel == Kernel::kDepthwise || kernel == Kernel::kDense ||
           kernel == Kernel::kImage || kernel == Kernel::kImageDepthwise || kernel == Kernel::kIntegerProduct ||
           kernel == Kernel::kIntegerDepthwise || is_integer_image();
  }
  bool is_integer_image() const {
    return kernel == Kernel::kIntegerImage || kernel == Kernel::kIntegerImageDepthwise;
  }
  bool is_integer() const { return kernel >= Kernel::kIntegerProduct; }
  bool is_recurrent() const {
    return kernel == Kernel::kLstm || kernel == Kernel::kSwitchedLstm || kernel == Kernel::kIntegerLstm;
  }
  bool is_attention() const { return kernel == Kernel::kAttention || kernel == Kernel::kIntegerAttention; }
  // Rows of its results that exist once the values it reads have rows[0 .. 3] rows.
  int64_t end(const int64_t* rows, bool is_last) const;
  // The first row of its read `which` that results from `row` on depend on.
  int64_t first_needed(int which, int64_t row) const;
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Which values `op` reads and writes, -1 where it needs none; SUBTONE_VALUE for a kind that does not exist.
int32_t pack_values(const subtone_op& op, PackedOp* packed);
// Checks `op` (of values with these widths, after pack_values) and packs it; a subtone_status. May throw std::bad_alloc.
int32_t pack(const subtone_op& op, const int64_t* widths, PackedOp* packed);
// 0 .. count - 1: every output has the row of its own number.
std::vector<int64_t> in_order(int64_t count);

// The parts of pack() that are about weights (pack_weights.cc). `source[n]`: row of the weight that is output n; -1
// is an output of nothing but zeros. Both check the weight and its pointers, not its shape.
int32_t pack_product(const subtone_weight& from, const std::vector<int64_t>& source, const float* gain,
                     const float* bias, bool relu, PackedWeight* packed);
// The levels (outputs, inputs) of a product whose outputs are the rows of its weight in order.
void unpack_product(const Product& product, int8_t* levels);
// A weight of few bits for a float op: `parts` times so many outputs, each part padded to `padded`, in panels of
// `panel_width` (pack_codes.cc). Checks the weight and its pointers, not its shape.
int32_t pack_coded(const subtone_weight& from, const std::vector<int64_t>& source, int64_t parts, int64_t padded,
                   int64_t panel_width, CodedWeight* packed);
// All columns of one output of a weight in panels of one.
void decode_row(const Coded& coded, int64_t output, float* to);
// A weight of planes x kernel taps, `depth` inputs of each group. is_depthwise: one input for each output.
int32_t pack_convolution(const subtone_weight& from, const std::vector<int64_t>& source, int64_t groups, int64_t depth,
                         int64_t planes, int64_t kernel, bool is_depthwise, const float* gain, const float* bias,
                         bool relu, PackedWeight* packed);
// The rows that a convolution's op names; of one over an image also its features, for values of these widths.
int32_t pack_taps(const subtone_op& op, PackedOp* packed);
int32_t pack_image(const subtone_op& op, int64_t width, int64_t width_out, PackedOp* packed);
// Heads, widths, limits and rows of positions of an attention; SUBTONE_NULL for a table that `positions` is not.
int32_t pack_window(const subtone_op& op, const int64_t* widths, const void* positions, PackedOp* packed);
// pack() for the ops of integer-only programs (pack_integers.cc), and for those of them that are no product, sum or
// affine (pack_integer_sequences.cc).
int32_t pack_integers(const subtone_op& op, const int64_t* widths, PackedOp* packed);
int32_t pack_integer_sequences(const subtone_op& op, const int64_t* widths, PackedOp* packed);
// An integer product for each of `parts` groups of rows; op.weight.rows of them in all.
int32_t pack_products(const subtone_op& op, int64_t parts, int64_t panel_width, PackedIntegers* packed);

inline bool is_shift(int32_t shift) { return shift >= 1 && shift <= SUBTONE_MAX_SHIFT; }
inline int64_t wrapped_product(int64_t left, int64_t right) {
  return static_cast<int64_t>(static_cast<uint64_t>(left) * static_cast<uint64_t>(right));
}
inline int64_t wrapped_sum(int64_t left, int64_t right) {
  return static_cast<int64_t>(static_cast<uint64_t>(left) + static_cast<uint64_t>(right));
}

// `values` (source, or null for all `absent`), followed by zeros up to `padded`.
Buffer<float> padded_copy(const float* values, float absent, int64_t count, int64_t padded);

}  // namespace subtone
#endif
