// Decides how small dense products run: C op= A^T X over lines of one cache line each, in register tiles. Everything
// that costs m^2 n, k m n or m^3 in this room goes through `product`. Compiled once per instruction set, no guard.

template <class A>
constexpr int kStrip = 64 / int(sizeof(A));  // elements of a line

// A matrix in lines: element (i, j) is data[i * row + j / kStrip * strip + j % kStrip]. Rows side by side: strip is
// kStrip; strips side by side (all rows of kStrip columns, then the next columns): row is kStrip. Widths are padded to
// whole lines, with zeros.
template <class A>
struct Lines {
  A* data;
  int64_t row, strip;
  A* line(int64_t i, int64_t s) const { return data + i * row + s * strip; }
};

template <class A>
Lines<const A> read(Lines<A> lines) {
  return {lines.data, lines.row, lines.strip};
}

enum class Into { assign, add, subtract };

constexpr int kTileRows = VG_ISA_BYTES / 8;              // 8, 4 or 2 rows of C
constexpr int kTileStrips = VG_ISA_BYTES == 64 ? 3 : 1;  // lines of C in each; 24 or 8 registers of sums

// The longest sum in one register: equal terms round one way each time, which adds up to a sixteenth of kChain units.
constexpr int64_t kChain = 64;

template <class C, class A>
VG_INLINE void store_result(C* to, Pixel<A, kStrip<A>> out, Into how) {
  constexpr int S = kStrip<A>;
  if constexpr (std::is_same_v<C, A>) {
    const Pixel<A, S> old = how == Into::assign ? Pixel<A, S>{} : load_pixel<A, S>(to);
#pragma GCC unroll 4
    for (int i = 0; i < out.parts; ++i)
      out.part[i] = how == Into::add        ? old.part[i] + out.part[i]
                    : how == Into::subtract ? old.part[i] - out.part[i]
                                            : out.part[i];
    store_pixel(to, out);
  } else {  // sums in C, a wider type
    constexpr int N = VG_ISA_BYTES / int(sizeof(C));
    A lanes[S];
    store_pixel(lanes, out);
#pragma GCC unroll 8
    for (int i = 0; i < S; i += N) {
      const Vector<C, N> more = load<C, N>(lanes + i);
      store<C, N>(to + i, how == Into::assign ? more : load<C, N>(to + i) + more);
    }
  }
}

// a: K x kTileRows, x: K x kStrips lines
template <Into how, int kStrips, class C, class A>
VG_INLINE void product_tile(C* c, int64_t c_row, int64_t c_strip, const A* a, int64_t a_row, const A* x, int64_t x_row,
                            int64_t x_strip, int64_t K) {
  using Line = Pixel<A, kStrip<A>>;
  Line total[kTileRows][kStrips] = {};
  for (int64_t first = 0; first < K; first += kChain) {
    Line sum[kTileRows][kStrips] = {};
    for (int64_t k = std::min(kChain, K - first); k > 0; --k, a += a_row, x += x_row) {
      Line factor[kStrips];
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) factor[s] = load_pixel<A, kStrip<A>>(x + s * x_strip);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < kStrips; ++s) add_scaled(sum[r][s], a[r], factor[s]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) add_scaled(total[r][s], A(1), sum[r][s]);
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int s = 0; s < kStrips; ++s) store_result(c + r * c_row + s * c_strip, total[r][s], how);
}

// Rows [row, row_end) and strips [strip, strip_end) of C op= A^T X, where A is (K, rows of C) and X (K, columns of C).
// Rows come in multiples of kStrip; C's lines are as long as A's, its type may be wider. The sum over K runs in one
// order, whatever part of C is asked for.
template <Into how, class C, class A>
void product(Lines<C> c, Lines<const A> a, Lines<const A> x, int64_t K, int64_t row, int64_t row_end, int64_t strip,
             int64_t strip_end) {
  const auto columns = [&](auto strips, int64_t s) {
    for (int64_t r = row; r < row_end; r += kTileRows)
      product_tile<how, decltype(strips)::value>(c.line(r, s), c.row, c.strip, a.line(0, r / kStrip<A>) + r % kStrip<A>,
                                                 a.row, x.line(0, s), x.row, x.strip, K);
  };
  int64_t s = strip;
  for (; s + kTileStrips <= strip_end; s += kTileStrips) columns(std::integral_constant<int, kTileStrips>{}, s);
  if (kTileStrips == 3 && s + 2 == strip_end) columns(std::integral_constant<int, 2>{}, s);
  if (kTileStrips == 3 && s + 1 == strip_end) columns(std::integral_constant<int, 1>{}, s);
}

// The same for a C that is square and symmetric: strips [strip, strip_end), of each the rows down to the diagonal's
// block of kStrip x kStrip, which is whole.
template <Into how, class C, class A>
void product_upper(Lines<C> c, Lines<const A> a, Lines<const A> x, int64_t K, int64_t first_row, int64_t strip,
                   int64_t strip_end) {
  constexpr int64_t S = kStrip<A>;
  for (int64_t s = strip; s < strip_end; s += kTileStrips) {
    const int64_t end = std::min<int64_t>(s + kTileStrips, strip_end);
    product<how>(c, a, x, K, first_row, std::max(first_row, (s + 1) * S), s, end);
    for (int64_t next = s + 1; next < end; ++next)
      product<how>(c, a, x, K, std::max(first_row, next * S), std::max(first_row, (next + 1) * S), next, end);
  }
}
