// Decides how the gradients of weights are summed: over blocks of steps, in Winograd's domain or tap by tap; what the
// sums become in the end. Compiled once per instruction set, no guard.

constexpr int64_t kGradientTiles = 256;  // summed at a time, at most

// The gradient of the weights from some lines of the inputs to some lines of d: sums (points, inputs, outputs).
template <class A>
struct WeightGradient {
  const Maps<A>* in;
  int64_t slices;                 // of taps that count as inputs
  int64_t first_output, outputs;  // channels of d
  A* sums;

  int64_t inputs() const { return slices * in->channels; }
  int64_t lines() const { return slices * in->lines(); }
  A* at(int64_t point, int64_t line) const { return sums + (point * inputs() + line * kStrip<A>)*outputs; }
};

// B^T x B of tiles' inputs, or A dy A^T of their results: point p, line l, tile i at data[p point + l line + i lane].
template <class A>
struct TileLines {
  A* data;
  int64_t point, line;
  A* at(int64_t p, int64_t l) const { return data + p * point + l * line; }
};

template <class A>
void transform_gradient(const Maps<A>& d, int64_t tile_index, A* to, int64_t point, int64_t line) {
  const Grid& grid = *d.grid;
  const Tile tile(grid, tile_index);
  const A* corner = d.data + (tile.map * grid.padded_pixels() + grid.padded(tile.d, tile.y, tile.x)) * d.pitch;
  for (int64_t l = 0; l < d.lines(); ++l)
    transform_tile<A, 4, 6, 6>(
        VG_TRANSFORM(output_transposed), VG_TRANSFORM(output_transposed),
        [&](int y, int x)
            VG_LAMBDA { return load_pixel<A, kStrip<A>>(corner + (y * grid.columns + x) * d.pitch + l * kStrip<A>); },
        [&](int i, int j, const Line<A>& m) VG_LAMBDA { store_pixel(to + (i * 6 + j) * point + l * line, m); });
}

// Sums over all tiles of `d`; the first time the sums are assigned. False: no memory.
template <class A>
bool add_winograd_gradients(const Parallel& parallel, const std::vector<WeightGradient<A>>& gradients, const Maps<A>& d,
                            bool first_time) {
  constexpr int S = kStrip<A>;
  const int64_t tiles = d.count * d.grid->tiles(), blocks = ceil_div(tiles, kGradientTiles),
                size = ceil_div(tiles, blocks);
  int64_t in_lines = 0;
  for (const auto& gradient : gradients) in_lines += gradient.lines();
  const int64_t line = size * S, v_point = in_lines * line + S, d_point = d.lines() * line + S;
  const Scratch memory(kPoints * (v_point + d_point) * int64_t(sizeof(A)));
  if (!memory.data()) return false;
  A* data = static_cast<A*>(memory.data());
  const TileLines<A> v{data, v_point, line}, m{data + kPoints * v_point, d_point, line};
  for (int64_t first = 0; first < tiles; first += size, first_time = false) {
    const int64_t n = std::min(size, tiles - first);
    parallel(n, (in_lines + d.lines()) * S * kPoints, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        int64_t at = 0;
        for (const auto& gradient : gradients) {
          transform_data(*gradient.in, first + i, 1, v.at(0, at) + i * S, v_point, 0, line);
          at += gradient.lines();
        }
        transform_gradient(d, first + i, m.data + i * S, d_point, line);
      }
      return true;
    });
    parallel(kPoints * in_lines, n * S * d.channels, [&](int64_t unit, int64_t end) {
      for (; unit < end; ++unit) {
        const int64_t p = unit / in_lines;
        int64_t l = unit % in_lines;
        const A* inputs = v.at(p, l);
        size_t which = 0;
        for (; l >= gradients[which].lines(); ++which) l -= gradients[which].lines();
        const WeightGradient<A>& to = gradients[which];
        const A* outputs = m.at(p, to.first_output / S);
        by_strips<A>(0, to.outputs, [&](auto strips, int64_t column) {
          for (int64_t row = 0; row < S; row += kTileRows) {
            A* c = to.at(p, l) + row * to.outputs + column;
            const A* x = outputs + column / S * line;
            if (first_time)
              product_tile<Into::assign, strips>(c, to.outputs, S, inputs + row, S, SideBySide{}, x, S, line, n);
            else
              product_tile<Into::add, strips>(c, to.outputs, S, inputs + row, S, SideBySide{}, x, S, line, n);
          }
        });
      }
      return true;
    });
  }
  return true;
}

// The same, tap by tap.
template <class A>
void add_direct_gradients(const Parallel& parallel, const WeightGradient<A>& to, const Maps<A>& d, bool first_time) {
  constexpr int S = kStrip<A>;
  const Grid& grid = *d.grid;
  const Maps<A>& in = *to.in;
  const int64_t taps = count_taps(grid), gap = grid.columns - grid.width;
  parallel(taps * in.lines(), d.count * grid.pixels() * to.outputs, [&](int64_t unit, int64_t end) {
    for (; unit < end; ++unit) {
      const int64_t t = unit / in.lines(), l = unit % in.lines(), shift = Tap(grid, t).padded(grid);
      if (first_time) std::fill_n(to.at(t, l), S * to.outputs, A(0));
      by_strips<A>(0, to.outputs, [&](auto strips, int64_t column) {
        for (int64_t row = 0; row < S; row += kTileRows)
          for (int64_t slice = 0; slice < d.count * grid.depth; ++slice) {
            const int64_t at = slice / grid.depth * grid.padded_pixels() + grid.padded(slice % grid.depth, 0, 0);
            product_tile<Into::add, strips>(to.at(t, l) + row * to.outputs + column, to.outputs, S,
                                            in.data + (at + shift) * in.pitch + l * S + row, in.pitch, SideBySide{},
                                            d.data + at * d.pitch + to.first_output + column, d.pitch, S,
                                            grid.height * grid.width, grid.width, gap * in.pitch, gap * d.pitch);
          }
      });
    }
    return true;
  });
}

// The sums -> (outputs, inputs, taps) of the caller, its channels in `outputs.groups` groups.
template <class T>
void give_weight_gradient(const Parallel& parallel, const WeightGradient<Acc<T>>& from, bool winograd, int64_t inputs,
                          Grouped outputs, int64_t taps, T* to) {
  using A = Acc<T>;
  constexpr int S = kStrip<A>;
  const int64_t runs = ceil_div(inputs, kInputRun), lines = from.outputs / S, point = from.inputs() * from.outputs,
                of_slice = taps / from.slices, padded = kept_channels(outputs.channels);
  parallel(runs * lines, kInputRun * S * taps, [&](int64_t unit, int64_t end) {
    const Scratch memory(kInputRun * taps * S * int64_t(sizeof(A)));
    A* scratch = static_cast<A*>(memory.data());
    if (!scratch) return false;
    for (; unit < end; ++unit) {
      const int64_t line = unit % lines, input = unit / lines * kInputRun, n = std::min(kInputRun, inputs - input);
      const int64_t output = line * S % padded, row = line * S / padded * outputs.channels + output;
      const int count = int(std::clamp<int64_t>(outputs.channels - output, 0, S));
      for (int64_t i = 0; i < n * from.slices; ++i) {
        const int64_t slice = i % from.slices, of_run = i / from.slices;
        const A* sums = from.sums + (slice * from.in->channels + input + of_run) * from.outputs + line * S;
        A* of_input = scratch + i * of_slice * S;
        if (winograd)
          transform_tile<A, 6, 3, 3>(
              VG_TRANSFORM(filter_transposed), VG_TRANSFORM(filter_transposed),
              [&](int a, int b) VG_LAMBDA { return load_pixel<A, S>(sums + (a * 6 + b) * point); },
              [&](int a, int b, const Line<A>& g) VG_LAMBDA { store_pixel(of_input + (a * 3 + b) * S, g); });
        else
          for (int64_t t = 0; t < taps; ++t) store_pixel(of_input + t * S, load_pixel<A, S>(sums + t * point));
      }
      unpack<A, S>(scratch, Channels<T>{to + (row * inputs + input) * taps, inputs * taps, 1, count}, 0, n * taps);
    }
    return true;
  });
}

// Sums of d over all pixels, in double, one for each channel.
template <class A>
void add_bias_gradients(const Parallel& parallel, const Maps<A>& d, double* sums) {
  constexpr int S = kStrip<A>;
  parallel(d.lines(), d.count * d.grid->pixels() * S, [&](int64_t line, int64_t end) {
    for (; line < end; ++line)
      for (int64_t map = 0; map < d.count; ++map)
        for (int64_t first = 0; first < d.grid->pixels(); first += kPixelRun) {
          Line<A> sum{};
          for_pixels(*d.grid, map, first, std::min(kPixelRun, d.grid->pixels() - first),
                     [&](int64_t, const Place& at) { sum = sum + load_pixel<A, S>(d.at(at, line)); });
          A lanes[S];
          store_pixel(lanes, sum);
          for (int c = 0; c < S; ++c) sums[line * S + c] += double(lanes[c]);
        }
    return true;
  });
}
