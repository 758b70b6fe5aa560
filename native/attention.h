// Attention of one head for a block of queries, as sequence_ops.py defines it: one source for every instruction
// set, around two loops that each writes for itself:
//
//   combine(factors, factor_stride, num_sums, count, rows, stride, width, y, y_stride):
//     y[q][j] = sum_i factors[q][i] * rows[i][j], i ascending from +0; num_sums at most kTogether
//   transpose(from, stride, rows, columns, to, to_stride): to[c][r] = from[r][c]
//
// Each score is a sum over a head's columns in ascending order, so keys are transposed (256 at a time) and a
// vector holds the scores of 16 of them. Four queries go together, over all rows that one of them sees: a score
// too many is never looked at, and a row that a query does not see meets the weight 0, which changes no bit of a
// sum from +0. Included inside the namespace of one instruction set, after functions.h and
// window.h.

// The queries with each bias, in rows of their own.
void bias_queries(const Attention& op, const AttentionRows& in, int64_t column, Span queries,
                  const AttentionScratch& scratch) {
  for (int64_t t = queries.first; t < queries.last; ++t) {
    const float* query = in.query + (t - in.query_base) * op.width + column;
    float* content = scratch.content + (t - queries.first) * op.depth;
    float* position = scratch.position + (t - queries.first) * op.depth;
    for (int64_t d = 0; d < op.depth; ++d) {
      content[d] = op.content_bias ? query[d] + op.content_bias[column + d] : query[d];
      position[d] = op.position_bias ? query[d] + op.position_bias[column + d] : query[d];
    }
  }
}

// Scores of the rows `keys`, at most kKeys, for all queries; before the factor 1 / sqrt(depth).
void score(const Attention& op, const AttentionRows& in, int64_t column, Span queries, Span keys,
           const AttentionScratch& scratch) {
  const Window window = {op.left, op.right, in.rows};
  const int64_t lowest = window.lowest(queries.first), depth = op.depth;
  transpose(in.key + (keys.first - in.key_base) * op.width + column, op.width, keys.last - keys.first, depth,
            scratch.keys, kKeyStride);
  // Row in.offset - (t - s) of the positions, for those pairs of the block that see each other.
  const int64_t size = op.left < 0 ? 2 * in.rows - 1 : op.left + op.right + 1;
  const Span places = {most(0, in.offset - (queries.last - 1) + keys.first),
                       least(size, in.offset - queries.first + keys.last)};
  if (in.positions && places.first < places.last)
    transpose(in.positions + places.first * op.width + column, op.width, places.last - places.first, depth,
              scratch.positions, kPositionStride);
  for (int64_t t = queries.first; t < queries.last; t += kTogether) {
    const int64_t together = least(kTogether, queries.last - t);
    const int64_t first = most(keys.first, window.lowest(t));
    const int64_t count = least(keys.last, window.highest(t + together - 1)) - first;
    if (count <= 0) continue;
    float* scores = scratch.scores + (t - queries.first) * scratch.score_stride + (first - lowest);
    combine(scratch.content + (t - queries.first) * depth, depth, together, depth, scratch.keys + (first - keys.first),
            kKeyStride, count, scores, scratch.score_stride);
    if (!in.positions) continue;
    const int64_t place0 = most(places.first, in.offset - (t + together - 1) + first);
    const int64_t place1 = least(places.last, in.offset - t + first + count);
    if (place0 >= place1) continue;
    float more[kTogether * (kKeys + kTogether)];
    combine(scratch.position + (t - queries.first) * depth, depth, together, depth,
            scratch.positions + (place0 - places.first), kPositionStride, place1 - place0, more, kKeys + kTogether);
    for (int64_t q = 0; q < together; ++q) {
      const int64_t from = most(first, window.lowest(t + q)), to = least(first + count, window.highest(t + q));
      const float* own = more + q * (kKeys + kTogether) + (in.offset - (t + q) + from - place0);
      float* sums = scores + q * scratch.score_stride + (from - first);
      for (int64_t s = 0; s < to - from; ++s) sums[s] = sums[s] + own[s];
    }
  }
}

// Scores become e^(score - largest), of `count` rows; their sum in lanes.
float weigh(float* scores, int64_t count, float scale) {
  float largest[kLanes];
  for (int64_t s = 0; s < count; ++s) scores[s] = scores[s] * scale;
  for (int64_t i = 0; i < kLanes; ++i) largest[i] = scores[0];
  int64_t s = 0;
  for (; s + kLanes <= count; s += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) largest[i] = scores[s + i] > largest[i] ? scores[s + i] : largest[i];
  for (int64_t i = 0; s + i < count; ++i) largest[i] = scores[s + i] > largest[i] ? scores[s + i] : largest[i];
  for (int64_t i = 1; i < kLanes; ++i) largest[0] = largest[i] > largest[0] ? largest[i] : largest[0];
  const float highest = largest[0];
  for (s = 0; s < count; ++s) scores[s] = exponential(scores[s] - highest);
  return lane_sum(scores, count);
}

void attend(const Attention& op, const AttentionRows& in, int64_t head, Span queries, const AttentionScratch& scratch,
            float* y) {
  const Window window = {op.left, op.right, in.rows};
  const int64_t column = head * op.depth, lowest = window.lowest(queries.first);
  const int64_t end = window.highest(queries.last - 1);
  bias_queries(op, in, column, queries, scratch);
  // Values are read again and again: in rows of their own, since rows far apart crowd few sets of the cache.
  const float* value = in.value + (lowest - in.value_base) * op.width + column;
  for (int64_t s = 0; s < end - lowest; ++s)
    for (int64_t d = 0; d < op.depth; ++d) scratch.values[s * op.depth + d] = value[s * op.width + d];
  for (int64_t first = lowest; first < end; first += kKeys)
    score(op, in, column, queries, {first, least(first + kKeys, end)}, scratch);
  for (int64_t t = queries.first; t < queries.last; t += kTogether) {
    const int64_t together = least(kTogether, queries.last - t);
    const Span seen = {window.lowest(t), window.highest(t + together - 1)};
    float* scores = scratch.scores + (t - queries.first) * scratch.score_stride + (seen.first - lowest);
    float mass[kTogether];
    for (int64_t q = 0; q < together; ++q) {
      float* row = scores + q * scratch.score_stride;
      const int64_t from = window.lowest(t + q) - seen.first, to = window.highest(t + q) - seen.first;
      for (int64_t s = 0; s < from; ++s) row[s] = 0.0f;
      for (int64_t s = to; s < seen.last - seen.first; ++s) row[s] = 0.0f;
      mass[q] = weigh(row + from, to - from, op.scale);
    }
    float* to = y + (t - queries.first) * op.width + column;
    combine(scores, scratch.score_stride, together, seen.last - seen.first,
            scratch.values + (seen.first - lowest) * op.depth, op.depth, op.depth, to, op.width);
    for (int64_t q = 0; q < together; ++q)
      for (int64_t d = 0; d < op.depth; ++d) to[q * op.width + d] = to[q * op.width + d] / mass[q];
  }
}
