// The table of kernels for an instruction set, by name.
#ifndef SUBTONE_DISPATCH_H
#define SUBTONE_DISPATCH_H

#include "kernels.h"

namespace subtone {

// Null where this machine lacks the instruction set, or the library never had it.
const Kernels* find_kernels(const char* isa);

}  // namespace subtone
#endif
