// Decides how a weight is read and rewritten: panel by panel, packed into lines of the arithmetic's type. The Gram
// matrix sums over panels of columns; the correction rewrites them one by one. Compiled once per instruction set.

constexpr int64_t kPanelBytes = int64_t(1536) << 10;  // of a packed panel
constexpr int64_t kPanelColumns = 768;                // at most: within a panel sums are kept in A

VG_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Columns of a panel with all rows: whole strips, at least one.
template <class A>
int64_t panel_columns(int64_t rows) {
  constexpr int64_t S = kStrip<A>;
  return std::max<int64_t>(S, std::min(kPanelColumns, kPanelBytes / int64_t(sizeof(A)) / padded(rows, S) / S * S));
}

// G's layout: rows side by side, and a line more, so that a column of it does not fall into one set of the cache. Lines
// are those of the arithmetic A; what is summed into them may be wider.
template <class A, class C>
Lines<C> square(C* data, int64_t m) {
  return {data, padded(m, kStrip<A>) + kStrip<A>, kStrip<A>};
}
template <class A>
int64_t square_elements(int64_t m) {
  return padded(m, kStrip<A>) * (padded(m, kStrip<A>) + kStrip<A>);
}

// Strips u and last - u of G are one unit: together they reach as far down as any other pair.
template <class A>
int64_t gram_units(int64_t m) {
  return (padded(m, kStrip<A>) / kStrip<A> + 1) / 2;
}

// Strips of units [begin, end) of G = W W^T, their rows down to the diagonal block: sums over a panel in A, over panels
// in double. False: no memory for a panel.
template <class A, class T>
bool gram(const SvcMatrix& w, double* out, int64_t begin, int64_t end) {
  constexpr int64_t S = kStrip<A>;
  const int64_t strips = padded(w.rows, S) / S, depth = panel_columns<A>(w.rows);
  const Lines<double> g = square<A>(out, w.rows);
  const int64_t low[2] = {begin, std::min(end, strips / 2 + strips % 2)};    // [low[0], low[1])
  const int64_t high[2] = {std::max(strips - end, low[1]), strips - begin};  // and their partners
  const Scratch scratch(high[1] * S * depth * int64_t(sizeof(A)));
  if (!scratch.data()) return false;
  A* packed = static_cast<A*>(scratch.data());
  const T* data = static_cast<const T*>(w.data);
  for (int64_t first = 0; first < w.columns; first += depth) {
    const int64_t n = std::min(depth, w.columns - first);
    for (int64_t s = 0; s < high[1]; ++s) {
      const int count = int(std::min<int64_t>(S, w.rows - s * S));
      const Channels<const T> rows{data + s * S * w.row_stride, w.row_stride, w.column_stride, count};
      pack<A, int(S), T>(rows, first, n, packed + s * S * depth);
    }
    const Lines<const A> panel{packed, S, S * depth};
    for (const auto& range : {low, high}) {
      if (first == 0)
        product_upper<Into::assign>(g, panel, panel, n, 0, range[0], range[1]);
      else
        product_upper<Into::add>(g, panel, panel, n, 0, range[0], range[1]);
    }
  }
  return true;
}

// W' = W - left right^T W, with the k columns of `right` (rows of W, k) and `left`, which comes transposed (k, rows of
// W). Without `left`, W' = W - right^T W and right is (rows of W, rows of W).
template <class A>
struct Correction {
  Lines<const A> right, left;
  int64_t k;
};

// Columns [first, first + n) of W, all rows, in strips: x (padded rows, padded columns). Where rows are contiguous they
// are walked along, past the strips: one strip at a time would touch a page for every line.
template <class A, class T>
void load_panel(const SvcMatrix& w, int64_t first, int64_t n, Lines<A> x) {
  constexpr int64_t S = kStrip<A>, kAhead = 8;  // rows that the loads run ahead of
  const T* data = static_cast<const T*>(w.data) + first * w.column_stride;
  const int64_t whole = w.column_stride == 1 ? n / S : 0;
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t s = 0; s < whole; ++s) {
      __builtin_prefetch(data + std::min(i + kAhead, w.rows - 1) * w.row_stride + s * S);
      store_pixel(x.line(i, s), load_pixel<A, S>(data + i * w.row_stride + s * S));
    }
  for (int64_t s = 0; s * S < n; ++s) {
    const T* strip = data + s * S * w.column_stride;
    const int count = int(std::min<int64_t>(S, n - s * S));
    if (w.column_stride != 1)
      pack<A, int(S), T>({strip, w.column_stride, w.row_stride, count}, 0, w.rows, x.line(0, s));
    else if (s == whole)  // `pack` would read past the row's end what another thread may be writing
      for (int64_t i = 0; i < w.rows; ++i)
        for (int c = 0; c < S; ++c) x.line(i, s)[c] = c < count ? vgkernels::widen(strip[i * w.row_stride + c]) : A(0);
    std::fill(x.line(w.rows, s), x.line(padded(w.rows, S), s), A(0));
  }
}

template <class A, class T>
void store_panel(const SvcMatrix& w, int64_t first, int64_t n, Lines<A> x) {
  constexpr int64_t S = kStrip<A>;
  T* data = static_cast<T*>(w.data) + first * w.column_stride;
  const int64_t whole = w.column_stride == 1 ? n / S : 0;
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t s = 0; s < whole; ++s) store_pixel(data + i * w.row_stride + s * S, load_pixel<A, S>(x.line(i, s)));
  for (int64_t s = whole; s * S < n; ++s) {
    const Channels<T> columns{data + s * S * w.column_stride, w.column_stride, w.row_stride,
                              int(std::min<int64_t>(S, n - s * S))};
    unpack<A, int(S), T>(x.line(0, s), columns, 0, w.rows);
  }
}

// Scratch that is there before the first write: who gets none of its own waits for it, so that no weight is left half
// rewritten.
struct Reserve {
  Scratch scratch;
  std::mutex mutex;
};

// What `correct` takes for a matrix of so many rows, at most.
template <class A>
int64_t correction_bytes(int64_t rows) {
  return 2 * padded(rows, kStrip<A>) * panel_columns<A>(rows) * int64_t(sizeof(A));
}

// Column panels [begin, end) of W.
template <class A, class T>
void correct(const SvcMatrix& w, const Correction<A>& by, int64_t begin, int64_t end, Reserve& reserve) {
  constexpr int64_t S = kStrip<A>;
  const int64_t m = padded(w.rows, S), k = padded(by.left.data ? by.k : w.rows, S), width = panel_columns<A>(w.rows);
  const Scratch own((m + k) * width * int64_t(sizeof(A)));
  std::unique_lock<std::mutex> lock(reserve.mutex, std::defer_lock);
  if (!own.data()) lock.lock();
  A* packed = static_cast<A*>(own.data() ? own.data() : reserve.scratch.data());
  const Lines<A> x{packed, S, m * S}, b{packed + m * width, S, k * S};
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * width, n = std::min(width, w.columns - first), strips = padded(n, S) / S;
    load_panel<A, T>(w, first, n, x);
    product<Into::assign>(b, by.right, read(x), w.rows, 0, k, 0, strips);
    if (by.left.data)
      product<Into::subtract>(x, by.left, read(b), by.k, 0, m, 0, strips);
    else
      for (int64_t i = 0; i < strips * m * S; ++i) x.data[i] -= b.data[i];
    store_panel<A, T>(w, first, n, x);
  }
}
