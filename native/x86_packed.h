// multiply_indices of the instruction set SUBTONE_PACKED_NAMESPACE, which the file that includes this defines.
#include <immintrin.h>

#include "kernels.h"

namespace subtone {
namespace SUBTONE_PACKED_NAMESPACE {
namespace {

#include "avx512_vectors.h"
#include "vectors.h"
#include "avx512_packed.h"

}  // namespace

void multiply_indices(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y) {
  multiply_packed<true>(product, levels, frames, panels, y);
}

}  // namespace SUBTONE_PACKED_NAMESPACE
}  // namespace subtone
