// Decides what the Gram matrix of one weight says: inside the bound (certificate), or which correction it needs and
// whether the corrected matrix is certified. Compiled once per instruction set.

enum class Verdict : int { inside, clip, wider, nonfinite, no_memory };  // wider: G is needed in double

// What G must satisfy, in terms of singular values.
struct SvcAim {
  double bound, tolerance;
  double target;  // what larger ones are clipped to: the bound, or a little less where an earlier round failed
  bool carry;     // take the certificate of the result from G, without another Gram matrix
};

// W - U (1 - c / s) U^T W cancels all but c / s of W: smaller shares are reached in several rounds, since clipping to
// more than the bound before clipping to the bound changes nothing.
constexpr double kLeastShare = 1e-3;

// The correction of one matrix, and what the report says about it.
template <class A>
struct Clip {
  Correction<A> by{};
  int64_t clipped = 0;
  double largest = 0;
  bool certified = false, reached = false;  // reached: the target, not only a step on the way
  Scratch memory;                           // of `by`
};

// Pieces of one scratch, each on whole cache lines; with no memory behind it, it only counts.
class Pieces {
 public:
  explicit Pieces(void* data) : data_(static_cast<char*>(data)) {}
  template <class T>
  void take(T*& piece, int64_t elements) {
    piece = reinterpret_cast<T*>(data_ ? data_ + used_ : nullptr);
    used_ += padded(elements * int64_t(sizeof(T)), 64);
  }
  int64_t used() const { return used_; }

 private:
  char* data_;
  int64_t used_ = 0;
};

// Memory for all that `lay_out(pieces)` takes. False: there is none.
template <class LayOut>
bool reserve(Scratch& scratch, const LayOut& lay_out) {
  Pieces count(nullptr);
  lay_out(count);
  scratch = Scratch(count.used());
  Pieces pieces(scratch.data());
  lay_out(pieces);
  return scratch.data() != nullptr;
}

// (rows of `from`, columns) -> its transpose with strips side by side: (columns, rows of `from`), of `columns` rows.
template <class A>
Lines<A> transpose(Lines<const A> from, int64_t rows, int64_t columns, A* to) {
  constexpr int64_t S = kStrip<A>;
  for (int64_t s = 0; s < rows / S; ++s)
    pack<A, int(S), A>(Channels<const A>{from.line(s * S, 0), from.row, 1, int(S)}, 0, columns, to + s * S * columns);
  return {to, S, S * columns};
}

// The blocks below the diagonal from those above it; `work` holds one strip.
template <class A>
void mirror(Lines<A> a, int64_t rows, A* work) {
  constexpr int64_t S = kStrip<A>;
  for (int64_t s = 0; s < rows / S; ++s) {
    transpose(read(Lines<A>{a.line(s * S, s + 1), a.row, S}), S, rows - (s + 1) * S, work);
    for (int64_t j = (s + 1) * S; j < rows; ++j)
      store_pixel(a.line(j, s), load_pixel<A, S>(work + (j - (s + 1) * S) * S));
  }
}

// limit I - G, down to the diagonal blocks.
template <class A>
void shift(Lines<const A> g, double limit, int64_t rows, Lines<A> out) {
  constexpr int64_t S = kStrip<A>;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i / S * S; j < rows; ++j) out.line(i, 0)[j] = -g.line(i, 0)[j];
    out.line(i, 0)[i] += A(limit);
  }
}

// A lower bound of the largest eigenvalue, from a few steps of power iteration: what is far outside needs no factor to
// be told. `work`: 2 rows.
template <class A>
double rayleigh(Lines<const A> g, int64_t rows, A* work) {
  A *v = work, *next = work + rows;
  std::fill(v, v + rows, A(1));
  double quotient = 0;
  for (int step = 0; step < 4; ++step) {
    symmetric_times(g, v, next, 0, rows);
    const double energy = double(dot(v, next, rows)), length = double(dot(v, v, rows));
    if (!(energy > 0)) break;
    quotient = energy / length;
    const A scale = A(1 / quotient);
    for (int64_t i = 0; i < rows; ++i) v[i] = next[i] * scale;
  }
  return quotient;
}

template <class A>
double frobenius(Lines<const A> g, int64_t rows) {  // of a symmetric matrix, from its strips down to the diagonal
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const A* row = g.line(i, 0);
    sum += double(row[i]) * double(row[i]);
    A beside = 0;
    for (int64_t j = i + 1; j < rows; ++j) beside += row[j] * row[j];
    sum += 2 * double(beside);
  }
  return std::sqrt(sum);
}

// T = Q^T G Q, as `a` (the reflections) and these.
struct Reduced {
  double *d, *e, *tau;
  Tridiagonal t(int64_t m) const { return {m, d, e}; }
};

// Columns of u (padded(m), lines of padded(k)): eigenvectors of G for the k values. False: no memory.
template <class A>
bool eigenvectors(Lines<const A> a, int64_t m, const Reduced& reduced, const double* values, int64_t k, Lines<A> u) {
  constexpr int64_t S = kStrip<A>, D = kStrip<double>;
  const int64_t kd = padded(k, D), rows = padded(m, S);
  Scratch scratch;
  Lane* lanes;
  double *vectors, *joined;
  A* reflections;
  if (!reserve(scratch, [&](Pieces& pieces) {
        pieces.take(lanes, 5 * m);
        pieces.take(vectors, m * kd);
        pieces.take(joined, kd * (kd + padded(m, D)));
        pieces.take(reflections, kReflectors * (2 * (rows + S) + 3 * padded(k, S) + kReflectors));
      }))
    return false;
  const Lines<double> z{vectors, kd, D};
  std::fill(vectors, vectors + m * kd, 0.0);
  inverse_iterate(reduced.t(m), values, k, z, lanes);
  orthonormalise(z, m, k, joined);  // where it fails the vectors stay as they are, and the certificate tells
  std::fill(u.data, u.line(rows, 0), A(0));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < k; ++j) u.line(i, 0)[j] = A(vectors[i * kd + j]);
  apply_reflections(a, reduced.tau, m, u, padded(k, S) / S, reflections);
  return true;
}

// One Newton-Schulz step towards orthonormal columns, u -= u (u^T u - I) / 2: the reflections leave an error of several
// units of rounding, and what it adds to a singular value is as large as that. `products`: k x k, `transposed`: k x m.
template <class A>
void straighten(Lines<A> u, int64_t rows, int64_t k, A* products, A* transposed) {
  constexpr int64_t S = kStrip<A>;
  const Lines<A> s{products, k, S};
  product<Into::assign>(s, read(u), read(u), rows, 0, k, 0, k / S);
  for (int64_t i = 0; i < k; ++i) {
    s.line(i, 0)[i] -= 1;
    for (int64_t j = 0; j < k; ++j) s.line(i, 0)[j] *= A(0.5);
  }
  product<Into::subtract>(u, read(transpose(read(u), rows, k, transposed)), read(s), k, 0, rows, 0, k / S);
}

// Scales the columns of u, and of gu = G u with them, by sqrt((1 - target / s) / u^T u). s is Rayleigh's quotient: as
// exact as G, which an eigenvalue of T is not. `work`: 2 k doubles.
template <class A>
void scale_columns(Lines<A> u, Lines<A> gu, int64_t m, int64_t k, double target, double* work) {
  double *length = work, *energy = work + k;
  std::fill(work, work + 2 * k, 0.0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < k; ++j) {
      length[j] += double(u.line(i, 0)[j]) * double(u.line(i, 0)[j]);
      energy[j] += double(u.line(i, 0)[j]) * double(gu.line(i, 0)[j]);
    }
  for (int64_t j = 0; j < k; ++j)
    length[j] = std::sqrt(std::max(0.0, 1 - target / std::sqrt(energy[j] / length[j])) / length[j]);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < k; ++j) u.line(i, 0)[j] *= A(length[j]), gu.line(i, 0)[j] *= A(length[j]);
}

// Whether (I - E) G (I - E), E = F^T F, is below `limit`: the Gram matrix of the corrected weight, which is
// G - Y F - (Y F)^T with Y = G F^T - F^T S / 2, S = F G F^T. Given F (k, m), F^T, G F^T (m, k); `shifted`: limit I - G.
template <class A>
bool is_corrected_below(Lines<A> shifted, Lines<const A> f, Lines<const A> ft, Lines<const A> gft, int64_t rows,
                        int64_t k, A* energies, A* transposed) {
  constexpr int64_t S = kStrip<A>;
  const Lines<A> s{energies, k, S};
  product<Into::assign>(s, gft, ft, rows, 0, k, 0, k / S);
  for (int64_t i = 0; i < k * k; ++i) energies[i] *= A(0.5);
  const Lines<A> y = transpose(gft, rows, k, transposed);
  product<Into::subtract>(y, read(s), f, k, 0, k, 0, rows / S);
  product_upper<Into::add>(shifted, read(y), f, k, 0, 0, rows / S);
  product_upper<Into::add>(shifted, f, read(y), k, 0, 0, rows / S);
  return cholesky(shifted, rows, rows / S);
}

// `gram`: strips of G down to the diagonal blocks; completed here.
template <class A>
Verdict clip_spectrum(A* gram, int64_t m, const SvcAim& aim, Clip<A>& out) {
  constexpr int64_t S = kStrip<A>;
  const auto squared = [](double x) { return x * x; };
  const int64_t rows = padded(m, S);
  const double most = aim.bound * (1 + aim.tolerance);
  const Lines<A> g = square<A>(gram, m);
  Scratch scratch;
  A *copy, *panels;
  double* values;
  Reduced reduced;
  if (!reserve(scratch, [&](Pieces& pieces) {
        pieces.take(copy, rows * g.row);
        pieces.take(panels, (4 * kReflectors + 1) * g.row);
        pieces.take(reduced.d, m), pieces.take(reduced.e, m), pieces.take(reduced.tau, m);
        pieces.take(values, 2 * m);
      }))
    return Verdict::no_memory;
  const Lines<A> a = square<A>(copy, m);

  if (rayleigh(read(g), rows, panels) < squared(most)) {
    shift(read(g), squared(most), rows, a);
    out.certified = cholesky(a, rows, rows / S);
    out.largest = std::min(most, std::sqrt(frobenius(read(g), rows)));  // sigma_max^2 <= ||G||_F
    if (out.certified) return Verdict::inside;
  }

  std::copy(gram, gram + rows * g.row, copy);
  tridiagonalise(a, m, reduced.d, reduced.e, reduced.tau, panels);
  const auto above = [&](double target) { return squared(target * (1 + aim.tolerance / 6)); };
  const int64_t found = count_above(reduced.t(m), above(aim.target));
  const bool doubtful = found == 0;  // rounding: the certificate failed, yet T has nothing above
  int64_t k = std::max<int64_t>(1, found);
  bisect(reduced.t(m), k, doubtful ? 0 : above(aim.target), values);
  out.largest = std::sqrt(values[0]);
  if (sizeof(A) < sizeof(double) && (doubtful || out.largest > kSvcWide * aim.bound)) return Verdict::wider;
  const double target = std::max(aim.target, out.largest * kLeastShare);
  while (k > 1 && values[k - 1] < above(target)) --k;

  const int64_t width = padded(k, S);
  const bool dense = 2 * k > m;  // then the m x m matrix E costs less than its k factors
  Scratch products;
  A *right, *left, *u_data, *gu_data, *energies, *transposed;
  const bool kept = reserve(out.memory, [&](Pieces& pieces) {
    pieces.take(left, width * rows);
    pieces.take(right, rows * (dense ? rows : width));
  });
  const bool had = reserve(products, [&](Pieces& pieces) {
    pieces.take(gu_data, rows * width), pieces.take(u_data, rows * width), pieces.take(energies, width * width),
        pieces.take(transposed, width * rows);
  });
  if (!kept || !had) return Verdict::no_memory;
  const Lines<A> u{u_data, width, S}, gu{gu_data, width, S};
  if (!eigenvectors(read(a), m, reduced, values, k, u)) return Verdict::no_memory;

  mirror(g, rows, panels);
  if (sizeof(A) < sizeof(double)) {  // a step of subspace iteration removes what the reflections' rounding left
    product<Into::assign>(gu, read(g), read(u), m, 0, rows, 0, width / S);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < k; ++j) u.line(i, 0)[j] = gu.line(i, 0)[j] / A(values[j]);
  }
  straighten(u, rows, width, energies, transposed);
  product<Into::assign>(gu, read(g), read(u), m, 0, rows, 0, width / S);
  scale_columns(u, gu, m, k, target, values);
  const Lines<const A> f = read(transpose(read(u), rows, width, left));
  out.clipped = k;
  if (dense) {
    const Lines<A> projector{right, rows, S};
    product<Into::assign>(projector, f, f, k, 0, rows, 0, rows / S);
    out.by = {read(projector), {}, m};
  } else {
    const Lines<A> ft{right, S, S * rows};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t s = 0; s < width / S; ++s) store_pixel(ft.line(i, s), load_pixel<A, S>(u.line(i, s)));
    out.by = {read(ft), f, k};
  }
  out.certified = false;
  out.reached = target == aim.target;
  if (aim.carry && out.reached) {
    shift(read(g), squared(aim.bound * (1 + aim.tolerance / 2)), rows, a);
    out.certified = is_corrected_below(a, f, read(u), read(gu), rows, width, energies, transposed);
  }
  return Verdict::clip;
}
