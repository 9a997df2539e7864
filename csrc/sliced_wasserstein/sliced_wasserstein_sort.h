// Decides how samples are sorted: a bitonic network over rows of one cache line, all columns of a line at once, by min
// and max only. Which rows meet does not depend on the data, so there are no branches and nothing is transposed.
// Compiled once per instruction set, no guard.
//
// Every comparator puts the smaller value into the earlier row, also in the first step of a merge, where row i meets
// its mirror image ("flip"). Rows past the end may then be thought of as +inf: they stay where they are. Batcher:
// Sorting networks and their applications, AFIPS 1968.

constexpr int kChunk = 64;                           // rows that lie side by side; after them one line is left out, so
                                                     // that rows a power of two apart don't share a set of the cache
constexpr int kGroup = VG_ISA_BYTES == 64 ? 16 : 8;  // rows held in registers: four or three steps a pass

// A column of lines, each kStrip<A> columns of samples: `chunks` chunks, then one of +inf that stands for all rows
// past the end. Row i is at row(i).
template <class A>
struct Column {
  static constexpr int64_t pitch = (kChunk + 1) * kStrip<A>;
  A* data;
  int64_t chunks;

  static int64_t chunks_for(int64_t rows) { return (rows + kChunk - 1) / kChunk; }
  static int64_t elements(int64_t rows) { return (chunks_for(rows) + 1) * pitch; }
  A* chunk(int64_t i) const { return data + std::min(i, chunks) * pitch; }
  A* row(int64_t i) const { return data + i / kChunk * pitch + i % kChunk * kStrip<A>; }
};

template <class V>
VG_INLINE void compare(V& low, V& high) {
  const V least = smaller(low, high);
  high = larger(low, high);
  low = least;
}

// Steps of the network on rows [first, first + kRows) in registers: the strides kRows/2, ..., 1; for kFlip, the first
// step meets mirror images instead.
template <bool kFlip, int first, int kRows, int Q, class V>
VG_INLINE void exchange(V (&row)[Q]) {
  if constexpr (kRows > 1) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows / 2; ++i) compare(row[first + i], row[first + (kFlip ? kRows - 1 - i : kRows / 2 + i)]);
    exchange<false, first, kRows / 2>(row);
    exchange<false, first + kRows / 2, kRows / 2>(row);
  }
}

// The same on Q blocks of `lines` lines each, line by line; the flip mirrors the upper blocks' lines as well.
template <bool kFlip, int Q, class A>
VG_INLINE void exchange_blocks(A* const (&block)[Q], int lines) {
  constexpr int N = VG_ISA_BYTES / int(sizeof(A));
  for (int line = 0; line < lines; ++line)
#pragma GCC unroll 4
    for (int part = 0; part < kStrip<A>; part += N) {
      const int64_t low = line * kStrip<A> + part, high = kFlip ? (lines - 1 - line) * kStrip<A> + part : low;
      Vector<A, N> row[Q];
#pragma GCC unroll 16
      for (int t = 0; t < Q; ++t) row[t] = load<A, N>(block[t] + (t < Q / 2 ? low : high));
      exchange<kFlip, 0, Q>(row);
#pragma GCC unroll 16
      for (int t = 0; t < Q; ++t) store<A, N>(block[t] + (t < Q / 2 ? low : high), row[t]);
    }
}

// ---- within a chunk: kRows rows side by side ----

template <bool kFlip, int kRows, class A>
VG_INLINE void merge_rows(A* rows) {
  if constexpr (kRows > 1) {
    constexpr int Q = kRows < kGroup ? kRows : kGroup, S = kRows / Q;
    A* block[Q];
#pragma GCC unroll 16
    for (int t = 0; t < Q; ++t) block[t] = rows + t * S * kStrip<A>;
    exchange_blocks<kFlip>(block, S);
    for (int t = 0; t < Q && S > 1; ++t) merge_rows<false, S>(rows + t * S * kStrip<A>);
  }
}

// Batcher's odd-even merge sort in registers, which has fewer comparators than a bitonic one: of rows first, first +
// stride, ..., of which there are kRows.
template <int first, int kRows, int stride, int Q, class V>
VG_INLINE void merge_odd_even(V (&row)[Q]) {
  if constexpr (kRows == 2) {
    compare(row[first], row[first + stride]);
  } else {
    merge_odd_even<first, kRows / 2, 2 * stride>(row);
    merge_odd_even<first + stride, kRows / 2, 2 * stride>(row);
#pragma GCC unroll 16
    for (int i = 1; i + 1 < kRows; i += 2) compare(row[first + i * stride], row[first + (i + 1) * stride]);
  }
}
template <int first, int kRows, int Q, class V>
VG_INLINE void sort_odd_even(V (&row)[Q]) {
  if constexpr (kRows > 1) {
    sort_odd_even<first, kRows / 2>(row);
    sort_odd_even<first + kRows / 2, kRows / 2>(row);
    merge_odd_even<first, kRows, 1>(row);
  }
}
template <class A>
VG_INLINE void sort_group(A* rows) {
  constexpr int N = VG_ISA_BYTES / int(sizeof(A));
#pragma GCC unroll 4
  for (int part = 0; part < kStrip<A>; part += N) {
    Vector<A, N> row[kGroup];
#pragma GCC unroll 16
    for (int t = 0; t < kGroup; ++t) row[t] = load<A, N>(rows + t * kStrip<A> + part);
    sort_odd_even<0, kGroup>(row);
#pragma GCC unroll 16
    for (int t = 0; t < kGroup; ++t) store<A, N>(rows + t * kStrip<A> + part, row[t]);
  }
}

template <int kRows, class A>
VG_INLINE void sort_rows(A* rows) {
  if constexpr (kRows == kGroup) {
    sort_group(rows);
  } else {
    for (int half = 0; half < 2; ++half) sort_rows<kRows / 2>(rows + half * (kRows / 2) * kStrip<A>);
    merge_rows<true, kRows>(rows);
  }
}

// ---- chunk by chunk: `count` chunks from `first`, a power of two ----

template <bool kFlip, int Q, class A>
void exchange_chunks(Column<A> column, int64_t first, int64_t count) {
  const int64_t S = count / Q;
  for (int64_t a = 0; a < S; ++a) {
    A* block[Q];
#pragma GCC unroll 16
    for (int t = 0; t < Q; ++t) block[t] = column.chunk(first + t * S + (kFlip && t >= Q / 2 ? S - 1 - a : a));
    exchange_blocks<kFlip>(block, kChunk);
  }
}

template <bool kFlip, class A>
void merge_chunks(Column<A> column, int64_t first, int64_t count) {
  if (first >= column.chunks) return;
  if (count == 1) return merge_rows<false, kChunk>(column.chunk(first));
  const int64_t Q = std::min<int64_t>(count, kGroup);
  if (Q == 2) exchange_chunks<kFlip, 2>(column, first, count);
  if (Q == 4) exchange_chunks<kFlip, 4>(column, first, count);
  if (Q == 8) exchange_chunks<kFlip, 8>(column, first, count);
  if (Q == 16 && kGroup == 16) exchange_chunks<kFlip, kGroup>(column, first, count);
  for (int64_t t = 0; t < Q; ++t) merge_chunks<false>(column, first + t * (count / Q), count / Q);
}

template <class A>
void sort_chunks(Column<A> column, int64_t first, int64_t count) {
  if (count == 1) return sort_rows<kChunk>(column.chunk(first));
  sort_chunks(column, first, count / 2);
  if (first + count / 2 >= column.chunks) return;
  sort_chunks(column, first + count / 2, count / 2);
  merge_chunks<true>(column, first, count);
}

// Sorts each column of the lines upwards. Rows past the samples must hold +inf, up to a whole chunk and one more.
template <class A>
void sort_column(Column<A> column) {
  int64_t count = 1;
  while (count < column.chunks) count *= 2;
  sort_chunks(column, 0, count);
}
