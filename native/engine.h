// The engine behind the C ABI: a list of packed ops, an arena, and the threads that run them.
//
// Every op is split among the threads by position (frames, outputs, heads), never by who is faster, and each float
// is computed by one thread in one order: the bits do not depend on the number of threads.
#ifndef SUBTONE_ENGINE_H
#define SUBTONE_ENGINE_H

#include <sys/types.h>

#include <memory>
#include <vector>

#include "pack.h"
#include "pool.h"
#include "slab.h"
#include "subtone.h"

namespace subtone {

// What one worker holds beside the arena.
struct Scratch {
  Buffer<int8_t> levels;  // of a block of frames
  Buffer<int32_t> sums;
  Buffer<uint8_t> bytes, image_levels;  // of an integer-only program: levels of a block; of one row of an image
  Buffer<int32_t> products;             // of a block of features; a row of an image, features first
  Buffer<float> scale;
  Buffer<float> row;             // a product of one row
  Buffer<float> decoded;         // weights of few bits that float ops multiply, some panels at a time
  Buffer<float> image, result;   // of one row of a convolution over an image
  Buffer<float> queries, keys;   // of attention, both for both kinds of scores
  Buffer<float> scores;          // and values of attention; its size depends on the rows of a run, as that of
};                               // `bytes` and `products` does for attention in integers

// What attention in integers needs of `bytes` and `products` for blocks of queries that see `keys` rows, a multiple
// of kDotLanes.
struct AttentionSizes {
  int64_t bytes, products;
};
AttentionSizes sizes_of(const PackedOp& op, int64_t keys);

}  // namespace subtone

struct subtone_engine {
  subtone_engine(const subtone::Kernels& table, int32_t threads, std::vector<int64_t> value_widths, int32_t num_inputs,
                 int32_t output_value);

  // Program (program.cc).
  int32_t append(const subtone_op& op);
  int32_t check(const subtone_rows* value_rows, int64_t state_size, int64_t new_state_size) const;
  // Scratch that grows with the rows of a run; throws std::bad_alloc.
  void prepare(const subtone_rows* value_rows);

  // One run (execute.cc): the caller's part before it, and a worker's.
  void begin(const float* state, float* new_state);
  void work(int worker);

  bool is_input(int32_t value) const { return value < num_inputs; }
  int64_t width(int32_t value) const { return widths[static_cast<size_t>(value)]; }

  const subtone::Kernels& kernels;
  const std::vector<int64_t> widths;
  const int32_t num_inputs, output;
  std::vector<bool> is_written;
  std::vector<int32_t> saved_by;  // the first op that reads a value, which also saves it; -1: none
  std::vector<std::unique_ptr<subtone::PackedOp>> ops;
  subtone::Slab weights;
  std::vector<subtone::Scratch> scratch;
  subtone::Buffer<uint8_t> arena;
  const pid_t process;
  // Of the run in progress.
  const subtone_rows* rows = nullptr;
  const float* const* inputs = nullptr;
  float* y = nullptr;
  std::vector<const float*> carried;  // of every value: rows base .. first - 1
  std::vector<float*> kept;           // of every value: where rows keep .. end - 1 go
  subtone::Pool pool;                 // last: its threads end before what they use

 private:
  bool has_place(int32_t value, const subtone_rows* value_rows) const;
  bool has_sound_rows(int32_t value, const subtone_rows* value_rows) const;
  bool has_ends(const subtone_rows* value_rows, bool is_last) const;
  bool has_what_it_needs(const subtone::PackedOp& op, const subtone_rows* value_rows) const;
  bool overlap(int32_t left, int32_t right, const subtone_rows* value_rows) const;
  void execute(const subtone::PackedOp& op, int worker);
  void execute_elementwise(const subtone::PackedOp& op, int worker);
  void execute_weight(const subtone::PackedOp& op, int worker);
  void execute_image(const subtone::PackedOp& op, int worker);
  void gather_image(const subtone::PackedOp& op, int64_t row, float* image) const;
  // Floats for the scores of one query of a block: the rows that some query of the block sees.
  int64_t score_stride(const subtone::PackedOp& op, const subtone_rows* value_rows) const;
  void execute_attention(const subtone::PackedOp& op, int worker);
  void execute_sinusoids(const subtone::PackedOp& op, int worker);
  void execute_recurrence(const subtone::PackedOp& op, int worker);
  void recur(const subtone::PackedWeight& weight, const float* gates, int64_t units, const float* hidden,
             const float* cell, float* new_hidden, float* new_cell, int worker, int workers);
  void multiply(const subtone::Product& product, const float* from, int64_t num_frames, int worker, float* to);
  void recur_integers(const subtone::PackedOp& op, const int32_t* gates, int64_t units, const int32_t* hidden,
                      const int32_t* cell, int32_t* new_hidden, int32_t* new_cell, int worker, int workers);
  void execute_integers(const subtone::PackedOp& op, int worker);
  void execute_integer_attention(const subtone::PackedOp& op, int worker);
  void execute_integer_sinusoids(const subtone::PackedOp& op, int worker);
  void execute_integer_product(const subtone::PackedOp& op, int worker);
  void execute_integer_depthwise(const subtone::PackedOp& op, int worker);
  void execute_integer_image(const subtone::PackedOp& op, int worker);
  void gather_levels(const subtone::PackedOp& op, const subtone::IntegerProduct& product, int64_t group, int64_t row,
                     int64_t count, uint8_t* levels) const;
  void gather_image_levels(const subtone::PackedOp& op, int64_t row, const subtone::Scratch& mine) const;
  void gather_features(const subtone::PackedOp& op, const subtone::IntegerProduct& product, int64_t group,
                       subtone::Span features, const subtone::Scratch& mine) const;
  void multiply_levels(const subtone::IntegerProduct& product, int64_t count, subtone::Span panels, int worker,
                       int32_t* to);
  // Row `base` of a value; its row `row`; its first new row.
  float* held(int32_t value) const;
  const float* at(int32_t value, int64_t row) const { return held(value) + (row - rows[value].base) * width(value); }
  float* fresh(int32_t value) const { return held(value) + (rows[value].first - rows[value].base) * width(value); }
  // The same items in an integer-only program.
  static int32_t* integers_of(float* items) { return reinterpret_cast<int32_t*>(items); }
  static const int32_t* integers_of(const float* items) { return reinterpret_cast<const int32_t*>(items); }
  const int32_t* integers_at(int32_t value, int64_t row) const {
    return reinterpret_cast<const int32_t*>(at(value, row));
  }
  void restore(int32_t value) const;
  void save(int32_t value) const;
};

#endif
