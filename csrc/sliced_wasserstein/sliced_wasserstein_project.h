// Decides how samples are projected: a panel of directions is packed so that a line holds one coordinate of kStrip
// directions, and tiles of the product are written as lines of samples, the layout that the sort takes. Compiled once
// per instruction set, no guard.

constexpr int64_t kPanel = 48;  // directions of a unit of work: three lines of float32, six of float64

// The samples of one entry of the batch, (rows, dim), packed.
template <class A>
struct Samples {
  const A* data;
  int64_t rows, dim;
};

// `count` of the directions of an entry, from its `first`: (count, dim). Without projections (data null) the samples'
// coordinates are taken as they are.
template <class A>
struct Directions {
  const A* data;
  int64_t first, count, dim;
  int64_t strips() const { return (count + kStrip<A> - 1) / kStrip<A>; }
};

// Coordinates of a panel that are used at a time: with them it takes 96 KB, a tenth of L2.
constexpr int64_t kDepth = 512;

template <class A>
int64_t packed_elements(int64_t dim) {
  return (std::min(dim, kDepth) + 1) * kPanel;  // a line more for each strip: powers of two would share cache sets
}

// The projections of a panel: a column of lines for every kStrip directions.
template <class A>
struct Columns {
  A* data;
  int64_t rows;
  static int64_t elements(int64_t rows) { return kPanel / kStrip<A> * Column<A>::elements(rows); }
  int64_t apart() const { return Column<A>::elements(rows); }
  Column<A> operator[](int64_t s) const { return {data + s * apart(), Column<A>::chunks_for(rows)}; }
};

// Rows of kStrips columns from the first one on += or = samples' coordinates [k, k + K) times the packed panel's.
template <Into how, int kStrips, class A>
void project_strips(Samples<A> samples, int64_t k, int64_t K, const A* panel, Column<A> column, int64_t apart) {
  const int64_t strip = (K + 1) * kStrip<A>;
  for (int64_t first = 0; first < samples.rows; first += kTileRows) {
    Apart row;  // rows past the end are the last one again: what becomes of them is overwritten
    for (int r = 0; r < kTileRows; ++r) row.offset[r] = std::min<int64_t>(r, samples.rows - 1 - first) * samples.dim;
    product_tile<how, kStrips>(column.row(first), kStrip<A>, apart, samples.data + first * samples.dim + k, 1, row,
                               panel, kStrip<A>, strip, K);
  }
}

template <class A>
void project_columns(Samples<A> samples, int64_t k, int64_t K, int64_t strips, const A* panel, Columns<A> columns) {
  by_strips<A>(0, strips * kStrip<A>, [&](auto count, int64_t column) {
    constexpr int kStrips = decltype(count)::value;
    const Column<A> first = columns[column / kStrip<A>];
    const A* part = panel + column * (K + 1);
    if (k == 0)
      project_strips<Into::assign, kStrips>(samples, k, K, part, first, columns.apart());
    else
      project_strips<Into::add, kStrips>(samples, k, K, part, first, columns.apart());
  });
}

// Both sides' projections on a panel; `packed` holds packed_elements. Lanes past the last direction are 0.
template <class A>
void project(const Samples<A> (&side)[2], Directions<A> directions, A* packed, const Columns<A> (&columns)[2]) {
  const int64_t blocks = (directions.dim + kDepth - 1) / kDepth, depth = (directions.dim + blocks - 1) / blocks;
  for (int64_t k = 0; k < directions.dim; k += depth) {
    const int64_t K = std::min(depth, directions.dim - k);
    for (int64_t s = 0; s < directions.strips(); ++s) {
      const int64_t l = s * kStrip<A>;
      const int count = int(std::min<int64_t>(kStrip<A>, directions.count - l));
      pack<A, kStrip<A>, A>({directions.data + (directions.first + l) * directions.dim, directions.dim, 1, count}, k, K,
                            packed + s * (K + 1) * kStrip<A>);
    }
    for (int i = 0; i < 2; ++i) project_columns(side[i], k, K, directions.strips(), packed, columns[i]);
  }
}

// The same where the samples are projected already: coordinates become lines. Rows are far apart, so that no hardware
// fetches them ahead.
template <class A>
void take_columns(Samples<A> samples, Directions<A> directions, Columns<A> columns) {
  constexpr int S = kStrip<A>;
  constexpr int64_t kAhead = 16;
  for (int64_t i = 0; i < samples.rows; ++i)
    for (int64_t s = 0; s < directions.strips(); ++s) {
      const A* from = samples.data + i * samples.dim + directions.first + s * S;
      __builtin_prefetch(from + std::min(kAhead, samples.rows - 1 - i) * samples.dim);
      const int count = int(std::min<int64_t>(S, directions.count - s * S));
      A* to = columns[s].row(i);
      if (count == S) {
        store_pixel(to, load_pixel<A, S>(from));
      } else {
        for (int c = 0; c < S; ++c) to[c] = c < count ? from[c] : A(0);
      }
    }
}

// Lanes of 0 where all rows of a column are finite, NaN elsewhere; fills the rows past the end with +inf.
template <class A>
VG_INLINE Pixel<A, kStrip<A>> finish_column(Column<A> column, int64_t rows) {
  constexpr int S = kStrip<A>;
  Pixel<A, S> wrong = {};
  for (int64_t i = 0; i < rows; ++i) {
    const Pixel<A, S> row = load_pixel<A, S>(column.row(i));
#pragma GCC unroll 8
    for (int part = 0; part < row.parts; ++part) wrong.part[part] += row.part[part] - row.part[part];
  }
  for (int64_t i = rows; i < (column.chunks + 1) * kChunk; ++i)
    std::fill_n(column.row(i), S, std::numeric_limits<A>::infinity());
  return wrong;
}
