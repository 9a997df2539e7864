// Decides the order of the work: panels of directions of all entries; where gradients are asked for, in chunks of
// directions whose derivatives are held until they are pulled back to samples and directions. Any split of the units
// over threads gives the same bits: a unit writes what no other one does, and chunks follow each other. Compiled once
// per instruction set, no guard.

constexpr int64_t kHeld = int64_t(16) << 20;  // bytes of derivatives held at a time, if one panel's take no more
constexpr int64_t kRows = 128;                // samples of a unit that pulls back

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class A>
struct Call {
  const SlicedWassersteinParams& p;
  bool gradients, weighted;
  std::vector<Segment> segments;  // of equal weights
  std::vector<double> sums;       // (B, L): W_p^p

  explicit Call(const SlicedWassersteinParams& p)
      : p(p),
        gradients(p.grad_x || p.grad_y || p.grad_projections),
        weighted(p.x_weights),
        segments(weighted ? std::vector<Segment>{} : uniform_segments(p.n, p.m)),
        sums(p.batch * p.directions) {}

  int64_t rows(int side) const { return side == 0 ? p.n : p.m; }
  Samples<A> samples(int64_t b, int side) const {
    const A* data = static_cast<const A*>(side == 0 ? p.x : p.y);
    return {data + b * rows(side) * p.dim, rows(side), p.dim};
  }
  Directions<A> directions(int64_t b, int64_t first, int64_t count) const {
    const A* data = static_cast<const A*>(p.projections);
    if (data) data += b / (p.batch / p.groups) * p.directions * p.dim;
    return {data, first, count, p.dim};
  }
  A* grad(int side) const { return static_cast<A*>(side == 0 ? p.grad_x : p.grad_y); }
  // of the sum over segments
  double scale() const { return 1.0 / double(weighted ? 1 : std::max(p.n, p.m)); }
};

// What a thread needs for one panel at a time.
template <class A>
struct PanelScratch {
  Scratch memory;
  Columns<A> columns[2];
  Column<double> keys[2] = {};
  A* packed = nullptr;
  int32_t* index[2] = {};

  explicit PanelScratch(const Call<A>& call) {
    const bool ranked = call.gradients || call.weighted;
    int64_t bytes = 0;
    const auto place = [&](auto& at, int64_t elements) {
      using T = std::remove_reference_t<decltype(*at)>;
      if (memory.data()) at = reinterpret_cast<T*>(static_cast<char*>(memory.data()) + bytes);
      bytes += ceil_div(elements * int64_t(sizeof(T)), 64) * 64;
    };
    for (int pass = 0; pass < 2; ++pass) {  // how much, then where
      bytes = 0;
      place(packed, call.p.projections ? packed_elements<A>(call.p.dim) : 0);
      for (int side = 0; side < 2; ++side) {
        const int64_t rows = columns[side].rows = call.rows(side);
        place(columns[side].data, Columns<A>::elements(rows));
        keys[side].chunks = Column<double>::chunks_for(rows);
        place(keys[side].data, ranked ? Column<double>::elements(rows) : 0);
        place(index[side], ranked && sizeof(A) == 8 ? rows * kRanked : 0);
      }
      if (pass == 0) memory = Scratch(bytes);
      if (!memory.data()) return;
    }
  }
};

// Sorts and couples the columns of one panel, whose derivatives go to `to`, of both sides.
template <class A>
void couple_panel(Call<A>& call, PanelScratch<A>& scratch, int64_t b, int64_t first, int64_t count,
                  const Derivative<A> (&to)[2]) {
  const SlicedWassersteinParams& p = call.p;
  for (int64_t l = 0; l < count; l += kStrip<A>) {
    const Column<A> column[2] = {scratch.columns[0][l / kStrip<A>], scratch.columns[1][l / kStrip<A>]};
    const Pixel<A, kStrip<A>> wrong_x = finish_column(column[0], p.n), wrong_y = finish_column(column[1], p.m);
    double sum[kStrip<A>];
    const auto derivative = [&](int side, int64_t lane) {
      const Derivative<A>& all = to[side];
      return Derivative<A>{all.data ? all.data + l + lane : nullptr, all.pitch,
                           int(std::min<int64_t>(kRanked, count - l - lane))};
    };
    if (call.gradients || call.weighted) {
      for (int lane = 0; lane < kStrip<A> && l + lane < count; lane += kRanked) {
        const Ranked<A> x = rank(column[0], lane, p.n, scratch.keys[0], scratch.index[0]);
        const Ranked<A> y = rank(column[1], lane, p.m, scratch.keys[1], scratch.index[1]);
        const double scale = call.scale() / double(p.directions);
        with_power(p.p, [&](auto power) {
          if (call.weighted)
            weighted_distance(x, y, p.n, p.m, p.x_weights + b * p.n, p.y_weights + b * p.m, power, scale,
                              derivative(0, lane), derivative(1, lane), sum + lane);
          else
            distance_and_slope(call.segments, x, y, power, A(scale), derivative(0, lane), derivative(1, lane),
                               sum + lane);
        });
      }
    } else {
      sort_column(column[0]);
      sort_column(column[1]);
      with_power(p.p, [&](auto power) { distance(call.segments, column[0], column[1], power, sum); });
    }
    for (int c = 0; c < std::min<int64_t>(kStrip<A>, count - l); ++c) {
      const double wrong =
          double(wrong_x.part[c / wrong_x.N][c % wrong_x.N] + wrong_y.part[c / wrong_y.N][c % wrong_y.N]);
      call.sums[b * p.directions + first + l + c] = sum[c] * call.scale() + wrong;
      if (wrong == 0) continue;
      for (int side = 0; side < 2; ++side)
        derivative(side, 0).fill(call.rows(side), c, std::numeric_limits<A>::quiet_NaN());
    }
  }
}

// Phase 1 of entries [entry, entries_end) and directions [first, end): derivatives go to held[side], (entries, rows,
// pitch), or nowhere.
template <class A>
void couple(Call<A>& call, const Parallel& parallel, int64_t entry, int64_t entries_end, int64_t first, int64_t end,
            A* const (&held)[2], int64_t pitch) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t panels = ceil_div(end - first, kPanel), work = (p.n + p.m) * (p.dim + 64) * kPanel / 16;
  parallel((entries_end - entry) * panels, work, [&](int64_t unit, int64_t unit_end) {
    PanelScratch<A> scratch(call);
    if (!scratch.memory.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = entry + unit / panels, l = first + unit % panels * kPanel;
      const Directions<A> directions = call.directions(b, l, std::min<int64_t>(kPanel, end - l));
      const Samples<A> samples[2] = {call.samples(b, 0), call.samples(b, 1)};
      if (p.projections) {
        project(samples, directions, scratch.packed, scratch.columns);
      } else {
        for (int side = 0; side < 2; ++side) take_columns(samples[side], directions, scratch.columns[side]);
      }
      Derivative<A> to[2];
      for (int side = 0; side < 2; ++side) {
        const int64_t at = (b - entry) * call.rows(side) * pitch + l - first;
        to[side] = {held[side] ? held[side] + at : nullptr, pitch, 0};
      }
      couple_panel(call, scratch, b, l, directions.count, to);
    }
    return true;
  });
}

// Phase 2: the held derivatives of a chunk, times its directions, are added to the gradients of the samples.
template <class A>
void pull_all_to_samples(const Call<A>& call, const Parallel& parallel, int64_t entry, int64_t entries_end,
                         int64_t first, int64_t end, A* const (&held)[2], int64_t pitch) {
  const SlicedWassersteinParams& p = call.p;
  int64_t blocks[2];
  for (int side = 0; side < 2; ++side) blocks[side] = call.grad(side) ? ceil_div(call.rows(side), kRows) : 0;
  const int64_t units = (entries_end - entry) * (blocks[0] + blocks[1]);
  if (units == 0) return;
  parallel(units, kRows * p.dim * (end - first) / 16, [&](int64_t unit, int64_t unit_end) {
    const Scratch packed((end - first + 1) * kWide * int64_t(sizeof(A)));
    if (!packed.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = entry + unit / (blocks[0] + blocks[1]), block = unit % (blocks[0] + blocks[1]);
      const int side = block >= blocks[0];
      const int64_t rows = call.rows(side), row = (block - (side ? blocks[0] : 0)) * kRows;
      const Directions<A> directions = call.directions(b, first, end - first);
      pull_to_samples<A>(first > 0, {held[side] + ((b - entry) * rows + row) * pitch, pitch, end - first},
                         std::min(kRows, rows - row), directions.data + first * p.dim, p.dim,
                         static_cast<A*>(packed.data()), call.grad(side) + (b * rows + row) * p.dim);
    }
    return true;
  });
}

// Phase 3: the same, times the samples of both sides, gives the gradients of the chunk's directions.
template <class A>
void pull_all_to_directions(const Call<A>& call, const Parallel& parallel, int64_t entry, int64_t entries_end,
                            int64_t first, int64_t end, A* const (&held)[2], int64_t pitch) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t panels = ceil_div(end - first, kPanel);
  parallel((entries_end - entry) * panels, (p.n + p.m) * p.dim * kPanel / 16, [&](int64_t unit, int64_t unit_end) {
    const Scratch packed((kDeep + 1) * kWide * int64_t(sizeof(A)));
    if (!packed.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = entry + unit / panels, l = unit % panels * kPanel;
      A* grad = static_cast<A*>(p.grad_projections) + (b * p.directions + first + l) * p.dim;
      for (int side = 0; side < 2; ++side)
        pull_to_directions<A>(
            side == 1,
            {held[side] + (b - entry) * call.rows(side) * pitch + l, pitch, std::min<int64_t>(kPanel, end - first - l)},
            call.samples(b, side), static_cast<A*>(packed.data()), grad);
    }
    return true;
  });
}

// Panels and pulls, chunk by chunk. False: no memory.
template <class A>
bool couple_and_pull(Call<A>& call, const Parallel& parallel) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t all = (p.n + p.m) * int64_t(sizeof(A));  // bytes of one direction's derivatives
  const int64_t chunks = ceil_div(p.directions, std::max<int64_t>(kPanel, kHeld / all / kPanel * kPanel));
  const int64_t chunk = ceil_div(ceil_div(p.directions, chunks), kPanel) * kPanel;
  const int64_t pitch = (std::min(ceil_div(p.directions, kStrip<A>) * kStrip<A>, chunk) / kStrip<A> | 1) * kStrip<A>;
  const int64_t entries = chunks > 1 ? 1 : std::clamp<int64_t>(kHeld / (all * pitch), 1, p.batch);
  const bool asked[2] = {p.grad_x || p.grad_projections, p.grad_y || p.grad_projections};
  const Scratch memory[2] = {Scratch(asked[0] ? entries * p.n * pitch * int64_t(sizeof(A)) : 0),
                             Scratch(asked[1] ? entries * p.m * pitch * int64_t(sizeof(A)) : 0)};
  A* held[2];
  for (int side = 0; side < 2; ++side) {
    if (!memory[side].data()) return false;
    held[side] = asked[side] ? static_cast<A*>(memory[side].data()) : nullptr;
  }
  for (int64_t entry = 0; entry < p.batch; entry += entries)
    for (int64_t first = 0; first < p.directions; first += chunk) {
      const int64_t entries_end = std::min(entry + entries, p.batch), end = std::min(first + chunk, p.directions);
      couple(call, parallel, entry, entries_end, first, end, held, pitch);
      pull_all_to_samples(call, parallel, entry, entries_end, first, end, held, pitch);
      if (p.grad_projections) pull_all_to_directions(call, parallel, entry, entries_end, first, end, held, pitch);
    }
  return true;
}

template <class A>
bool sliced_wasserstein(const SlicedWassersteinParams& p, const Parallel& parallel) {
  Call<A> call(p);
  if (call.gradients && p.projections) {
    if (!couple_and_pull(call, parallel)) return false;
  } else {  // samples that are projected already: the derivatives are the gradients
    A* const gradients[2] = {call.grad(0), call.grad(1)};
    couple(call, parallel, 0, p.batch, 0, p.directions, gradients, p.dim);
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    double sum = 0;
    for (int64_t l = 0; l < p.directions; ++l) sum += call.sums[b * p.directions + l];
    static_cast<A*>(p.value)[b] = A(sum / double(p.directions));
  }
  return true;
}
