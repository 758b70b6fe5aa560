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

// What the worker that has most of `count` has of it.
inline int64_t largest_part(int64_t count, int64_t quantum, int workers) {
  int64_t most = 0;
  for (int worker = 0; worker < workers; ++worker) {
    const Span part = split(count, quantum, worker, workers);
    if (part.last - part.first > most) most = part.last - part.first;
  }
  return most;
}

// A worker's share of frames x panels. Few frames are not split: each would see all the weights. Nor are frames, but
// those of an image (a quantum of 1), of which one worker would have 3 % more to do than of split panels. What is split
// changes no bits.
inline Share share_of(int64_t frames, int64_t panels, int worker, int workers, int64_t quantum = kSplitFrames) {
  const Share by_frames = {split(frames, quantum, worker, workers), {0, panels}};
  if (quantum == 1 && frames >= workers) return by_frames;
  const int64_t most_frames = largest_part(frames, quantum, workers) * panels;
  const int64_t most_panels = largest_part(panels, 1, workers) * frames;
  if (frames >= workers * kSplitFrames && 100 * most_frames <= 103 * most_panels) return by_frames;
  return {{0, frames}, split(panels, 1, worker, workers)};
}

}  // namespace subtone
#endif
