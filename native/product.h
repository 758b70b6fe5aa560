// An integer product as one worker computes its part, whoever asks for it: an engine or a product by itself.
#ifndef SUBTONE_PRODUCT_H
#define SUBTONE_PRODUCT_H

#include "engine.h"

namespace subtone {

inline int64_t panels_of(const Product& product) { return round_up(product.outputs, kPanel) / kPanel; }

// Frames whose levels a worker holds at once.
int64_t block_frames(const Product& product);

// Makes what a worker needs for `frames` frames at once; throws std::bad_alloc.
void grow_for_product(const Product& product, int64_t frames, Scratch* part);

// Rows of levels times the outputs `panels` -> to (rows, outputs), by the kernel that the weights are packed for.
void multiply_levels(const Kernels& kernels, const Product& product, const Levels& levels, int64_t frames, Span panels,
                     float* to);
// Rows `frames` of from (all rows, inputs) times the outputs `panels` -> to (all rows, outputs).
void multiply_rows(const Kernels& kernels, const Product& product, const Scratch& mine, const float* from, Span frames,
                   Span panels, float* to);

}  // namespace subtone
#endif
