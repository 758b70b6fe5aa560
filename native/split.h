// Which part of an op's frames, outputs or heads is one worker's.
#ifndef SUBTONE_SPLIT_H
#define SUBTONE_SPLIT_H

#include "kernels.h"

namespace subtone {

constexpr int64_t kSplitFrames = 24;  // frames are split in multiples of this: whole tiles of 6 and of 8

inline Span split(int64_t count, int64_t quantum, int worker, int workers) {
  const int64_t parts = (count + quantum - 1) / quantum;
  const int64_t first = parts * worker / workers * quantum;
  const int64_t last = parts * (worker + 1) / workers * quantum;
  return {first < count ? first : count, last < count ? last : count};
}

struct Share {
  Span frames, panels;
};

// A worker's share of frames x panels. Few frames are not split: each would see all the weights.
inline Share share_of(int64_t frames, int64_t panels, int worker, int workers, int64_t quantum = kSplitFrames) {
  if (frames >= workers * quantum) return {split(frames, quantum, worker, workers), {0, panels}};
  return {{0, frames}, split(panels, 1, worker, workers)};
}

}  // namespace subtone
#endif
