// Products of bytes, four at a time, for instruction sets without vpdpbusd: AVX2 and NEON.
//
// Included inside the namespace of one instruction set, after vectors.h. Rows of levels are spread (avx2_vectors.h,
// neon_vectors.h) once for all outputs; weights, which meet kQuadFrames rows, as they are loaded. Of weights and levels
// one is unsigned; kTaken of each byte of it is missing in a product.

constexpr int64_t kQuadFrames = 4;     // rows x 16 outputs of sums: 8 of 16 registers, or 16 of 32
constexpr int64_t kSpreadQuads = 256;  // of a row; 8 KiB of four rows with AVX2, which the first cache holds

SUBTONE_INLINE ints load(const int32_t* from) {
  ints value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

SUBTONE_INLINE void store(int32_t* to, ints value) { __builtin_memcpy(to, &value, sizeof value); }

SUBTONE_INLINE ints load_quads(const void* bytes) {
  ints value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

SUBTONE_INLINE ints all_ints(int32_t value) { return ints{} + value; }

SUBTONE_INLINE ints wrapped_sum(ints x, ints y) { return (ints)((words)x + (words)y); }

// Quads `window` of some rows, spread.
struct SpreadRows {
  int32_t planes[kQuadFrames][kPlanes][kSpreadQuads];
  Span window = {0, 0};

  SUBTONE_INLINE Quads at(int64_t row, int64_t quad) const {
    Quads quads;
    quad -= window.first;
    for (int plane = 0; plane < kPlanes; ++plane) quads.plane[plane] = all_ints(planes[row][plane][quad]);
    return quads;
  }

  // Makes `quad` one of the window and gives the end of what of [quad, last) lies in it.
  template <bool kIsSigned>
  int64_t reach(const void* rows, int64_t row_bytes, int64_t num_rows, int64_t quad, int64_t last, int64_t row_quads) {
    if (quad < window.first || quad >= window.last) {
      window = {quad, smaller(quad + kSpreadQuads, row_quads)};
      for (int64_t row = 0; row < num_rows; ++row) {
        const char* from = static_cast<const char*>(rows) + row * row_bytes + 4 * quad;
        for (int64_t i = 0; i < window.last - quad; i += kWidth, from += kVectorBytes) {
          ints bytes = {};
          if (window.last - quad - i >= kWidth)
            bytes = load_quads(from);
          else
            for (int64_t k = 0; k < window.last - quad - i; ++k) {
              int32_t bytes_of_quad;
              __builtin_memcpy(&bytes_of_quad, from + 4 * k, sizeof bytes_of_quad);
              bytes[k] = bytes_of_quad;
            }
          const Quads spread_quads = spread<kIsSigned>(bytes);
          for (int plane = 0; plane < kPlanes; ++plane) store(planes[row][plane] + i, spread_quads.plane[plane]);
        }
      }
    }
    return smaller(last, window.last);
  }
};

// sums[row][n] += what quads [first, last) of kRows rows add for kVectors vectors of outputs, whose weights lie in rows of
// quad_bytes.
// Where the levels are unsigned (kWeightsSigned), what each byte lost is added again: 128 times the sum of its weights.
template <int kRows, bool kWeightsSigned, int kVectors = kLeastVectors>
__attribute__((noinline)) void add_quads(const void* weights, int64_t quad_bytes, const SpreadRows& rows, int64_t first,
                                         int64_t last, int32_t* sums, int64_t sums_stride) {
  ints total[kRows][kVectors], lost[kVectors] = {};
  repeat<kRows>(SUBTONE_EACH(r) {
    repeat<kVectors>(SUBTONE_EACH(v) { total[r][v] = load(sums + r * sums_stride + kWidth * v); });
  });
  const char* from = static_cast<const char*>(weights);
  for (int64_t quad = first; quad < last; ++quad, from += quad_bytes) {
    Quads part[kVectors];
    repeat<kVectors>(SUBTONE_EACH(v) { part[v] = spread<kWeightsSigned>(load_quads(from + kVectorBytes * v)); });
    if constexpr (kWeightsSigned && kTaken != 0) {
      const Quads taken = spread<false>(all_ints(0));
      repeat<kVectors>(SUBTONE_EACH(v) { lost[v] = plus_products(lost[v], taken, part[v]); });
    }
    repeat<kRows>(SUBTONE_EACH(r) {
      const Quads x = rows.at(r, quad);
      repeat<kVectors>(SUBTONE_EACH(v) { total[r][v] = plus_products(total[r][v], x, part[v]); });
    });
  }
  repeat<kRows>(SUBTONE_EACH(r) {
    repeat<kVectors>(SUBTONE_EACH(v) {
      store(sums + r * sums_stride + kWidth * v, (ints)((words)total[r][v] - (words)lost[v]));
    });
  });
}

using AddQuads = void (*)(const void*, int64_t, const SpreadRows&, int64_t, int64_t, int32_t*, int64_t);

// [rows - 1]
template <bool kWeightsSigned>
constexpr AddQuads kAddQuads[kQuadFrames] = {add_quads<1, kWeightsSigned>, add_quads<2, kWeightsSigned>,
                                             add_quads<3, kWeightsSigned>, add_quads<4, kWeightsSigned>};

// The same for `width` outputs of a panel. One row meets a whole panel at once, where there are registers for it: more
// sums that do not wait for each other, and weights in the order in which they lie.
template <bool kWeightsSigned>
SUBTONE_INLINE void add_panel(int64_t num_rows, const void* weights, int64_t width, const SpreadRows& rows,
                              int64_t first, int64_t last, int32_t* sums) {
  if (num_rows == 1 && width == kPanel && !(kWeightsSigned && kTaken))
    return add_quads<1, kWeightsSigned, kPanel / kWidth>(weights, 4 * width, rows, first, last, sums, kPanel);
  const auto add = kAddQuads<kWeightsSigned>[num_rows - 1];
  for (int64_t n = 0; n < width; n += kLanes)
    add(static_cast<const char*>(weights) + 4 * n, 4 * width, rows, first, last, sums + n, kPanel);
}
