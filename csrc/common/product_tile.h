// Decides how the registers of a small dense product are used: a tile of C op= A^T X, in lines of one cache line each.
// Which tiles make a product is for each op to say. Compiled once per instruction set (foreach_isa.h), no guard.

template <class A>
constexpr int kStrip = 64 / int(sizeof(A));  // elements of a line

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

// Where in A the rows of C are found, from the first one: side by side, or anywhere.
struct SideBySide {
  constexpr int64_t operator[](int r) const { return r; }
};
struct Apart {
  int64_t offset[kTileRows];
  int64_t operator[](int r) const { return offset[r]; }
};

// kTileRows rows of kStrips lines of C op= A^T X. Of step k, row r of A is at a[k a_step + a_row[r]], strip s of X at
// x[k x_row + s x_strip]. The sum over k runs in one order, whatever the row, the strip and kStrips: in chains, after
// each of which a and x are `gap` and `x_gap` elements further on.
template <Into how, int kStrips, class C, class A, class Rows>
VG_INLINE void product_tile(C* c, int64_t c_row, int64_t c_strip, const A* a, int64_t a_step, const Rows& a_row,
                            const A* x, int64_t x_row, int64_t x_strip, int64_t K, int64_t chain = kChain,
                            int64_t gap = 0, int64_t x_gap = 0) {
  using Line = Pixel<A, kStrip<A>>;
  Line total[kTileRows][kStrips] = {}, sum[kTileRows][kStrips] = {};
  for (int64_t first = 0; first < K; first += chain, a += gap, x += x_gap) {
    if (first > 0)
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < kStrips; ++s) total[r][s] = sum[r][s], sum[r][s] = Line{};
    for (int64_t k = std::min(chain, K - first); k > 0; --k, a += a_step, x += x_row) {
      Line factor[kStrips];
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) factor[s] = load_pixel<A, kStrip<A>>(x + s * x_strip);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < kStrips; ++s) add_scaled(sum[r][s], a[a_row[r]], factor[s]);
    }
    if (first > 0)
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < kStrips; ++s) add_scaled(sum[r][s], A(1), total[r][s]);
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int s = 0; s < kStrips; ++s) store_result(c + r * c_row + s * c_strip, sum[r][s], how);
}

// Calls f(kStrips, column) until the columns [column, end) are done; column is a multiple of the widest.
template <class A, class F>
void by_strips(int64_t column, int64_t end, const F& f) {
  constexpr int S = kStrip<A>;
  for (; column + (kTileStrips - 1) * S < end; column += kTileStrips * S)
    f(std::integral_constant<int, kTileStrips>{}, column);
  if (kTileStrips == 3 && column + S < end)
    f(std::integral_constant<int, 2>{}, column);
  else if (kTileStrips == 3 && column < end)
    f(std::integral_constant<int, 1>{}, column);
}
