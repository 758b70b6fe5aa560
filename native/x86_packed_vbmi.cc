// With VBMI too a look-up of 64 bytes in 64 entries is one instruction.
#define SUBTONE_PACKED_NAMESPACE avx512vbmi
#include "x86_packed.h"
