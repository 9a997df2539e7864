// Decides how small dense products run: C op= A^T X over lines of one cache line each. Everything that costs m^2 n, k m
// n or m^3 in this room goes through `product`. Compiled once per instruction set, no guard.

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

// Rows [row, row_end) and strips [strip, strip_end) of C op= A^T X, where A is (K, rows of C) and X (K, columns of C).
// Rows come in multiples of kStrip; C's lines are as long as A's, its type may be wider. The sum over K runs in one
// order, whatever part of C is asked for.
template <Into how, class C, class A>
void product(Lines<C> c, Lines<const A> a, Lines<const A> x, int64_t K, int64_t row, int64_t row_end, int64_t strip,
             int64_t strip_end) {
  const auto columns = [&](auto strips, int64_t s) {
    for (int64_t r = row; r < row_end; r += kTileRows)
      product_tile<how, decltype(strips)::value>(c.line(r, s), c.row, c.strip, a.line(0, r / kStrip<A>) + r % kStrip<A>,
                                                 a.row, SideBySide{}, x.line(0, s), x.row, x.strip, K);
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
