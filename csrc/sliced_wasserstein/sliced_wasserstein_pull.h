// Decides how derivatives by projections become derivatives by samples and by directions: with G (rows, L) of one side,
// grad_samples += G Theta and grad_directions += G^T samples. Compiled once per instruction set, no guard.

// The derivatives by the projections of one side on `count` directions, panel after panel, (rows, kPanel) each.
template <class A>
struct Held {
  const A* data;
  int64_t rows, count;
};

// c (rows, columns) op= one tile of a product, cut off where it is larger than c.
template <int kStrips, class A, class Rows>
void product_cut(bool add, A* c, int64_t c_row, int64_t rows, int64_t columns, const A* a, int64_t a_step,
                 const Rows& a_row, const A* x, int64_t x_strip, int64_t K, int64_t gap = 0) {
  constexpr int S = kStrip<A>, width = kStrips * S;
  if (rows >= kTileRows && columns >= width) {
    if (add) return product_tile<Into::add, kStrips>(c, c_row, S, a, a_step, a_row, x, S, x_strip, K, kPanel, gap);
    return product_tile<Into::assign, kStrips>(c, c_row, S, a, a_step, a_row, x, S, x_strip, K, kPanel, gap);
  }
  A tile[kTileRows * width];
  product_tile<Into::assign, kStrips>(tile, width, S, a, a_step, a_row, x, S, x_strip, K, kPanel, gap);
  for (int64_t r = 0; r < std::min<int64_t>(rows, kTileRows); ++r)
    for (int64_t i = 0; i < std::min<int64_t>(columns, width); ++i)
      c[r * c_row + i] = (add ? c[r * c_row + i] : A(0)) + tile[r * width + i];
}

constexpr int kWide = 3 * 16;  // columns of a packed block, at most; three strips of float32

// Columns [column, column + kStrips strips) of `rows` rows of `from`, (.., width): strips side by side, zeros past the
// width; a line more for each strip.
template <int kStrips, class A>
void pack_block(const A* from, int64_t rows, int64_t width, int64_t column, A* to) {
  constexpr int S = kStrip<A>;
  for (int s = 0; s < kStrips; ++s, to += (rows + 1) * S) {
    const int64_t first = column + s * S, count = std::min<int64_t>(S, width - first);
    for (int64_t k = 0; k < rows; ++k) {
      if (count == S) {
        store_pixel(to + k * S, load_pixel<A, S>(from + k * width + first));
      } else {
        for (int c = 0; c < S; ++c) to[k * S + c] = c < count ? from[k * width + first + c] : A(0);
      }
    }
  }
}

constexpr int64_t kBlock = 4 * kWide;  // columns of Theta that are packed at a time: a third of L2, for 512 directions

// grad (rows, dim) op= G Theta, for as many rows of G and of grad from their first ones; `packed` holds (G.count + 1)
// kBlock.
template <class A>
void pull_to_samples(bool add, Held<A> g, int64_t rows, const A* theta, int64_t dim, A* packed, A* grad) {
  for (int64_t first = 0; first < dim; first += kBlock) {
    const int64_t end = std::min(first + kBlock, dim);
    const auto place = [&](int64_t column) { return packed + (column - first) * (g.count + 1); };
    by_strips<A>(first, end, [&](auto strips, int64_t column) {
      pack_block<decltype(strips)::value>(theta, g.count, dim, column, place(column));
    });
    for (int64_t n = 0; n < rows; n += kTileRows) {
      Apart row;
      for (int r = 0; r < kTileRows; ++r) row.offset[r] = std::min<int64_t>(r, rows - 1 - n) * kPanel;
      by_strips<A>(first, end, [&](auto strips, int64_t column) {
        product_cut<decltype(strips)::value>(add, grad + n * dim + column, dim, rows - n, dim - column,
                                             g.data + n * kPanel, 1, row, place(column), (g.count + 1) * kStrip<A>,
                                             g.count, (g.rows - 1) * kPanel);
      });
    }
  }
}

constexpr int64_t kDeep = 256;  // samples whose coordinates are packed at a time

// grad (G.count, dim) op= G^T samples; `packed` holds (kDeep + 1) kWide. G is one panel.
template <class A>
void pull_to_directions(bool add, Held<A> g, Samples<A> samples, A* packed, A* grad) {
  by_strips<A>(0, samples.dim, [&](auto strips, int64_t column) {
    constexpr int kStrips = decltype(strips)::value;
    for (int64_t n = 0; n < samples.rows; n += kDeep) {
      const int64_t K = std::min(kDeep, samples.rows - n);
      pack_block<kStrips>(samples.data + n * samples.dim, K, samples.dim, column, packed);
      for (int64_t l = 0; l < g.count; l += kTileRows)
        product_cut<kStrips>(add || n > 0, grad + l * samples.dim + column, samples.dim, g.count - l,
                             samples.dim - column, g.data + n * kPanel + l, kPanel, SideBySide{}, packed,
                             (K + 1) * kStrip<A>, K);
    }
  });
}
