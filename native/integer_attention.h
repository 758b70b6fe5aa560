// Attention of one head for a block of queries in integers, as integer_sequence_ops.py defines it: one source for
// every instruction set, around one loop that each writes for itself:
//
//   byte_dots(rows, row_bytes, num_rows, panels, panel_bytes, quads, num_panels, start, y, y_stride):
//     y[r][16 p + j] = start[16 p + j] + sum_k rows[r][k] * panels[p][k / 4][j][k % 4], k < 4 quads, in 32 bits
//
// rows unsigned, panels signed. A query is q + 128, of which each key's start takes 128 back and adds what the bias
// gives, whatever its size; so keys become bytes once for a block of queries. A weight of 23 bits is three bytes, and
// its products with values three sums, which 32 bits hold together: they wrap alike in every order. Included inside
// the namespace of one instruction set, after window.h and integer_rowwise.h.

constexpr int64_t kWeightBytes = 3;

inline int64_t round_up_to_panel(int64_t count) { return (count + kDotLanes - 1) / kDotLanes * kDotLanes; }

// Rows of 32 bits as panels of columns of `depth` bytes, and what a sum with each begins with.
void pack_rows(const int32_t* rows, int64_t stride, int64_t count, int64_t depth, const int32_t* bias, uint8_t* row,
               int8_t* panels, int32_t* start) {
  const int64_t quads = (depth + 3) / 4;
  for (int64_t s = 0; s < count; ++s, rows += stride) {
    narrow(rows, depth, 128, row);  // unsigned bytes alone: some narrow saturates
    for (int64_t d = depth; d < 4 * quads; ++d) row[d] = 128;
    int8_t* to = panels + s / kDotLanes * quads * 4 * kDotLanes + s % kDotLanes * 4;
    for (int64_t quad = 0; quad < quads; ++quad) {
      uint32_t bytes;
      __builtin_memcpy(&bytes, row + 4 * quad, sizeof bytes);
      bytes ^= 0x80808080u;  // level + 128 as a signed level
      __builtin_memcpy(to + quad * 4 * kDotLanes, &bytes, sizeof bytes);
    }
    uint32_t sum = 0;
    for (int64_t d = 0; d < depth; ++d)
      sum += ((bias ? static_cast<uint32_t>(bias[d]) : 0u) - 128u) * static_cast<uint32_t>(rows[d]);
    start[s] = static_cast<int32_t>(sum);
  }
}

// Values as panels of 16 columns, whose bytes are the rows: four rows in a quad. Rows behind the last are 0.
void pack_values(const int32_t* rows, int64_t stride, int64_t count, int64_t depth, int64_t keys, int8_t* panels) {
  for (int64_t d = 0; d < depth; d += kDotLanes) {
    const int64_t size = least(kDotLanes, depth - d);
    for (int64_t s = 0; s < count; s += 4) {
      uint32_t quads[kDotLanes] = {};
      for (int64_t more = 0; more < least(4, count - s); ++more) {
        const int32_t* from = rows + (s + more) * stride + d;
        for (int64_t i = 0; i < size; ++i) quads[i] |= (static_cast<uint32_t>(from[i]) & 255u) << (8 * more);
      }
      __builtin_memcpy(panels + d * keys + s * kDotLanes, quads, sizeof quads);
    }
  }
}

// Scores of the rows that a query sees, in the place of its products with them; gives the highest.
int64_t score_row(const IntegerAttention& op, int64_t count, int32_t* scores, const int32_t* of_positions) {
  Numbers highest = all(-INT64_C(1) * INT32_MAX);
  for (int64_t s = 0; s < count; s += kNumbers) {
    Numbers total = product(load_numbers(scores + s, count - s), all(op.content_multiplier));
    if (of_positions)
      total = total + product(load_numbers(of_positions + s, count - s), all(op.position_multiplier));
    const Numbers score = ended(total, op.score_shift, -INT32_MAX, INT32_MAX);
    store_numbers(score, count - s, scores + s);
    if (count - s >= kNumbers) highest = higher(highest, score);
  }
  int64_t result = highest_of(highest);
  for (int64_t s = count / kNumbers * kNumbers; s < count; ++s) result = most(result, scores[s]);
  return result;
}

// Scores become the bytes of their weights, planes `plane` bytes apart.
void weigh_row(int64_t highest, int64_t count, int32_t* scores, uint8_t* weights, int64_t plane) {
  constexpr int32_t kWeightBits = 22;
  const Numbers top = all(highest);
  Numbers sum = all(0);
  for (int64_t s = 0; s < count; s += kNumbers) {
    const Numbers value = decayed(lower(top - load_numbers(scores + s, count - s), all(kFarthest << kFractionBits)));
    store_numbers(value, count - s, scores + s);
    sum = sum + first_numbers(value, count - s);
  }
  const Numbers factor = all((INT64_C(1) << 61) / sum_of(sum));  // the highest score adds 2^30
  for (int64_t s = 0; s < count; s += kNumbers) {
    const Numbers value = load_numbers(scores + s, count - s);
    const Numbers weight = round_shift(unsigned_product(value, factor), 61 - kWeightBits);
    store_bytes(weight, count - s, weights + s);
    store_bytes(weight >> 8, count - s, weights + plane + s);
    store_bytes(weight >> 16, count - s, weights + 2 * plane + s);
  }
}

// The `together` queries from t on, queries.first being row 0 of the scratch; `places` of it are packed.
void attend_together(const IntegerAttention& op, const IntegerAttentionRows& in, int64_t column, Span queries,
                     int64_t t, int64_t together, Span places, const IntegerAttentionScratch& scratch, int32_t* y) {
  const Window window = {op.left, op.right, in.rows};
  const int64_t lowest = window.lowest(queries.first), row_bytes = op.row_bytes(), panel = kDotLanes * row_bytes;
  // Whole panels of keys that one of these queries sees, and of positions that they meet.
  const int64_t first = (window.lowest(t) - lowest) / kDotLanes, end = window.highest(t + together - 1) - lowest;
  const int64_t panels = (end + kDotLanes - 1) / kDotLanes - first;
  const uint8_t* rows = scratch.queries + (t - queries.first) * row_bytes;
  byte_dots(rows, row_bytes, together, scratch.key_panels + first * panel, panel, row_bytes / 4, panels,
            scratch.key_start + first * kDotLanes, scratch.scores + first * kDotLanes, scratch.keys);
  const auto place = [&](int64_t query, int64_t row) { return in.offset - query + row - places.first; };
  if (in.positions) {
    const int64_t from = most(0, place(t + together - 1, window.lowest(t))) / kDotLanes;
    const int64_t last = least(places.last - places.first, place(t, window.highest(t + together - 1)));
    byte_dots(rows, row_bytes, together, scratch.position_panels + from * panel, panel, row_bytes / 4,
              (last + kDotLanes - 1) / kDotLanes - from, scratch.position_start + from * kDotLanes,
              scratch.of_positions + from * kDotLanes, scratch.places);
  }
  const int64_t quad = first * kDotLanes / 4, quads = (end + 3) / 4 - quad, padded = round_up_to_panel(op.depth);
  for (int64_t q = 0; q < together; ++q) {
    const int64_t from = window.lowest(t + q), count = window.highest(t + q) - from;
    int32_t* scores = scratch.scores + q * scratch.keys + (from - lowest);
    uint8_t* weights = scratch.weights + q * kWeightBytes * scratch.keys;
    for (int64_t plane = 0; plane < kWeightBytes; ++plane)
      __builtin_memset(weights + plane * scratch.keys + 4 * quad, 0, static_cast<uint64_t>(4 * quads));
    const int32_t* positions =
        in.positions ? scratch.of_positions + q * scratch.places + place(t + q, from) : nullptr;
    const int64_t highest = score_row(op, count, scores, positions);
    weigh_row(highest, count, scores, weights + (from - lowest), scratch.keys);
  }
  byte_dots(scratch.weights + 4 * quad, scratch.keys, kWeightBytes * together,
            scratch.value_panels + quad * 4 * kDotLanes, scratch.keys * kDotLanes, quads, padded / kDotLanes, nullptr,
            scratch.sums, padded);
  for (int64_t q = 0; q < together; ++q) {
    const int32_t* sums = scratch.sums + q * kWeightBytes * padded;
    int32_t* to = y + (t + q - queries.first) * op.width + column;
    for (int64_t d = 0; d < op.depth; d += kNumbers) {
      const int64_t count = op.depth - d;
      const Numbers sum = load_numbers(sums + d, count) + (load_numbers(sums + padded + d, count) << 8) +
                          (load_numbers(sums + 2 * padded + d, count) << 16);
      store_numbers(ended(sum, op.finish), count, to + d);
    }
  }
}

void integer_attend(const IntegerAttention& op, const IntegerAttentionRows& in, int64_t head, Span queries,
                    const IntegerAttentionScratch& scratch, int32_t* y) {
  const Window window = {op.left, op.right, in.rows};
  const int64_t column = head * op.depth, row_bytes = op.row_bytes();
  const Span seen = {window.lowest(queries.first), window.highest(queries.last - 1)};
  for (int64_t t = queries.first; t < queries.last; ++t)
    narrow(in.query + (t - in.query_base) * op.width + column, op.depth, 128,
           scratch.queries + (t - queries.first) * row_bytes);
  const auto bias = [&](const int32_t* all_heads) { return all_heads ? all_heads + column : nullptr; };
  pack_rows(in.key + (seen.first - in.key_base) * op.width + column, op.width, seen.last - seen.first, op.depth,
            bias(op.content_bias), scratch.row, scratch.key_panels, scratch.key_start);
  pack_values(in.value + (seen.first - in.value_base) * op.width + column, op.width, seen.last - seen.first, op.depth,
              scratch.keys, scratch.value_panels);
  // Row in.offset - (t - s) of the positions, for those pairs of the block that see each other.
  const int64_t size = op.left < 0 ? 2 * in.rows - 1 : op.left + op.right + 1;
  const Span places = {most(0, in.offset - (queries.last - 1) + seen.first),
                       least(size, in.offset - queries.first + seen.last)};
  if (in.positions)
    pack_rows(in.positions + places.first * op.width + column, op.width, places.last - places.first, op.depth,
              bias(op.position_bias), scratch.row, scratch.position_panels, scratch.position_start);
  for (int64_t t = queries.first; t < queries.last; t += kAtOnce)
    attend_together(op, in, column, queries, t, least(kAtOnce, queries.last - t), places, scratch, y);
}
