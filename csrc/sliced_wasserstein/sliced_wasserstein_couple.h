// Decides which sorted samples are coupled, with what weight, and what a pair adds to the distance and to its gradient:
// sum_k w_k |s_(i_k) - t_(j_k)|^p. Compiled once per instruction set, no guard.

// ---- |d|^p and its derivative p |d|^(p-1) sign(d), which is 0 at 0 ----

struct PowerOne {
  template <class V>
  VG_INLINE V value(V d) const {
    return d < 0 ? -d : d;
  }
  template <class V>
  VG_INLINE V slope(V d) const {
    return (d > 0 ? V{} + 1 : V{}) - (d < 0 ? V{} + 1 : V{});
  }
};
struct PowerTwo {
  template <class V>
  VG_INLINE V value(V d) const {
    return d * d;
  }
  template <class V>
  VG_INLINE V slope(V d) const {
    return d + d;
  }
};
struct PowerAny {
  double p;
  template <class V>
  VG_INLINE V value(V d) const {
    for (size_t c = 0; c < sizeof d / sizeof d[0]; ++c) d[c] = std::pow(std::abs(d[c]), decltype(d[0] + 0)(p));
    return d;
  }
  template <class V>
  VG_INLINE V slope(V d) const {
    using A = decltype(d[0] + 0);
    for (size_t c = 0; c < sizeof d / sizeof d[0]; ++c)
      d[c] = d[c] == 0 ? A(0) : std::copysign(A(p) * std::pow(std::abs(d[c]), A(p - 1)), d[c]);
    return d;
  }
};
template <class F>
void with_power(double p, F f) {
  if (p == 1) return f(PowerOne{});
  if (p == 2) return f(PowerTwo{});
  f(PowerAny{p});
}

// ---- equal weights: the same segments for every direction ----

// The i-th smallest of one side meets the j-th smallest of the other, with weight `weight` / max(N, M).
struct Segment {
  int32_t i, j;
  double weight;
};

inline std::vector<Segment> uniform_segments(int64_t n, int64_t m) {
  std::vector<Segment> all;
  all.reserve(n + m);
  int64_t i = 0, j = 0, at = 0;  // in units of 1 / (n m)
  while (i < n) {
    const int64_t next = std::min((i + 1) * m, (j + 1) * n);
    all.push_back({int32_t(i), int32_t(j), double(next - at) / double(std::min(n, m))});
    i += next == (i + 1) * m;
    j += next == (j + 1) * n;
    at = next;
  }
  return all;
}

constexpr size_t kChainSegments = 64;  // as product_tile's kChain: what is summed in one register

// The sum over the segments in each lane of two sorted columns.
template <class A, class Power>
void distance(const std::vector<Segment>& segments, Column<A> x, Column<A> y, Power power, double* sum) {
  constexpr int S = kStrip<A>;
  std::fill_n(sum, S, 0.0);
  for (size_t first = 0; first < segments.size(); first += kChainSegments) {
    Pixel<A, S> chain = {};
    for (size_t k = first; k < std::min(first + kChainSegments, segments.size()); ++k) {
      const Pixel<A, S> s = load_pixel<A, S>(x.row(segments[k].i)), t = load_pixel<A, S>(y.row(segments[k].j));
#pragma GCC unroll 8
      for (int i = 0; i < s.parts; ++i) chain.part[i] += A(segments[k].weight) * power.value(s.part[i] - t.part[i]);
    }
    for (int c = 0; c < S; ++c) sum[c] += double(chain.part[c / chain.N][c % chain.N]);
  }
}

// ---- gradients: whose a sorted value was decides where its derivative goes ----

// Where the derivatives by the projections of one side go: of sample n, lane c, to data[n pitch + c]; null: nowhere.
template <class A>
struct Derivative {
  A* data;
  int64_t pitch;
  int lanes;

  void fill(int64_t rows, int c, A value) const {
    for (int64_t i = 0; data && i < rows; ++i) data[i * pitch + c] = value;
  }
};

// Derivatives on their way: held back for a while, so that a loop of scalar loads and stores moves them. Written at
// once they would be taken out of registers lane by lane.
template <class A>
struct Outgoing {
  static constexpr int kHeldBack = 64;
  Derivative<A> to;
  int count = 0;
  int32_t order[kHeldBack][kRanked];
  A value[kHeldBack][kRanked];

  explicit Outgoing(Derivative<A> to) : to(to) {}

  VG_INLINE void add(Vector<int32_t, kRanked> samples, Vector<A, kRanked> values) {
    if (!to.data) return;
    __builtin_memcpy(order[count], &samples, sizeof samples);
    __builtin_memcpy(value[count], &values, sizeof values);
    if (++count == kHeldBack) flush();
  }
  void flush() {
    if (to.lanes == kRanked) {
      for (int k = 0; k < count; ++k)
#pragma GCC unroll 8
        for (int c = 0; c < kRanked; ++c) to.data[order[k][c] * to.pitch + c] = value[k][c];
    } else {
      for (int k = 0; k < count; ++k)
        for (int c = 0; c < to.lanes; ++c) to.data[order[k][c] * to.pitch + c] = value[k][c];
    }
    count = 0;
  }
};

// The sum over the segments, and its derivative times `scale`.
template <class A, class Power>
void distance_and_slope(const std::vector<Segment>& segments, const Ranked<A>& x, const Ranked<A>& y, Power power,
                        A scale, Derivative<A> to_x, Derivative<A> to_y, double* sum) {
  using V = Vector<A, kRanked>;
  std::fill_n(sum, kRanked, 0.0);
  V by_x = {}, by_y = {};
  Outgoing<A> out_x(to_x), out_y(to_y);
  for (size_t first = 0; first < segments.size(); first += kChainSegments) {
    V chain = {};
    for (size_t k = first; k < std::min(first + kChainSegments, segments.size()); ++k) {
      const auto [i, j, weight] = segments[k];
      const V d = x.value(i) - y.value(j), slope = A(weight) * scale * power.slope(d);
      chain += A(weight) * power.value(d);
      by_x += slope;
      by_y -= slope;
      const bool last = k + 1 == segments.size();
      if (last || segments[k + 1].i != i) {
        out_x.add(x.order(i), by_x);
        by_x = V{};
      }
      if (last || segments[k + 1].j != j) {
        out_y.add(y.order(j), by_y);
        by_y = V{};
      }
    }
    for (int c = 0; c < kRanked; ++c) sum[c] += double(chain[c]);
  }
  out_x.flush();
  out_y.flush();
}

// ---- weights: each direction has segments of its own ----

// The share of a sample's weight that counts as none: two sides with the same weights were normalised by sums that may
// have rounded differently, and their samples still have to meet one by one.
constexpr double kNothing = 1e-13;

// One side of one lane: the k-th smallest sample's value and weight, and the derivative that it has gathered.
template <class A>
struct Queue {
  const Ranked<A>& ranked;
  const double* weights;
  Derivative<A> to;
  int64_t rows;
  int lane;
  int64_t k = 0, sample = 0;
  double left = 0, least = 0, value = 0, gathered = 0;

  Queue(const Ranked<A>& ranked, const double* weights, Derivative<A> to, int64_t rows, int lane)
      : ranked(ranked), weights(weights), to(to), rows(rows), lane(lane) {
    look();
  }
  void look() {
    sample = ranked.order(k)[lane];
    value = double(ranked.value(k)[lane]);
    left = weights[sample];
    least = kNothing * left;
  }
  void next() {
    if (to.data) to.data[sample * to.pitch + lane] = A(gathered);
    gathered = 0;
    if (++k < rows) look();
  }
  void take(double weight, double slope) {
    left -= weight;
    gathered += slope;
    if (!(left > least)) next();
  }
};

// 0, or NaN if they are none.
inline double check_weights(const double* weights, int64_t count) {
  bool right = true;
  for (int64_t i = 0; i < count; ++i) right &= weights[i] >= 0 && weights[i] <= 2;
  return right ? 0 : std::numeric_limits<double>::quiet_NaN();
}

// The same, lane by lane, where sample n of a side weighs weights[n].
template <class A, class Power>
void weighted_distance(const Ranked<A>& x, const Ranked<A>& y, int64_t n, int64_t m, const double* x_weights,
                       const double* y_weights, Power power, double scale, Derivative<A> to_x, Derivative<A> to_y,
                       double* sum) {
  using One = Vector<double, 1>;
  for (int lane = 0; lane < kRanked; ++lane) {
    Derivative<A> none{nullptr, 0, 0};
    Queue<A> s(x, x_weights, lane < to_x.lanes ? to_x : none, n, lane);
    Queue<A> t(y, y_weights, lane < to_y.lanes ? to_y : none, m, lane);
    sum[lane] = 0;
    while (s.k < n && t.k < m) {
      const double weight = std::min(s.left, t.left);
      double slope = 0;
      if (weight > 0) {  // a sample without weight may be at any distance
        const One d = {s.value - t.value};
        sum[lane] += weight * power.value(d)[0];
        slope = scale * weight * power.slope(d)[0];
      }
      s.take(weight, slope);
      t.take(weight, -slope);
    }
    while (s.k < n) s.next();  // rounding has left some weight on one side
    while (t.k < m) t.next();
  }
}
