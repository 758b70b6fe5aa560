// Which rows a query of an attention sees, in floats or in integers. Included inside the namespace of one instruction set.

// What a block of queries sees: query t of rows seen(t).
struct Window {
  int64_t left, right, rows;

  int64_t lowest(int64_t t) const { return left < 0 || t < left ? 0 : t - left; }
  int64_t highest(int64_t t) const { return right < 0 || t + right + 1 > rows ? rows : t + right + 1; }
};

inline int64_t least(int64_t left, int64_t right) { return left < right ? left : right; }
inline int64_t most(int64_t left, int64_t right) { return left > right ? left : right; }
