// Decides how the eigenvectors above a bound are found, and only those: tridiagonal form, eigenvalues by bisection with
// Sturm counts, vectors by inverse iteration in double, orthogonal by Cholesky QR. Compiled once per instruction set.

constexpr int kLanes = VG_ISA_BYTES / 8;  // eigenvalues side by side
using Lane = Vector<double, kLanes>;

struct Tridiagonal {
  int64_t m;
  const double *d, *e;  // (m), (m - 1)
  double norm() const {
    double largest = 0;
    for (int64_t i = 0; i < m; ++i)
      largest = std::max(largest, std::abs(d[i]) + (i ? std::abs(e[i - 1]) : 0) + (i + 1 < m ? std::abs(e[i]) : 0));
    return largest;
  }
};

// How many eigenvalues are at least x: the pivots of T - x that are not negative (Sylvester's inertia). kChains groups
// of lanes at once, since each waits for its own divisions.
template <int kChains>
VG_INLINE void count_from(const Tridiagonal& t, const Lane (&x)[kChains], Lane (&count)[kChains]) {
  constexpr double tiny = 1e-290;
  Lane pivot[kChains];
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) pivot[c] = t.d[0] - x[c], count[c] = Lane{};
  for (int64_t i = 1;; ++i) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) count[c] += pivot[c] < 0 ? Lane{} : Lane{} + 1;
    if (i == t.m) return;
    const double square = t.e[i - 1] * t.e[i - 1];
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const auto vanishes = (pivot[c] < 0 ? -pivot[c] : pivot[c]) < tiny;
      pivot[c] = t.d[i] - x[c] - square / (vanishes ? Lane{} + tiny : pivot[c]);
    }
  }
}

inline int64_t count_above(const Tridiagonal& t, double x) {
  const Lane at[1] = {Lane{} + x};
  Lane count[1];
  count_from(t, at, count);
  return int64_t(count[0][0]);
}

// The k largest eigenvalues, largest first, all of them above `least`, to the last bits that bisection gives.
inline void bisect(const Tridiagonal& t, int64_t k, double least, double* values) {
  constexpr int kChains = 4;
  for (int64_t first = 0; first < k; first += kChains * kLanes) {
    Lane low[kChains], high[kChains], rank[kChains], middle[kChains], count[kChains];
    for (int c = 0; c < kChains; ++c) {
      low[c] = Lane{} + least, high[c] = Lane{} + t.norm();
      for (int l = 0; l < kLanes; ++l) rank[c][l] = double(std::min(first + c * kLanes + l, k - 1) + 1);
    }
    for (int step = 0; step < 54; ++step) {
      for (int c = 0; c < kChains; ++c) middle[c] = low[c] + (high[c] - low[c]) * 0.5;
      count_from(t, middle, count);
      for (int c = 0; c < kChains; ++c) {
        low[c] = count[c] >= rank[c] ? middle[c] : low[c];
        high[c] = count[c] >= rank[c] ? high[c] : middle[c];
      }
    }
    for (int64_t i = first; i < std::min(k, first + kChains * kLanes); ++i)
      values[i] = low[(i - first) / kLanes][(i - first) % kLanes];
  }
}

// Solves (T - value) x = b by elimination with row exchanges, kLanes right sides at once, each with its own value.
// `factors`: 4 m lanes.
class ShiftedSolve {
 public:
  ShiftedSolve(const Tridiagonal& t, Lane value, Lane* factors) : t_(t), f_(factors) {
    const double tiny = std::max(t.norm() * 1e-16, 1e-300);
    Lane pivot = t.d[0] - value, beside = Lane{} + (t.m > 1 ? t.e[0] : 0);
    for (int64_t i = 0; i + 1 < t.m; ++i) {
      const Lane below = Lane{} + t.e[i], diagonal = t.d[i + 1] - value,
                 after = Lane{} + (i + 2 < t.m ? t.e[i + 1] : 0);
      const auto exchange = magnitude(below) > magnitude(pivot);
      const Lane top = guarded(exchange ? below : pivot, tiny), factor = (exchange ? pivot : below) / top;
      f_[4 * i] = 1 / top;
      f_[4 * i + 1] = exchange ? diagonal : beside;
      f_[4 * i + 2] = exchange ? after : Lane{};
      f_[4 * i + 3] = exchange ? factor + 4 : factor;  // |factor| <= 1: 3 and more says exchanged
      pivot = exchange ? beside - factor * diagonal : diagonal - factor * beside;
      beside = exchange ? -factor * after : after;
    }
    f_[4 * (t.m - 1)] = 1 / guarded(pivot, tiny);
  }

  void operator()(Lane* x) const {
    const int64_t m = t_.m;
    for (int64_t i = 0; i + 1 < m; ++i) {
      const auto exchanged = f_[4 * i + 3] >= 3;
      const Lane factor = exchanged ? f_[4 * i + 3] - 4 : f_[4 * i + 3];
      const Lane top = exchanged ? x[i + 1] : x[i], bottom = exchanged ? x[i] : x[i + 1];
      x[i] = top;
      x[i + 1] = bottom - factor * top;
    }
    for (int64_t i = m - 1; i >= 0; --i) {
      if (i + 1 < m) x[i] -= f_[4 * i + 1] * x[i + 1];
      if (i + 2 < m) x[i] -= f_[4 * i + 2] * x[i + 2];
      x[i] *= f_[4 * i];
    }
    Lane sum = {};
    for (int64_t i = 0; i < m; ++i) sum += x[i] * x[i];
    Lane scale;
    for (int l = 0; l < kLanes; ++l) scale[l] = 1 / std::sqrt(sum[l]);
    for (int64_t i = 0; i < m; ++i) x[i] *= scale;
  }

 private:
  static Lane magnitude(Lane x) { return x < 0 ? -x : x; }
  static Lane guarded(Lane pivot, double tiny) {
    return magnitude(pivot) < tiny ? (pivot < 0 ? Lane{} - tiny : Lane{} + tiny) : pivot;
  }
  const Tridiagonal& t_;
  Lane* f_;
};

// Eigenvectors of T for the k values: columns of z (m, lines of padded(k)), near to orthogonal except where values
// agree to the last bits. `work`: 5 m lanes.
inline void inverse_iterate(const Tridiagonal& t, const double* values, int64_t k, Lines<double> z, Lane* work) {
  const double apart = 4e-16 * t.norm();
  uint64_t state = 0x9E3779B97F4A7C15u;  // xorshift: the same start at every call
  double previous = 0;
  for (int64_t first = 0; first < k; first += kLanes) {
    Lane value;
    for (int l = 0; l < kLanes; ++l) {  // equal values are pulled apart, or they would give the same vector
      const int64_t i = std::min(first + l, k - 1);
      value[l] = i == 0 ? values[0] : std::min(values[i], previous - apart);
      previous = value[l];
    }
    const ShiftedSolve solve(t, value, work + t.m);
    for (int64_t i = 0; i < t.m; ++i)
      for (int l = 0; l < kLanes; ++l) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        work[i][l] = double(state >> 11) * 0x1p-53 - 0.5;
      }
    for (int pass = 0; pass < 3; ++pass) solve(work);
    for (int64_t i = 0; i < t.m; ++i)
      for (int l = 0; l < kLanes && first + l < k; ++l) {
        const int64_t column = first + l;
        z.line(i, column / kStrip<double>)[column % kStrip<double>] = work[i][l];
      }
  }
}

// The columns of z (m, k) made orthonormal: Z = Q R with R^T R = Z^T Z, twice, so that the second pass cleans what
// rounding left of the first. `work`: padded(k) rows of padded(k) + padded(m). False: they depend on each other.
inline bool orthonormalise(Lines<double> z, int64_t m, int64_t k, double* work) {
  constexpr int64_t S = kStrip<double>;
  const int64_t kp = padded(k, S), width = kp + padded(m, S);
  const Lines<double> joined{work, width, S};  // [Z^T Z, Z^T] -> [R, Q^T]
  const Lines<const double> given = read(z);
  for (int pass = 0; pass < 2; ++pass) {
    product_upper<Into::assign>(joined, given, given, m, 0, 0, kp / S);
    for (int64_t i = 0; i < kp; ++i) {
      double* row = joined.line(i, 0);
      for (int64_t j = 0; j < m; ++j) row[kp + j] = z.line(j, i / S)[i % S];
      std::fill(row + kp + m, row + width, 0.0);
      if (i >= k) row[i] = 1;
    }
    if (!cholesky(joined, kp, width / S)) return false;
    for (int64_t j = 0; j < m; ++j)
      for (int64_t i = 0; i < k; ++i) z.line(j, i / S)[i % S] = joined.line(i, 0)[kp + j];
  }
  return true;
}
