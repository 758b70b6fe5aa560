// Attention of one head for a block of queries, as sequence_ops.py defines it: one source for every instruction
// set, around two loops that each writes for itself:
//
//   combine(factors, count, rows, stride, width, y): y[j] = sum_i factors[i] * rows[i * stride + j], i ascending
//   transpose(from, stride, rows, depth, to, to_stride): to[d * to_stride + r] = from[r * stride + d]
//
// Each score is a sum over a head's columns in ascending order, so keys are transposed (256 at a time) and a
// vector holds the scores of 16 of them. Included inside the namespace of one instruction set, after functions.h.

void attend(const Attention& op, const AttentionRows& in, int64_t head, Span queries, const AttentionScratch& scratch,
            float* y) {
  const auto least = [](int64_t left, int64_t right) { return left < right ? left : right; };
  const auto most = [](int64_t left, int64_t right) { return left > right ? left : right; };
  const int64_t depth = op.depth, column = head * depth, rows = in.rows;
  const auto lowest = [&](int64_t t) { return op.left < 0 ? 0 : most(0, t - op.left); };
  const auto highest = [&](int64_t t) { return op.right < 0 ? rows : least(rows, t + op.right + 1); };
  for (int64_t t = queries.first; t < queries.last; ++t) {
    const float* query = in.query + (t - in.query_base) * op.width + column;
    float* content = scratch.content + (t - queries.first) * depth;
    float* position = scratch.position + (t - queries.first) * depth;
    for (int64_t d = 0; d < depth; ++d) {
      content[d] = op.content_bias ? query[d] + op.content_bias[column + d] : query[d];
      position[d] = op.position_bias ? query[d] + op.position_bias[column + d] : query[d];
    }
  }
  const int64_t end = highest(queries.last - 1);
  for (int64_t chunk = lowest(queries.first); chunk < end; chunk += kKeys) {
    const int64_t chunk_end = least(chunk + kKeys, end);
    transpose(in.key + (chunk - in.key_base) * op.width + column, op.width, chunk_end - chunk, depth, scratch.keys,
              kKeys);
    // Row in.offset - (t - s) of the positions, for those pairs of the block that see each other.
    const int64_t size = op.left < 0 ? 2 * rows - 1 : op.left + op.right + 1;
    const int64_t row0 = most(0, in.offset - (queries.last - 1) + chunk);
    const int64_t row1 = least(size, in.offset - queries.first + chunk_end);
    if (in.positions && row0 < row1)
      transpose(in.positions + row0 * op.width + column, op.width, row1 - row0, depth, scratch.positions,
                kKeys + kQueries);
    for (int64_t t = queries.first; t < queries.last; ++t) {
      const int64_t first = most(chunk, lowest(t)), count = least(chunk_end, highest(t)) - first;
      if (count <= 0) continue;
      const int64_t index = t - queries.first;
      float* scores = scratch.scores + index * scratch.score_stride + (first - lowest(t));
      combine(scratch.content + index * depth, depth, scratch.keys + (first - chunk), kKeys, count, scores);
      if (in.positions) {
        float more[kKeys];
        const int64_t row = in.offset - (t - first);
        combine(scratch.position + index * depth, depth, scratch.positions + (row - row0), kKeys + kQueries, count,
                more);
        for (int64_t s = 0; s < count; ++s) scores[s] = scores[s] + more[s];
      }
      for (int64_t s = 0; s < count; ++s) scores[s] = scores[s] * op.scale;
    }
  }
  for (int64_t t = queries.first; t < queries.last; ++t) {
    float* scores = scratch.scores + (t - queries.first) * scratch.score_stride;
    const int64_t first = lowest(t), count = highest(t) - first;
    float largest[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) largest[i] = scores[0];
    int64_t s = 0;
    for (; s + kLanes <= count; s += kLanes)
      for (int64_t i = 0; i < kLanes; ++i) largest[i] = scores[s + i] > largest[i] ? scores[s + i] : largest[i];
    for (int64_t i = 0; s + i < count; ++i) largest[i] = scores[s + i] > largest[i] ? scores[s + i] : largest[i];
    for (int64_t i = 1; i < kLanes; ++i) largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
    for (s = 0; s < count; ++s) scores[s] = exponential(scores[s] - largest[0]);
    float* to = y + (t - queries.first) * op.width + column;
    combine(scores, count, in.value + (first - in.value_base) * op.width + column, op.width, depth, to);
    const float mass = lane_sum(scores, count);
    for (int64_t d = 0; d < depth; ++d) to[d] = to[d] / mass;
  }
}
