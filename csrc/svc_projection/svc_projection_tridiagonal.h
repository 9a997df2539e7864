// Decides how a symmetric matrix becomes tridiagonal, A = Q T Q^T, and how eigenvectors of T become those of A: blocked
// Householder reflections, so that half of the work is matrix products (Golub, Van Loan: Matrix Computations, section
// 8.3). Compiled once per instruction set.

constexpr int64_t kReflectors = 16;  // in a block; a multiple of every kStrip

// The sum of the elements, in one order.
template <class A>
VG_INLINE A sum_of(const Pixel<A, kStrip<A>>& x) {
  typename Pixel<A, kStrip<A>>::V sum = x.part[0];
  for (int i = 1; i < x.parts; ++i) sum += x.part[i];
  const Vector<A, 4> four = fold_to_4<A, Pixel<A, kStrip<A>>::N>(sum);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// The dot product of two rows of n elements, n a multiple of kStrip.
template <class A>
VG_INLINE A dot(const A* x, const A* y, int64_t n) {
  constexpr int S = kStrip<A>;
  Pixel<A, S> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * S <= n; i += 4 * S)
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) add_product(sum[q], load_pixel<A, S>(x + i + q * S), load_pixel<A, S>(y + i + q * S));
  for (; i < n; i += S) add_product(sum[0], load_pixel<A, S>(x + i), load_pixel<A, S>(y + i));
  for (int q = 1; q < 4; ++q) add_scaled(sum[0], A(1), sum[q]);
  return sum_of<A>(sum[0]);
}

// to -= the sum over q < count of factor[q] times row q, from element `from` to `end`.
template <class A>
void subtract_rows(A* to, const A* factor, Lines<const A> rows, int64_t count, int64_t from, int64_t end) {
  constexpr int S = kStrip<A>;
  for (int64_t i = from; i < end; i += S) {
    Pixel<A, S> sum = load_pixel<A, S>(to + i);
    for (int64_t q = 0; q < count; ++q) add_scaled(sum, -factor[q], load_pixel<A, S>(rows.line(q, 0) + i));
    store_pixel(to + i, sum);
  }
}

// y = A v from row `first` on, where v is 0 before it. Every line of A's upper half is read once and serves two sums.
template <class A>
void symmetric_times(Lines<const A> a, const A* v, A* y, int64_t first, int64_t rows) {
  constexpr int S = kStrip<A>;
  std::fill(y, y + rows, A(0));
  for (int64_t row = first / kTileRows * kTileRows; row < rows; row += kTileRows) {
    Pixel<A, S> sum[kTileRows];
    const Pixel<A, S> own = load_pixel<A, S>(v + row / S * S);  // against the diagonal block, which is whole
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      sum[r] = {};
      add_product(sum[r], load_pixel<A, S>(a.line(row + r, row / S)), own);
    }
    for (int64_t s = row / S + 1; s < rows / S; ++s) {
      const Pixel<A, S> across = load_pixel<A, S>(v + s * S);
      Pixel<A, S> down = load_pixel<A, S>(y + s * S);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
        const Pixel<A, S> line = load_pixel<A, S>(a.line(row + r, s));
        add_product(sum[r], line, across);
        add_scaled(down, v[row + r], line);
      }
      store_pixel(y + s * S, down);
    }
    for (int r = 0; r < kTileRows; ++r) y[row + r] += sum_of<A>(sum[r]);
  }
}

// A's strips down to the diagonal blocks (m x m, padded with zeros) become the reflections: row j holds, from column
// j + 1 on, the vector v of H = I - tau v v^T. T has the diagonal d (m) and beside it e (m - 1). `work`:
// (4 kReflectors + 1) (padded(m) + kStrip).
template <class A>
void tridiagonalise(Lines<A> a, int64_t m, double* d, double* e, double* tau, A* work) {
  constexpr int64_t S = kStrip<A>;
  const int64_t rows = padded(m, S);
  // Of the block's reflections, v_q in row 2 q and w_q in row 2 q + 1, and the other way round: A' = A - sum (v w^T +
  // w v^T) is then one product.
  const Lines<A> left{work, rows + S, S}, right{left.line(2 * kReflectors, 0), rows + S, S};
  A* y = right.line(2 * kReflectors, 0);
  const Lines<const A> given = read(a), lefts = read(left), rights = read(right);
  for (int64_t block = 0; block < m; block += kReflectors) {
    const int64_t count = std::min(kReflectors, m - block);
    std::fill(work, y, A(0));
    for (int64_t p = 0; p < count; ++p) {
      const int64_t j = block + p, from = j / S * S;
      A *row = a.line(j, 0), *v = left.line(2 * p, 0), *w = left.line(2 * p + 1, 0);
      A factor[2 * kReflectors];
      for (int64_t q = 0; q < 2 * p; ++q) factor[q] = right.line(q, 0)[j];
      subtract_rows(row, factor, lefts, 2 * p, from, rows);  // the block's reflections so far
      d[j] = double(row[j]);
      if (j + 1 == m) break;
      std::copy(row + j + 1, row + m, v + j + 1);
      const double head = double(v[j + 1]);
      v[j + 1] = 0;
      const double rest = std::sqrt(double(dot(v + from, v + from, rows - from)));
      e[j] = head, tau[j] = 0;
      if (rest > 0) {
        e[j] = head > 0 ? -std::hypot(head, rest) : std::hypot(head, rest);
        tau[j] = (e[j] - head) / e[j];
        const A scale = A(1 / (head - e[j]));
        for (int64_t i = j + 2; i < m; ++i) v[i] *= scale;
        v[j + 1] = 1;
        symmetric_times<A>(given, v, y, j + 1, rows);
        for (int64_t q = 0; q < 2 * p; ++q) factor[q] = dot(right.line(q, 0) + from, v + from, rows - from);
        subtract_rows(y, factor, lefts, 2 * p, from, rows);
        std::fill(y, y + j + 1, A(0));
        const double half = 0.5 * tau[j] * tau[j] * double(dot(y + from, v + from, rows - from));
        for (int64_t i = j + 1; i < m; ++i) w[i] = A(tau[j]) * y[i] - A(half) * v[i];
      }
      std::copy(v + j + 1, v + m, row + j + 1);
      std::copy(v, v + rows, right.line(2 * p + 1, 0));
      std::copy(w, w + rows, right.line(2 * p, 0));
    }
    const int64_t next = block + kReflectors;
    if (next < m) product_upper<Into::subtract>(a, lefts, rights, 2 * kReflectors, next, next / S, rows / S);
  }
}

// Z (m, strips) = Q Z. `work`: (2 (padded(m) + kStrip) + 3 strips kStrip) kReflectors + kReflectors^2 elements.
template <class A>
void apply_reflections(Lines<const A> a, const double* tau, int64_t m, Lines<A> z, int64_t strips, A* work) {
  constexpr int64_t S = kStrip<A>, R = kReflectors;
  const int64_t rows = padded(m, S), width = strips * S;
  const Lines<A> v{work, rows + S, S}, v_transposed{v.line(R, 0), R, S};               // (R, m), (m, R)
  const Lines<A> y{v_transposed.line(rows, 0), width, S}, ty{y.line(R, 0), width, S};  // (R, width)
  const Lines<A> t{ty.line(R, 0), R, S};                                               // T transposed
  for (int64_t block = (m - 1) / R * R; block >= 0; block -= R) {
    const int64_t count = std::min(R, m - 1 - block), from = block;
    std::fill(v.data, v.line(R, 0), A(0));
    std::fill(t.data, t.line(R, 0), A(0));
    for (int64_t p = 0; p < count; ++p) {
      const int64_t j = block + p;
      std::copy(a.line(j, 0) + j + 1, a.line(j, 0) + m, v.line(p, 0) + j + 1);
      double products[R];  // I - V^T T V is the product of the reflections: LAPACK's larft, forward
      for (int64_t q = 0; q < p; ++q) products[q] = double(dot(v.line(q, 0) + from, v.line(p, 0) + from, rows - from));
      for (int64_t q = 0; q < p; ++q) {
        double sum = 0;
        for (int64_t r = q; r < p; ++r) sum += double(t.line(r, 0)[q]) * products[r];
        t.line(p, 0)[q] = A(-tau[j] * sum);
      }
      t.line(p, 0)[p] = A(tau[j]);
    }
    for (int64_t i = from; i < rows; ++i)
      for (int64_t p = 0; p < R; ++p) v_transposed.line(i, 0)[p] = v.line(p, 0)[i];
    const Lines<const A> vt{v_transposed.line(from, 0), R, S}, zs{z.line(from, 0), z.row, z.strip};
    product<Into::assign>(y, vt, zs, rows - from, 0, R, 0, strips);
    product<Into::assign>(ty, read(t), read(y), R, 0, R, 0, strips);
    product<Into::subtract>(z, read(v), read(ty), R, from, rows, 0, strips);
  }
}
