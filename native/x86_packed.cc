// The kernels of packed weights with AVX-512 F, BW, VL and VNNI alone; x86_avx512.cc has the others.
#define SUBTONE_PACKED_NAMESPACE avx512vnni
#include "x86_packed.h"

namespace subtone {
namespace avx512vnni {

void multiply_codes(const Product& product, const Levels& levels, int64_t frames, Span panels, float* y) {
  multiply_packed<false>(product, levels, frames, panels, y);
}

}  // namespace avx512vnni
}  // namespace subtone
