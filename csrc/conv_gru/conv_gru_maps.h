// Decides how feature maps lie in memory while the CPU kernels work: pixel by pixel, a pixel's channels side by side in
// lines of one cache line, each map within a border of zeros, so that no tap of a convolution needs a test. Compiled
// once per instruction set, no guard.

template <class A>
using Line = Pixel<A, kStrip<A>>;

constexpr int64_t kTile = 4;        // rows and columns of a Winograd tile
constexpr int64_t kPixelRun = 128;  // pixels that move between the caller's layout and this one at a time

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One map and its border. Rows and columns hold whole tiles; what is neither map nor border is zero as well.
struct Grid {
  int64_t depth, height, width, radius, depth_radius, slices, rows, columns;

  explicit Grid(const ConvGruShape& s)
      : depth(s.depth),
        height(s.height),
        width(s.width),
        radius(s.kernel / 2),
        depth_radius(s.volumes ? radius : 0),
        slices(depth + 2 * depth_radius),
        rows(tile_rows() * kTile + 2 * radius),
        columns(tile_columns() * kTile + 2 * radius) {}

  int64_t tile_rows() const { return ceil_div(height, kTile); }
  int64_t tile_columns() const { return ceil_div(width, kTile); }
  int64_t tiles() const { return depth * tile_rows() * tile_columns(); }  // of a map, slice by slice
  int64_t tap_slices() const { return 2 * depth_radius + 1; }
  int64_t pixels() const { return depth * height * width; }
  int64_t padded_pixels() const { return slices * rows * columns; }
  int64_t padded(int64_t d, int64_t y, int64_t x) const {
    return ((d + depth_radius) * rows + y + radius) * columns + x + radius;
  }
};

// Where a convolution's result belongs: map, pixel among all maps' pixels, the same within borders.
struct Place {
  int64_t map, pixel, padded;
};

// What becomes of a convolution's results: a line of `count` places, at values[i pitch]. Called once for many places,
// so that the engines are compiled once and not once for each use.
template <class A>
using Results = std::function<void(const Place* places, int64_t count, int64_t line, const A* values, int64_t pitch)>;

template <class A, class Each>
Results<A> for_each_place(const Each& each) {  // `each` must live as long
  return [&each](const Place* places, int64_t count, int64_t line, const A* values, int64_t pitch) {
    for (int64_t i = 0; i < count; ++i) each(places[i], line, load_pixel<A, kStrip<A>>(values + i * pitch));
  };
}

// `count` maps of `channels` channels, whole lines, `pitch` elements from pixel to pixel.
template <class A>
struct Maps {
  A* data;
  const Grid* grid;
  int64_t count, channels, pitch;

  int64_t lines() const { return channels / kStrip<A>; }
  A* at(const Place& place, int64_t line) const { return data + place.padded * pitch + line * kStrip<A>; }
  Maps from(int64_t map) const {
    return {data + map * grid->padded_pixels() * pitch, grid, count - map, channels, pitch};
  }
  Maps of_channels(int64_t first, int64_t n) const { return {data + first, grid, count, n, pitch}; }
};

// Calls f(i, Place) for n pixels of one map, from its pixel `first` on.
template <class F>
VG_INLINE void for_pixels(const Grid& grid, int64_t map, int64_t first, int64_t n, const F& f) {
  int64_t x = first % grid.width, y = first / grid.width % grid.height;
  Place at{map, map * grid.pixels() + first,
           map * grid.padded_pixels() + grid.padded(first / (grid.width * grid.height), y, x)};
  for (int64_t i = 0; i < n; ++i) {
    f(i, at);
    ++at.pixel, ++at.padded;
    if (++x < grid.width) continue;
    x = 0, at.padded += grid.columns - grid.width;
    if (++y < grid.height) continue;
    y = 0, at.padded += (grid.rows - grid.height) * grid.columns;
  }
}

// Calls run(map, line, first, n, scratch) for all lines of all maps, in runs of pixels; scratch holds a run of a line.
template <class A, class F>
void for_lines(const Parallel& parallel, const Grid& grid, int64_t maps, int64_t lines, const F& run) {
  const int64_t pixels = grid.pixels();
  parallel(maps * lines, pixels * kStrip<A>, [&](int64_t unit, int64_t end) {
    alignas(64) A scratch[kPixelRun * kStrip<A>];
    for (; unit < end; ++unit)
      for (int64_t first = 0; first < pixels; first += kPixelRun)
        run(unit / lines, unit % lines, first, std::min(kPixelRun, pixels - first), scratch);
    return true;
  });
}

// The channels of one line, of a map in the caller's layout: maps of `channels` planes, one after the other.
template <class A, class T>
VG_INLINE Channels<T> planes(T* maps, int64_t channels, const Grid& grid, int64_t map, int64_t line) {
  const int64_t channel = line * kStrip<A>;
  return {maps + (map * channels + channel) * grid.pixels(), grid.pixels(), 1,
          int(std::clamp<int64_t>(channels - channel, 0, kStrip<A>))};
}

// (maps, channels, S) T of the caller -> maps with borders. From null, and where takes(map) is false: zeros.
template <class A, class T, class Takes>
void take_maps(const Parallel& parallel, const T* from, int64_t channels, const Maps<A>& to, const Takes& takes) {
  for_lines<A>(parallel, *to.grid, to.count, to.lines(),
               [&](int64_t map, int64_t line, int64_t first, int64_t n, A* scratch) {
                 if (from && takes(map))
                   pack<A, kStrip<A>>(planes<A>(from, channels, *to.grid, map, line), first, n, scratch);
                 else
                   std::fill_n(scratch, n * kStrip<A>, A(0));
                 for_pixels(*to.grid, map, first, n, [&](int64_t i, const Place& at) {
                   store_pixel(to.at(at, line), load_pixel<A, kStrip<A>>(scratch + i * kStrip<A>));
                 });
               });
}
template <class A, class T>
void take_maps(const Parallel& parallel, const T* from, int64_t channels, const Maps<A>& to) {
  take_maps(parallel, from, channels, to, [](int64_t) { return true; });
}

// The way back.
template <class A, class T>
void give_maps(const Parallel& parallel, const Maps<A>& from, int64_t channels, T* to) {
  for_lines<A>(parallel, *from.grid, from.count, from.lines(),
               [&](int64_t map, int64_t line, int64_t first, int64_t n, A* scratch) {
                 for_pixels(*from.grid, map, first, n, [&](int64_t i, const Place& at) {
                   store_pixel(scratch + i * kStrip<A>, load_pixel<A, kStrip<A>>(from.at(at, line)));
                 });
                 unpack<A, kStrip<A>>(scratch, planes<A>(to, channels, *from.grid, map, line), first, n);
               });
}
