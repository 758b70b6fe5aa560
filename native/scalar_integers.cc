// The kernels of integer-only programs in plain C++. In a file of their own, so that they can be compiled for a
// processor without floating-point registers: native/check_no_floats.sh does, and runs the tests on them.
#include "kernels.h"

namespace subtone {
namespace scalar {

static int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

#include "plain_levels.h"
#include "scalar_integers.h"
#include "scalar_numbers.h"
#include "window.h"
#include "integer_functions.h"
#include "integer_rowwise.h"
#include "integer_attention.h"

}  // namespace scalar
}  // namespace subtone
