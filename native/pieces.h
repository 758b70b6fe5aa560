// Which part of a float convolution its kernel is given at once: outputs of one group, and of weights of few bits so
// many panels as were decoded. Panels are counted through all groups.
#ifndef SUBTONE_PIECES_H
#define SUBTONE_PIECES_H

#include "pack.h"

namespace subtone {

// Floats that are decoded at once, unless one panel has more: they are read again while they lie in the second cache.
constexpr int64_t kDecodedFloats = 1 << 16;

// The weights of panel `first` and those behind it.
struct Panels {
  const float* weights;
  int64_t first;
};

// Outputs, padding included, before those of panel `panel`.
inline int64_t outputs_before(const PackedWeight& weight, int64_t panel) {
  return panel / weight.panels() * weight.convolution.padded_outputs + panel % weight.panels() * weight.panel_width;
}

inline int64_t panels_at_once(const PackedWeight& weight) {
  const int64_t panels = kDecodedFloats / (weight.panel_width * weight.columns);
  return panels ? panels : 1;
}

// What each_decoded needs room for.
inline int64_t decoded_floats(const PackedWeight& weight) {
  if (weight.is_integer || !weight.codes.exists()) return 0;
  const int64_t outputs = panels_at_once(weight) * weight.panel_width;
  const int64_t all = weight.groups * weight.convolution.padded_outputs;
  return weight.columns * (outputs < all ? outputs : all);
}

// Calls body(some of the panels `panels`, their weights) until all have been had: those of floats at once, those of few
// bits as they are decoded.
template <typename Body>
void each_decoded(const Kernels& kernels, const PackedWeight& weight, Span panels, float* decoded, const Body& body) {
  if (!weight.codes.exists()) return body(panels, Panels{weight.convolution.panels, 0});
  const int64_t at_once = panels_at_once(weight);
  for (int64_t first = panels.first; first < panels.last; first += at_once) {
    const int64_t last = panels.last - first < at_once ? panels.last : first + at_once;
    const int64_t start = outputs_before(weight, first);
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t output = outputs_before(weight, panel), rest = outputs_before(weight, panel + 1) - output;
      kernels.decode(weight.codes.coded, output, rest, decoded + (output - start) * weight.columns);
    }
    body(Span{first, last}, Panels{decoded, first});
  }
}

// Calls body(convolution, group, output, its panels) for the panels `panels`, group by group: what the convolution
// gives, and reads if it is depthwise, begins at that output of the group.
template <typename Body>
void each_piece(const PackedWeight& weight, const Convolution& all, Span panels, const Panels& from, const Body& body) {
  const int64_t of_group = weight.panels();
  for (int64_t panel = panels.first; panel < panels.last;) {
    const int64_t group = panel / of_group, within = panel % of_group, output = within * weight.panel_width;
    const int64_t rest = panels.last - panel, count = of_group - within < rest ? of_group - within : rest;
    Convolution piece = all;
    piece.panels = from.weights + (outputs_before(weight, panel) - outputs_before(weight, from.first)) * weight.columns;
    piece.outputs -= output;
    piece.padded_outputs -= output;
    piece.finish.gain += outputs_before(weight, panel);
    piece.finish.bias += outputs_before(weight, panel);
    body(piece, group, output, Span{0, count});
    panel += count;
  }
}

}  // namespace subtone
#endif
