// Winograd's minimal convolution F(4x4, 3x3): Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, arXiv
// 1509.09308. A 4 x 4 tile of outputs y from the 6 x 6 inputs d around it and a 3 x 3 filter g, with 36 products in
// place of 144:
//
//     y = A^T [ (G g G^T) . (B^T d B) ] A                        . element by element, at each of the 36 points
//
//         d (6 x 6)                B^T d B = V                  M = sum over inputs              A^T M A (4 x 4)
//      +--+--+--+--+--+--+                                         of V . U
//      |  |  |  |  |  |  |      +--------------+             +------------------+
//      +--+==+==+==+==+--+      | point 0      |             | point 0          |            +==+==+==+==+
//      |  |  |  |  |  |  |      |  tiles x     |   product   |  tiles x outputs |            |  |  |  |  |
//      +--+--+--+--+--+--+  ->  |  inputs      |  with U of  |                  |  ->        +--+--+--+--+ -> gates
//      |  |  |  |  |  |  |      +--------------+  each point +------------------+            |  |  |  |  |
//      +--+--+--+--+--+--+      | ...      35  |             | ...          35  |            +==+==+==+==+
//      |  |  |  |  |  |  |      +--------------+             +------------------+
//      +--+==+==+==+==+--+      a block of tiles             the same block, a panel         handed to the caller
//      |  |  |  |  |  |  |      stays in cache               of outputs                      pixel by pixel
//      +--+--+--+--+--+--+
//
// With z_0..z_4 = 0, 1, -1, 2, -2 and infinity, V and U are the values at z of the polynomials that tile and filter
// are, and y the coefficients of their product. Every transform is linear, so its transpose is its derivative: the
// gradient of g is G^T [ sum over tiles (B^T d B) . (A dy A^T) ] G. Any 3 x 3 "same" convolution can call this file; a
// 3 x 3 x 3 one is to it a 3 x 3 one of three times the inputs, those of the slices before, at and after the tile's.
// Compiled once per instruction set, no guard.

constexpr int kPoints = 36;
constexpr int64_t kBlock = 32;  // tiles of a unit, at most: their V and M stay in the L2 cache

// ---- the matrices, along one dim ----

template <class L>
VG_INLINE void data_upper(const L (&d)[6], L (&v)[3]) {  // rows 0 to 2 of B^T
  const L even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
  v[0] = 4 * d[0] - 5 * d[2] + d[4];
  v[1] = even + odd;
  v[2] = even - odd;
}
template <class L>
VG_INLINE void data_lower(const L (&d)[6], L (&v)[3]) {  // rows 3 to 5
  const L even = d[4] - d[2], odd = 2 * (d[3] - d[1]);
  v[0] = even + odd;
  v[1] = even - odd;
  v[2] = 4 * d[1] - 5 * d[3] + d[5];
}
template <class L>
VG_INLINE void data_transform(const L (&d)[6], L (&v)[6]) {  // B^T
  L upper[3], lower[3];
  data_upper(d, upper), data_lower(d, lower);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) v[i] = upper[i], v[i + 3] = lower[i];
}
template <class L>
VG_INLINE void filter_transform(const L (&g)[3], L (&u)[6]) {  // G
  const L ends = (-1.0f / 6) * (g[0] + g[2]), middle = (-1.0f / 6) * g[1];
  const L far_ends = (1.0f / 24) * g[0] + (1.0f / 6) * g[2], far_middle = (1.0f / 12) * g[1];
  u[0] = 0.25f * g[0];
  u[1] = ends + middle;
  u[2] = ends - middle;
  u[3] = far_ends + far_middle;
  u[4] = far_ends - far_middle;
  u[5] = g[2];
}
template <class L>
VG_INLINE void output_transform(const L (&m)[6], L (&y)[4]) {  // A^T
  const L sum = m[1] + m[2], difference = m[1] - m[2], far_sum = m[3] + m[4], far_difference = m[3] - m[4];
  y[0] = m[0] + sum + far_sum;
  y[1] = difference + 2 * far_difference;
  y[2] = sum + 4 * far_sum;
  y[3] = difference + 8 * far_difference + m[5];
}
template <class L>
VG_INLINE void output_transposed(const L (&y)[4], L (&m)[6]) {  // A
  const L even = y[0] + y[2], odd = y[1] + y[3], far_even = y[0] + 4 * y[2], far_odd = 2 * y[1] + 8 * y[3];
  m[0] = y[0];
  m[1] = even + odd;
  m[2] = even - odd;
  m[3] = far_even + far_odd;
  m[4] = far_even - far_odd;
  m[5] = y[3];
}
template <class L>
VG_INLINE void filter_transposed(const L (&u)[6], L (&g)[3]) {  // G^T
  const L sum = u[1] + u[2], difference = u[2] - u[1], far_sum = u[3] + u[4], far_difference = u[3] - u[4];
  g[0] = 0.25f * u[0] - (1.0f / 6) * sum + (1.0f / 24) * far_sum;
  g[1] = (1.0f / 6) * difference + (1.0f / 12) * far_difference;
  g[2] = (1.0f / 6) * (far_sum - sum) + u[5];
}

// One line of one tile: element (i, j) by load(i, j), transformed along i to kRows, then along j to kOut. What is
// between the two is kept in registers: at most 24 vectors.
template <class A, int kIn, int kRows, int kOut, class Along, class Across, class Load, class Store>
VG_INLINE void transform_tile(const Along& along, const Across& across, const Load& load, const Store& store) {
  Line<A> half[kRows][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    Line<A> in[kIn], out[kRows];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) in[i] = load(i, j);
    along(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    Line<A> out[kOut];
    across(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kOut; ++j) store(i, j, out[j]);
  }
}

// The matrices as functions that can be handed on.
#define VG_TRANSFORM(name) [](const auto& in, auto& out) VG_LAMBDA { name(in, out); }

// A point is one of Winograd's 36.
struct WinogradPoint {
  template <class A>
  VG_INLINE static void write(const A* taps, int64_t, A* to, int64_t step) {
    transform_tile<A, 3, 6, 6>(
        VG_TRANSFORM(filter_transform), VG_TRANSFORM(filter_transform),
        [&](int i, int j) VG_LAMBDA { return load_pixel<A, kStrip<A>>(taps + (i * 3 + j) * kStrip<A>); },
        [&](int i, int j, const Line<A>& u) VG_LAMBDA { store_pixel(to + (i * 6 + j) * step, u); });
  }
};

// Tiles of a row of maps, numbered map by map, slice by slice.
struct Tile {
  int64_t map, d, y, x;  // of its first pixel
  Tile(const Grid& grid, int64_t index)
      : map(index / grid.tiles()),
        d(index % grid.tiles() / (grid.tile_rows() * grid.tile_columns())),
        y(index / grid.tile_columns() % grid.tile_rows() * kTile),
        x(index % grid.tile_columns() * kTile) {}
};

// V of tiles [first, first + n): point p, tile i, line l at v[p point + i tile + l line]; lines of slice after slice.
template <class A>
void transform_data(const Maps<A>& maps, int64_t first, int64_t n, A* v, int64_t point, int64_t tile, int64_t line) {
  const Grid& grid = *maps.grid;
  for (int64_t i = 0; i < n; ++i) {
    const Tile at(grid, first + i);
    const int64_t corner = at.map * grid.padded_pixels() + (at.d * grid.rows + at.y) * grid.columns + at.x;
    for (int64_t l = 0; l < grid.tap_slices() * maps.lines(); ++l) {
      const int64_t slice = l / maps.lines() * grid.rows * grid.columns;
      const A* from = maps.data + (corner + slice) * maps.pitch + l % maps.lines() * kStrip<A>;
      A* to = v + i * tile + l * line;
      const auto load = [&](int y, int x)
                            VG_LAMBDA { return load_pixel<A, kStrip<A>>(from + (y * grid.columns + x) * maps.pitch); };
      transform_tile<A, 6, 3, 6>(VG_TRANSFORM(data_upper), VG_TRANSFORM(data_transform), load,
                                 [&](int y, int x, const Line<A>& out)
                                     VG_LAMBDA { store_pixel(to + (y * 6 + x) * point, out); });
      transform_tile<A, 6, 3, 6>(VG_TRANSFORM(data_lower), VG_TRANSFORM(data_transform), load,
                                 [&](int y, int x, const Line<A>& out)
                                     VG_LAMBDA { store_pixel(to + (y * 6 + 18 + x) * point, out); });
    }
  }
}

// Rows of a product that are `stride` apart.
struct Spaced {
  int64_t stride;
  int64_t operator[](int r) const { return r * stride; }
};

// The places of a tile that exist; how many.
inline int64_t places_of(const Grid& grid, const Tile& tile, Place* places) {
  int64_t count = 0;
  const int64_t rows = std::min(kTile, grid.height - tile.y), columns = std::min(kTile, grid.width - tile.x);
  for (int64_t y = tile.y; y < tile.y + rows; ++y)
    for (int64_t x = tile.x; x < tile.x + columns; ++x)
      places[count++] = {tile.map, tile.map * grid.pixels() + (tile.d * grid.height + y) * grid.width + x,
                         tile.map * grid.padded_pixels() + grid.padded(tile.d, y, x)};
  return count;
}

// y = A^T M A of one line of a tile: the first `columns` of each row, side by side.
template <class A>
void transform_output(const A* m, int64_t point, int64_t columns, A* y) {
  constexpr int S = kStrip<A>;
  transform_tile<A, 6, 4, 4>(
      VG_TRANSFORM(output_transform), VG_TRANSFORM(output_transform),
      [&](int i, int j) VG_LAMBDA { return load_pixel<A, S>(m + (i * 6 + j) * point); },
      [&](int i, int j, const Line<A>& value) VG_LAMBDA { store_pixel(y + (i * columns + j) * S, value); });
}

// The convolution of `in` with `panels` (of WinogradPoints).
template <class A>
void convolve_winograd(const Parallel& parallel, const Maps<A>& in, const Panels<A>& panels,
                       const Results<A>& results) {
  const Grid& grid = *in.grid;
  const int64_t tiles = in.count * grid.tiles(), blocks = ceil_div(tiles, kBlock), inputs = panels.inputs;
  static_assert(kBlock % kTileRows == 0, "then a block's size is at most kBlock, and the last one is not empty");
  const int64_t size = ceil_div(ceil_div(tiles, blocks), kTileRows) * kTileRows;  // of a block
  // a few lines more, so that the points do not fall on the same sets of the cache
  const int64_t v_point = size * inputs + kStrip<A>, m_point = size * 3 * kStrip<A> + kStrip<A>;
  const int64_t work = size * inputs * kPoints;
  parallel(blocks * panels.panels(), work, [&](int64_t unit, int64_t end) {
    const Scratch memory(kPoints * (v_point + m_point) * int64_t(sizeof(A)));
    if (!memory.data()) return false;
    A *v = static_cast<A*>(memory.data()), *m = v + kPoints * v_point;
    for (int64_t transformed = -1; unit < end; ++unit) {
      const int64_t block = unit / panels.panels(), panel = unit % panels.panels();
      const int64_t first = block * size, n = std::min(size, tiles - first), width = panels.width(panel);
      if (block != transformed) transform_data(in, first, n, v, v_point, inputs, kStrip<A>);
      transformed = block;
      const int64_t m_row = width * kStrip<A>;
      for (int p = 0; p < kPoints; ++p)
        by_strips<A>(0, m_row, [&](auto strips, int64_t column) {
          for (int64_t row = 0; row < n; row += kTileRows)
            product_tile<Into::assign, strips>(m + p * m_point + row * m_row + column, m_row, kStrip<A>,
                                               v + p * v_point + row * inputs, 1, Spaced{inputs},
                                               panels.at(panel, p) + column, m_row, kStrip<A>, panels.multiplied);
        });
      for (int64_t i = 0; i < n; ++i) {
        const Tile tile(grid, first + i);
        Place places[kTile * kTile];
        const int64_t count = places_of(grid, tile, places), columns = std::min(kTile, grid.width - tile.x);
        for (int64_t l = 0; l < width; ++l) {
          alignas(64) A values[kTile * kTile * kStrip<A>];
          transform_output(m + i * m_row + l * kStrip<A>, m_point, columns, values);
          results(places, count, panels.first(panel) + l, values, kStrip<A>);
        }
      }
    }
    return true;
  });
}
