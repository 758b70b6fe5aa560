// Which part of an op's frames, outputs or heads is one worker's.
#ifndef SUBTONE_SPLIT_H
#define SUBTONE_SPLIT_H

#include "kernels.h"

namespace subtone {

constexpr int64_t kSplitFrames = 24;  // whole tiles of 6 and of 8; fewer for each worker are not worth splitting

inline Span split(int64_t count, int64_t quantum, int worker, int workers) {
  const int64_t parts = (count + quantum - 1) / quantum;
  const int64_t first = parts * worker / workers * quantum;
  const int64_t last = parts * (worker + 1) / workers * quantum;
  return {first < count ? first : count, last < count ? last : count};
}

struct Share {
  Span frames, panels;
};

// Of `count` in multiples of `quantum`, what the worker that has most of them has.
inline int64_t largest_part(int64_t count, int64_t quantum, int workers) {
  const int64_t parts = (count + quantum - 1) / quantum, most = (parts + workers - 1) / workers * quantum;
  return most < count ? most : count;
}

// A worker's share of frames x panels. Few frames are not split: each would see all the weights. Nor are frames in
// which one worker has three in a hundred more to do than if the panels were split; what is split does not change the bits.
inline Share share_of(int64_t frames, int64_t panels, int worker, int workers, int64_t quantum = kSplitFrames) {
  const int64_t least = quantum == 1 ? 1 : kSplitFrames;
  const int64_t by_frames = largest_part(frames, quantum, workers) * panels;
  const int64_t by_panels = largest_part(panels, 1, workers) * frames;
  if (frames >= workers * least && 100 * by_frames <= 103 * by_panels)
    return {split(frames, quantum, worker, workers), {0, panels}};
  return {{0, frames}, split(panels, 1, worker, workers)};
}

}  // namespace subtone
#endif
