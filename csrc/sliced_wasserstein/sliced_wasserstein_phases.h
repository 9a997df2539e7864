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
  // by which the weights of segments are multiplied
  double scale() const { return 1.0 / double(weighted ? 1 : std::max(p.n, p.m)); }
};

// Some entries of the batch and some directions, in panels, and where the derivatives by their projections lie.
template <class A>
struct Chunk {
  int64_t entry, entries_end, first, end;
  A* data[2];  // of x's side, of y's; null: not asked for
  int64_t pitch, panel_step[2], entry_step[2];

  int64_t panels() const { return ceil_div(end - first, kPanel); }
  int64_t units() const { return (entries_end - entry) * panels(); }
  int64_t count(int64_t panel) const { return std::min(kPanel, end - first - panel * kPanel); }
  A* at(int side, int64_t b, int64_t panel) const {
    return data[side] ? data[side] + (b - entry) * entry_step[side] + panel * panel_step[side] : nullptr;
  }
};

// What a thread needs for one panel at a time.
template <class A>
struct PanelScratch {
  Scratch memory;
  Columns<A> columns[2];
  RankScratch ranks[2] = {};
  A* packed = nullptr;

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
        RankScratch& rank = ranks[side];
        rank.keys.chunks = Column<double>::chunks_for(rows);
        place(rank.keys.data, ranked ? Column<double>::elements(rows) : 0);
        place(rank.index, ranked && sizeof(A) == 8 ? rows * kRanked : 0);
        place(rank.pairs, ranked && sizeof(A) == 8 ? rows : 0);
      }
      if (pass == 0) memory = Scratch(bytes);
      if (!memory.data()) return;
    }
  }
};

// Sorts and couples the columns of one panel, whose derivatives go to `to`, of both sides.
template <class A>
void couple_panel(Call<A>& call, PanelScratch<A>& scratch, int64_t b, Directions<A> directions,
                  const Derivative<A> (&to)[2]) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t count = directions.count;
  double wrong_weights = 0;
  if (call.weighted)
    wrong_weights = check_weights(p.x_weights + b * p.n, p.n) + check_weights(p.y_weights + b * p.m, p.m);
  for (int64_t l = 0; l < count; l += kStrip<A>) {
    const Column<A> column[2] = {scratch.columns[0][l / kStrip<A>], scratch.columns[1][l / kStrip<A>]};
    const Pixel<A, kStrip<A>> wrong_x = finish_column(column[0], p.n), wrong_y = finish_column(column[1], p.m);
    double sum[kStrip<A>] = {};
    const auto derivative = [&](int side, int64_t lane) {
      const Derivative<A>& all = to[side];
      return Derivative<A>{all.data ? all.data + l + lane : nullptr, all.pitch,
                           int(std::min<int64_t>(kRanked, count - l - lane))};
    };
    if (call.gradients || call.weighted) {
      for (int lane = 0; lane < kStrip<A> && l + lane < count; lane += kRanked) {
        const Ranked<A> x = rank(column[0], lane, p.n, scratch.ranks[0]);
        const Ranked<A> y = rank(column[1], lane, p.m, scratch.ranks[1]);
        const double scale = call.scale() / double(p.directions);
        with_power(p.p, [&](auto power) {
          if (wrong_weights != 0) return;  // they couple nothing
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
          double(wrong_x.part[c / wrong_x.N][c % wrong_x.N] + wrong_y.part[c / wrong_y.N][c % wrong_y.N]) +
          wrong_weights;
      call.sums[b * p.directions + directions.first + l + c] = sum[c] * call.scale() + wrong;
      if (wrong == 0) continue;
      for (int side = 0; side < 2; ++side)
        derivative(side, 0).fill(call.rows(side), c, std::numeric_limits<A>::quiet_NaN());
    }
  }
}

// Phase 1: projections, distances, and the derivatives where they are asked for.
template <class A>
void couple(Call<A>& call, const Parallel& parallel, const Chunk<A>& chunk) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t work = (p.n + p.m) * (p.dim + 64) * kPanel / 16;
  parallel(chunk.units(), work, [&](int64_t unit, int64_t unit_end) {
    PanelScratch<A> scratch(call);
    if (!scratch.memory.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = chunk.entry + unit / chunk.panels(), panel = unit % chunk.panels();
      const Directions<A> directions = call.directions(b, chunk.first + panel * kPanel, chunk.count(panel));
      const Samples<A> samples[2] = {call.samples(b, 0), call.samples(b, 1)};
      if (p.projections) {
        project(samples, directions, scratch.packed, scratch.columns);
      } else {
        for (int side = 0; side < 2; ++side) take_columns(samples[side], directions, scratch.columns[side]);
      }
      const Derivative<A> to[2] = {{chunk.at(0, b, panel), chunk.pitch, 0}, {chunk.at(1, b, panel), chunk.pitch, 0}};
      couple_panel(call, scratch, b, directions, to);
    }
    return true;
  });
}

// Phase 2: the derivatives of a chunk, times its directions, are added to the gradients of the samples.
template <class A>
void pull_all_to_samples(const Call<A>& call, const Parallel& parallel, const Chunk<A>& chunk) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t directions = chunk.end - chunk.first;
  int64_t blocks[2];
  for (int side = 0; side < 2; ++side) blocks[side] = call.grad(side) ? ceil_div(call.rows(side), kRows) : 0;
  const int64_t units = (chunk.entries_end - chunk.entry) * (blocks[0] + blocks[1]);
  if (units == 0) return;
  parallel(units, kRows * p.dim * directions / 16, [&](int64_t unit, int64_t unit_end) {
    const Scratch packed((directions + 1) * kBlock * int64_t(sizeof(A)));
    if (!packed.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = chunk.entry + unit / (blocks[0] + blocks[1]), block = unit % (blocks[0] + blocks[1]);
      const int side = block >= blocks[0];
      const int64_t rows = call.rows(side), row = (block - (side ? blocks[0] : 0)) * kRows;
      const Directions<A> theta = call.directions(b, chunk.first, directions);
      pull_to_samples<A>(chunk.first > 0, {chunk.at(side, b, 0) + row * kPanel, rows, directions},
                         std::min(kRows, rows - row), theta.data + theta.first * p.dim, p.dim,
                         static_cast<A*>(packed.data()), call.grad(side) + (b * rows + row) * p.dim);
    }
    return true;
  });
}

// Phase 3: the same, times the samples of both sides, gives the gradients of the chunk's directions.
template <class A>
void pull_all_to_directions(const Call<A>& call, const Parallel& parallel, const Chunk<A>& chunk) {
  const SlicedWassersteinParams& p = call.p;
  parallel(chunk.units(), (p.n + p.m) * p.dim * kPanel / 16, [&](int64_t unit, int64_t unit_end) {
    const Scratch packed((kDeep + 1) * kWide * int64_t(sizeof(A)));
    if (!packed.data()) return false;
    for (; unit < unit_end; ++unit) {
      const int64_t b = chunk.entry + unit / chunk.panels(), panel = unit % chunk.panels();
      A* grad = static_cast<A*>(p.grad_projections) + (b * p.directions + chunk.first + panel * kPanel) * p.dim;
      for (int side = 0; side < 2; ++side)
        pull_to_directions<A>(side == 1, {chunk.at(side, b, panel), call.rows(side), chunk.count(panel)},
                              call.samples(b, side), static_cast<A*>(packed.data()), grad);
    }
    return true;
  });
}

// All phases, chunk by chunk. False: no memory.
template <class A>
bool couple_and_pull(Call<A>& call, const Parallel& parallel) {
  const SlicedWassersteinParams& p = call.p;
  const int64_t bytes = (p.n + p.m) * kPanel * int64_t(sizeof(A)), panels = ceil_div(p.directions, kPanel);
  const int64_t chunks = ceil_div(panels, std::max<int64_t>(1, kHeld / bytes)), chunk_panels = ceil_div(panels, chunks);
  const int64_t entries = chunks > 1 ? 1 : std::clamp<int64_t>(kHeld / (bytes * panels), 1, p.batch);
  Chunk<A> chunk{0, 0, 0, 0, {}, kPanel, {}, {}};
  Scratch memory[2];
  for (int side = 0; side < 2; ++side) {
    if (!call.grad(side) && !p.grad_projections) continue;
    chunk.panel_step[side] = call.rows(side) * kPanel;
    chunk.entry_step[side] = chunk.panel_step[side] * chunk_panels;
    memory[side] = Scratch(entries * chunk.entry_step[side] * int64_t(sizeof(A)));
    chunk.data[side] = static_cast<A*>(memory[side].data());
    if (!chunk.data[side]) return false;
  }
  for (chunk.entry = 0; chunk.entry < p.batch; chunk.entry = chunk.entries_end) {
    chunk.entries_end = std::min(chunk.entry + entries, p.batch);
    for (chunk.first = 0; chunk.first < p.directions; chunk.first = chunk.end) {
      chunk.end = std::min(chunk.first + chunk_panels * kPanel, p.directions);
      couple(call, parallel, chunk);
      pull_all_to_samples(call, parallel, chunk);
      if (p.grad_projections) pull_all_to_directions(call, parallel, chunk);
    }
  }
  return true;
}

template <class A>
bool sliced_wasserstein(const SlicedWassersteinParams& p, const Parallel& parallel) {
  Call<A> call(p);
  if (call.gradients && p.projections) {
    if (!couple_and_pull(call, parallel)) return false;
  } else {  // of samples that are projected already, these derivatives are the gradients
    couple(call, parallel,
           Chunk<A>{0,
                    p.batch,
                    0,
                    p.directions,
                    {call.grad(0), call.grad(1)},
                    p.dim,
                    {kPanel, kPanel},
                    {p.n * p.dim, p.m * p.dim}});
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    double sum = 0;
    for (int64_t l = 0; l < p.directions; ++l) sum += call.sums[b * p.directions + l];
    static_cast<A*>(p.value)[b] = A(sum / double(p.directions));
  }
  return true;
}
