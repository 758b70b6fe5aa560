// One place for the levels of all products of an engine.
#ifndef SUBTONE_SLAB_H
#define SUBTONE_SLAB_H

#include <cstdint>
#include <vector>

#include "pack.h"

namespace subtone {

// Bytes one behind the other in chunks on huge pages, if the operating system has them: a whole model is read once for
// each frame of a stream, and a processor that must look up a page every 4 KiB reads it at half the speed (docs/lab-log.md).
// The first chunk is on plain pages, since a small model should not cost 2 MiB.
class Slab {
 public:
  // A copy of `count` bytes on a cache line; throws std::bad_alloc.
  const uint8_t* keep(const void* bytes, int64_t count);

 private:
  std::vector<Buffer<uint8_t>> chunks_;
  int64_t used_ = 0;  // of the last chunk
};

}  // namespace subtone
#endif
