// Decides the order of the forward's work: the input's convolution for a block of steps at a time, then step by step
// the convolution of the state with the gates r and z behind it, and the one of r . h with n and the new state. Any
// split of the work over threads gives the same bits. Compiled once per instruction set, no guard.

constexpr int64_t kBlockTiles = 192;  // of a block of steps: enough to use each weight often

// Steps of a block, and where they are in time.
struct Steps {
  const ConvGruShape& shape;
  bool reverse;
  int64_t block;

  Steps(const ConvGruShape& s, bool reverse)
      : shape(s),
        reverse(reverse),
        block(std::clamp<int64_t>(ceil_div(kBlockTiles, std::max<int64_t>(s.batch * Grid(s).tiles(), 1)), 1,
                                  std::max<int64_t>(s.steps, 1))) {}
  int64_t time(int64_t step) const { return reverse ? shape.steps - 1 - step : step; }
};

// The convolutions of a forward; what depends on maps alone is chosen here, so that packed weights fit later calls.
template <class T>
struct ForwardConvolutions {
  Convolution<T> input, gates, candidate;

  ForwardConvolutions(const ConvGruForward& p, int64_t maps)  // maps: that the state's convolutions get at a time
      : input(takes_winograd<Acc<T>>(p, p.shape.batch * Steps(p.shape, false).block),
              forward_filters<T>(p.weight_ih, p.shape, p.shape.input_channels, 0, 3)),
        gates(takes_winograd<Acc<T>>(p, maps), forward_filters<T>(p.weight_hh, p.shape, p.shape.channels, 0, 2)),
        candidate(gates.winograd, forward_filters<T>(p.weight_hh, p.shape, p.shape.channels, 2, 1)) {}

  // Their weights lie side by side.
  int64_t elements() const { return input.panels.elements() + gates.panels.elements() + candidate.panels.elements(); }
  void pack(const Parallel& parallel, Acc<T>* memory) const {
    for (const Convolution<T>* convolution : {&input, &gates, &candidate}) {
      convolution->pack(parallel, memory);
      memory += convolution->panels.elements();
    }
  }
  void use(const Acc<T>* memory) {
    for (Convolution<T>* convolution : {&input, &gates, &candidate}) {
      convolution->panels.points = memory;
      memory += convolution->panels.elements();
    }
  }
};

template <class T>
int64_t packed_elements(const ConvGruForward& p) {
  return ForwardConvolutions<T>(p, p.shape.batch).elements();
}
template <class T>
bool pack_weights(const ConvGruForward& p, const Parallel& parallel, void* packed) {
  ForwardConvolutions<T>(p, p.shape.batch).pack(parallel, static_cast<Acc<T>*>(packed));
  return true;
}

// Maps of zeros, from untyped scratch.
template <class A>
Maps<A> fresh_maps(Pieces& pieces, const Grid& grid, int64_t count, int64_t channels) {
  const int64_t elements = count * grid.padded_pixels() * channels;
  A* data = pieces.take<A>(elements);
  if (pieces.begin) std::memset(data, 0, elements * sizeof(A));
  return {data, &grid, count, channels, channels};
}

// Calls arrange(pieces) twice: to count the bytes, then to place. False: no memory.
template <class F>
bool arrange(Scratch& memory, const F& arrange) {
  Pieces count{nullptr};
  arrange(count);
  memory = Scratch(count.used + 256);
  if (!memory.data()) return false;
  const uintptr_t at = (reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256;  // pieces begin on such lines
  Pieces placed{reinterpret_cast<char*>(at)};
  arrange(placed);
  return true;
}

template <class A, class T>
void take_bias(const T* bias, Grouped channels, A* to) {
  const int64_t padded = kept_channels(channels.channels);
  for (int64_t i = 0; i < channels.padded(); ++i) {
    const int64_t c = i % padded;
    to[i] = bias && c < channels.channels ? vgkernels::widen(bias[i / padded * channels.channels + c]) : A(0);
  }
}

// The inputs of one step; what a clip holds past its end counts for nothing, not even where it is NaN.
template <class T>
void take_inputs(const Parallel& parallel, const ConvGruForward& p, int64_t t, const Maps<Acc<T>>& to) {
  const int64_t channels = p.shape.input_channels;
  take_maps(parallel, static_cast<const T*>(p.x) + t * p.shape.batch * channels * p.shape.pixels(), channels, to,
            [&](int64_t map) { return !p.lengths || t < p.lengths[map]; });
}

template <class T>
bool conv_gru_forward(const ConvGruForward& p, const void* packed, const Parallel& parallel) {
  using A = Acc<T>;
  const ConvGruShape& s = p.shape;
  if (s.batch == 0) return true;
  const Grid grid(s);
  const Steps steps(s, p.reverse);
  const int64_t C = kept_channels(s.channels), Cin = kept_channels(s.input_channels), pixels = s.batch * s.pixels();
  ForwardConvolutions<T> convolutions(p, s.batch);

  Scratch memory;
  Maps<A> x{}, h{}, rh{};
  Plane<A> xg{}, z{};
  A *bias = nullptr, *weights = nullptr;
  const bool placed = arrange(memory, [&](Pieces& pieces) {
    x = fresh_maps<A>(pieces, grid, s.batch * steps.block, Cin);
    h = fresh_maps<A>(pieces, grid, s.batch, C);
    rh = fresh_maps<A>(pieces, grid, s.batch, C);
    xg = {pieces.take<A>(steps.block * pixels * 3 * C), 3 * C};
    z = {pieces.take<A>(pixels * C), C};
    bias = pieces.take<A>(3 * C);
    weights = packed ? nullptr : pieces.take<A>(convolutions.elements());
  });
  if (!placed) return false;
  if (!packed) convolutions.pack(parallel, weights);
  convolutions.use(packed ? static_cast<const A*>(packed) : weights);
  take_bias(static_cast<const T*>(p.bias), {3, s.channels}, bias);
  take_maps(parallel, static_cast<const A*>(p.h0), s.channels, h);

  const int64_t step_elements = s.batch * s.channels * s.pixels();
  for (int64_t first = 0; first < s.steps; first += steps.block) {
    const int64_t n = std::min(steps.block, s.steps - first);
    for (int64_t i = 0; i < n; ++i) {
      Maps<A> of_step = x.from(i * s.batch);
      of_step.count = s.batch;
      take_inputs<T>(parallel, p, steps.time(first + i), of_step);
    }
    Maps<A> of_block = x;
    of_block.count = n * s.batch;
    convolutions.input.run(parallel, of_block, KeepInput<A>{xg, bias});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = steps.time(first + i);
      const Plane<A> xg_step{xg.data + i * pixels * 3 * C, 3 * C};
      Gates<T> gates{p.gates ? static_cast<T*>(p.gates) + t * 3 * pixels * C : nullptr, pixels * C, C};
      convolutions.gates.run(parallel, h, ResetAndUpdate<A, T>{xg_step, h, rh, z, gates});
      convolutions.candidate.run(parallel, rh, Candidate<A, T>{xg_step, z, h, gates, p.activation, p.lengths, t});
      give_maps(parallel, h, s.channels, static_cast<T*>(p.output) + t * step_elements);
    }
  }
  give_maps(parallel, h, s.channels, static_cast<A*>(p.h_T));
  return true;
}
