// The plain convolution of any odd kernel, in 2 or 3 dims: for each tap the product of the maps, shifted by the tap,
// with its weights. Compiled once per instruction set, no guard.

constexpr int64_t kDirectRows = 64;  // pixels of a unit: with their sums they stay in the L1 cache

// The taps of a kernel, in the order of the weights: how far each one is from its pixel.
struct Tap {
  int64_t d, y, x;
  Tap(const Grid& grid, int64_t index) {
    const int64_t k = 2 * grid.radius + 1;
    d = index / (k * k) - grid.depth_radius, y = index / k % k - grid.radius, x = index % k - grid.radius;
  }
  int64_t padded(const Grid& grid) const { return (d * grid.rows + y) * grid.columns + x; }
  bool inside(const Grid& grid, int64_t at) const {  // of a position of the map
    const int64_t x_ = at % grid.width + x, y_ = at / grid.width % grid.height + y,
                  d_ = at / (grid.width * grid.height) + d;
    return x_ >= 0 && x_ < grid.width && y_ >= 0 && y_ < grid.height && d_ >= 0 && d_ < grid.depth;
  }
};

inline int64_t count_taps(const Grid& grid) {
  const int64_t k = 2 * grid.radius + 1;
  return k * k * (2 * grid.depth_radius + 1);
}

// The convolution of `in` with `panels` (of TapPoints). Pixels are taken position by position, all maps of each: at the
// edges of small maps whole tiles of rows are outside.
template <class A>
void convolve_direct(const Parallel& parallel, const Maps<A>& in, const Panels<A>& panels, const Results<A>& results) {
  const Grid& grid = *in.grid;
  const int64_t rows = in.count * grid.pixels(), blocks = ceil_div(rows, kDirectRows), taps = count_taps(grid);
  parallel(blocks * panels.panels(), kDirectRows * in.channels * taps, [&](int64_t unit, int64_t end) {
    alignas(64) A sums[kDirectRows * 3 * kStrip<A>];
    for (; unit < end; ++unit) {
      const int64_t panel = unit % panels.panels(), first = unit / panels.panels() * kDirectRows,
                    n = std::min(kDirectRows, rows - first), row = panels.width(panel) * kStrip<A>;
      Place places[kDirectRows];
      int64_t position[kDirectRows];
      Apart offsets[kDirectRows / kTileRows];
      for (int64_t i = 0; i < kDirectRows; ++i) {
        const int64_t index = first + std::min(i, n - 1), map = index % in.count, at = position[i] = index / in.count;
        const int64_t padded =
            grid.padded(at / (grid.width * grid.height), at / grid.width % grid.height, at % grid.width);
        places[i] = {map, map * grid.pixels() + at, map * grid.padded_pixels() + padded};
        offsets[i / kTileRows].offset[i % kTileRows] = places[i].padded * in.pitch;
      }
      std::fill_n(sums, kDirectRows * row, A(0));
      for (int64_t t = 0; t < taps; ++t) {
        const Tap tap(grid, t);
        for (int64_t i = 0; i < n; i += kTileRows) {
          bool inside = false;
          for (int r = 0; r < kTileRows; ++r) inside |= tap.inside(grid, position[i + r]);
          if (!inside) continue;
          by_strips<A>(0, row, [&](auto strips, int64_t column) {
            product_tile<Into::add, strips>(sums + i * row + column, row, kStrip<A>,
                                            in.data + tap.padded(grid) * in.pitch, 1, offsets[i / kTileRows],
                                            panels.at(panel, t) + column, row, kStrip<A>, panels.multiplied);
          });
        }
      }
      for (int64_t l = 0; l < panels.width(panel); ++l)
        results(places, n, panels.first(panel) + l, sums + l * kStrip<A>, row);
    }
    return true;
  });
}
