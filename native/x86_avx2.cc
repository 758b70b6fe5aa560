// The kernels with AVX2, for machines without VNNI: one source with NEON's, in the vectors of avx2_vectors.h.
//
// Products of floats are rounded before they are added (FMA is not even switched on). Nothing saturates: bytes are
// multiplied as 16-bit numbers, which takes four times the instructions that VNNI does.
#include <immintrin.h>

#include "kernels.h"

namespace subtone {
namespace avx2 {
namespace {

#include "functions.h"
#include "avx2_vectors.h"
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

}  // namespace avx2
}  // namespace subtone
