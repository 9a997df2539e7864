// Decides how it is known which sample a sorted value belongs to: for float32, value and index make one float64, which
// the same network sorts; float64 columns are sorted one by one. Equal values stay in the order of their indices, and
// -0 equals 0. Compiled once per instruction set, no guard.

constexpr int kRanked = kStrip<double>;  // columns that are ranked at a time
constexpr int64_t kLargestIndex = kSlicedWassersteinLargest - 1;

// A float32 as a float64 leaves the low 29 bits free. Zero becomes 2^-1000, below every float32: index bits beside an
// exponent of zero would make a subnormal number, which a process that flushes them does not tell from others.
constexpr double kZero = 0x1p-1000;

// Sorted values of kRanked columns and whose they are, row by row.
template <class A>
struct Ranked {
  Column<double> column;
  const int32_t* index;  // float64: (rows, kRanked)

  VG_INLINE Vector<A, kRanked> value(int64_t i) const {
    Vector<double, kRanked> key;
    __builtin_memcpy(&key, column.row(i), sizeof key);
    if constexpr (std::is_same_v<A, float>) {
      using Bits = Vector<int64_t, kRanked>;
      return __builtin_convertvector((Vector<double, kRanked>)((Bits)key & ~kLargestIndex), Vector<float, kRanked>);
    } else {
      return key;
    }
  }
  VG_INLINE Vector<int32_t, kRanked> order(int64_t i) const {
    if constexpr (std::is_same_v<A, float>) {
      using Bits = Vector<int64_t, kRanked>;
      Bits key;
      __builtin_memcpy(&key, column.row(i), sizeof key);
      return __builtin_convertvector((key ^ (key >> 63)) & kLargestIndex, Vector<int32_t, kRanked>);
    } else {
      Vector<int32_t, kRanked> order;
      __builtin_memcpy(&order, index + i * kRanked, sizeof order);
      return order;
    }
  }
};

// What it takes to rank one side.
struct RankScratch {
  Column<double> keys;
  int32_t* index;                     // float64: (rows, kRanked)
  std::pair<double, int32_t>* pairs;  // float64: (rows)
};

// Ranks kRanked columns of `from`, starting at its lane `lane`; where one has a NaN, its order is any.
inline Ranked<float> rank(Column<float> from, int lane, int64_t rows, RankScratch scratch) {
  const Column<double> keys = scratch.keys;
  constexpr int N = VG_ISA_BYTES / 8;
  using Bits = Vector<int64_t, N>;
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int part = 0; part < kRanked; part += N) {
      const Vector<double, N> wide = load<double, N>(from.row(i) + lane + part) + kZero;
      const Bits bits = (Bits)wide, index = (Bits{} + i) ^ ((bits >> 63) & kLargestIndex);
      store<double, N>(keys.row(i) + part, (Vector<double, N>)(bits | index));
    }
  for (int64_t i = rows; i < (keys.chunks + 1) * kChunk; ++i)
    std::fill_n(keys.row(i), kRanked, std::numeric_limits<double>::infinity());
  sort_column(keys);
  return {keys, nullptr};
}

inline Ranked<double> rank(Column<double> from, int, int64_t rows, RankScratch scratch) {
  const auto [keys, index, pairs] = scratch;
  for (int c = 0; c < kRanked; ++c) {
    for (int64_t i = 0; i < rows; ++i) {
      const double value = from.row(i)[c] + 0.0;
      pairs[i] = {value == value ? value : std::numeric_limits<double>::infinity(), int32_t(i)};  // a sort has no NaN
    }
    std::sort(pairs, pairs + rows);
    for (int64_t i = 0; i < rows; ++i) {
      keys.row(i)[c] = pairs[i].first;
      index[i * kRanked + c] = pairs[i].second;
    }
  }
  return {keys, index};
}
