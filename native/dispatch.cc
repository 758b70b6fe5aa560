// Which instruction sets this machine has, and what a status means in words.
#include "dispatch.h"

#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "subtone.h"

namespace subtone {
namespace {

bool has_scalar() { return true; }

#if defined(__x86_64__)
// Asks the processor and the operating system (which must save the wide registers).
bool has_avx512vnni() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
bool has_avx512vbmi() { return has_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}
#elif defined(__aarch64__)
// NEON itself is part of every such processor; its dot products of bytes are not.
bool has_neon() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__ARM_FEATURE_DOTPROD)
  return true;  // what the whole library is compiled for
#else
  return false;
#endif
}
#endif

struct Isa {
  const char* name;
  bool (*is_available)();
  const Kernels* kernels;
};

const Isa kIsas[] = {
#define SUBTONE_ISA_NAME(name) {#name, has_##name, &name::kernels},
#include "kernels.inc"
#undef SUBTONE_ISA_NAME
};

}  // namespace

const Kernels* find_kernels(const char* isa) {
  for (const Isa& entry : kIsas)
    if (std::strcmp(entry.name, isa) == 0) return entry.is_available() ? entry.kernels : nullptr;
  return nullptr;
}

}  // namespace subtone

extern "C" {

int32_t subtone_abi(void) { return SUBTONE_ABI; }

int32_t subtone_isas(const char** names, int32_t capacity) {
  int32_t count = 0;
  for (const subtone::Isa& entry : subtone::kIsas)
    if (entry.is_available()) {
      if (names && count < capacity) names[count] = entry.name;
      ++count;
    }
  return count;
}

const char* subtone_status_text(int32_t status) {
  switch (status) {
    case SUBTONE_OK: return "done";
    case SUBTONE_NULL: return "a pointer that is needed is null";
    case SUBTONE_SIZE: return "a size is zero, negative, beyond its limit, or does not fit another";
    case SUBTONE_VALUE: return "an op names a value that does not exist or is not written before it";
    case SUBTONE_PLAN: return "rows, offsets, the arena or the state do not fit the program";
    case SUBTONE_ISA: return "the instruction set is unknown or absent on this machine";
    case SUBTONE_MEMORY: return "out of memory";
    case SUBTONE_THREADS: return "the operating system starts no more threads; use fewer";
    case SUBTONE_FORKED: return "the engine was made before this process was forked; make it after";
    case SUBTONE_RANGE: return "a number is not finite, an epsilon not above 0, a clip's ends do not ascend, or a shift or fraction_bits are out of range";
    default: return "a status this library does not have";
  }
}

}  // extern "C"
