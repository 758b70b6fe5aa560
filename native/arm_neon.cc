// The kernels with NEON and its dot products (ARMv8.2-A and later): one source with AVX2's, in the vectors of
// neon_vectors.h.
#include <arm_neon.h>

#include "kernels.h"

namespace subtone {
namespace neon {
namespace {

#include "functions.h"
#include "neon_vectors.h"
#include "vectors.h"
#include "vector_quads.h"
#include "packed_layout.h"
#include "plain_codes.h"
#include "vector_products.h"
#include "vector_attention.h"
#include "vector_convolutions.h"
#include "vector_integers.h"
#include "vector_integer_convolutions.h"
#include "vector_numbers.h"
#include "quotients.h"
#include "plain_rows.h"
#include "plain_levels.h"
#include "rowwise.h"
#include "window.h"
#include "attention.h"
#include "integer_functions.h"
#include "integer_rowwise.h"
#include "integer_attention.h"

}  // namespace

const Kernels kernels = {
#define SUBTONE_KERNEL(name, arguments) name,
#define SUBTONE_INTEGER_KERNEL SUBTONE_KERNEL
#include "kernels.inc"
#undef SUBTONE_INTEGER_KERNEL
#undef SUBTONE_KERNEL
};

}  // namespace neon
}  // namespace subtone
