// multiply_indices of the instruction set SUBTONE_ISA, which the file that includes this defines.
#include <immintrin.h>

#include "kernels.h"

namespace subtone {
namespace SUBTONE_ISA {
namespace {

#include "avx512_vectors.h"
#include "vectors.h"
#include "avx512_packed.h"

}  // namespace

void multiply_indices(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y) {
  multiply_packed<true>(product, levels, frames, panels, y);
}

}  // namespace SUBTONE_ISA
}  // namespace subtone
