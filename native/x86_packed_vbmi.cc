// With VBMI too a look-up of 64 bytes in 64 entries is one instruction. The instruction set that has it, and all else of
// x86_avx512.cc.
#define SUBTONE_ISA avx512vbmi
#include "x86_packed.h"

namespace subtone {
namespace avx512vbmi {
namespace {

Kernels with_indices(Kernels of_vnni) {
  of_vnni.multiply_indices = multiply_indices;
  return of_vnni;
}

}  // namespace

const Kernels kernels = with_indices(avx512vnni::kernels);

}  // namespace avx512vbmi
}  // namespace subtone
