// An op with its constants in the layout of kernels.h.
#ifndef SUBTONE_PACK_H
#define SUBTONE_PACK_H

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "kernels.h"
#include "subtone.h"

namespace subtone {

constexpr int64_t kAlignment = 64;  // one cache line, one vector

// `count` zeroed values on a cache line; throws std::bad_alloc.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : size_(count) {
    if (count < 0 || static_cast<uint64_t>(count) > PTRDIFF_MAX / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t(kAlignment)));
    for (int64_t i = 0; i < count; ++i) data_[i] = T();
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { operator delete(data_, std::align_val_t(kAlignment)); }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

enum class Kernel { kMultiply, kDepthwise, kDense, kAffine, kAdd, kRelu, kClip };

struct PackedOp {
  Kernel kernel;
  int32_t input, other, output;  // `other` is `input` where an op has only one
  bool relu;
  float low, high;          // kClip
  Product product;          // kMultiply
  Convolution convolution;  // kDepthwise, kDense
  Finish finish;            // kAffine
  // What the three above point into.
  Buffer<uint8_t> levels;
  Buffer<float> weights, zeros, scale, zero_point, gain, bias;

  // Frames of the output for `frames` of the input.
  int64_t frames_out(int64_t frames) const;
};

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Checks `op` (of values with these widths) and packs it; a subtone_status. May throw std::bad_alloc.
int32_t pack(const subtone_op& op, const int64_t* widths, PackedOp* packed);

}  // namespace subtone
#endif
