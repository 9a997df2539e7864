// Decides the order of the backward's work: blocks of steps from the last one, in a block step by step the gradients of
// z and n, of r and of the state before, then for the whole block the gradients of weights, bias and input. Where the
// gates were not kept, those of a block are computed again, all at once, since every state is known. Compiled once per
// instruction set, no guard.

template <class T>
struct BackwardConvolutions {
  Convolution<T> candidate, gates, input;

  explicit BackwardConvolutions(const ConvGruForward& p)
      : candidate(takes_winograd<Acc<T>>(p, p.shape.batch),
                  backward_filters<T>(p.weight_hh, p.shape, p.shape.channels, 2, 1)),
        gates(candidate.winograd, backward_filters<T>(p.weight_hh, p.shape, p.shape.channels, 0, 2)),
        input(takes_winograd<Acc<T>>(p, p.shape.batch * Steps(p.shape, false).block),
              backward_filters<T>(p.weight_ih, p.shape, p.shape.input_channels, 0, 3)) {}
};

// All that the backward works on; a block's maps lie step by step, in the order of the forward.
template <class T>
struct Backward {
  using A = Acc<T>;
  const ConvGruBackward& b;
  const ConvGruForward& p;
  const ConvGruShape& s;
  const Parallel& parallel;
  const Grid grid;
  const Steps steps;
  const int64_t C, Cin, pixels;  // channels padded to lines; of a step
  ForwardConvolutions<T> again;
  BackwardConvolutions<T> back;
  const bool winograd_sums;

  Scratch memory;
  Maps<A> x{}, h{}, rh{}, d{}, dx{}, g{};
  Plane<A> xg{};
  A *bias = nullptr, *weights = nullptr, *recomputed = nullptr;
  WeightGradient<A> of_input{}, of_gates{}, of_candidate{};
  std::vector<double> bias_sums;

  Backward(const ConvGruBackward& b, const Parallel& parallel)
      : b(b),
        p(b.forward),
        s(p.shape),
        parallel(parallel),
        grid(s),
        steps(s, p.reverse),
        C(kept_channels(s.channels)),
        Cin(kept_channels(s.input_channels)),
        pixels(s.batch * s.pixels()),
        again(p, s.batch * steps.block),
        back(p),
        winograd_sums(takes_winograd<A>(p, s.batch * steps.block)),
        bias_sums(3 * C) {}

  int64_t points() const { return winograd_sums ? kPoints : s.taps(); }
  int64_t slices() const { return winograd_sums ? grid.tap_slices() : 1; }
  bool needs_x() const { return b.grad_weight_ih || !p.gates; }

  bool arrange_all() {
    return arrange(memory, [&](Pieces& pieces) {
      const int64_t maps = s.batch * steps.block;
      if (needs_x()) x = fresh_maps<A>(pieces, grid, maps, Cin);
      h = fresh_maps<A>(pieces, grid, maps, C);
      rh = fresh_maps<A>(pieces, grid, maps, C);
      d = fresh_maps<A>(pieces, grid, maps, 3 * C);
      if (b.grad_x) dx = fresh_maps<A>(pieces, grid, maps, Cin);
      g = fresh_maps<A>(pieces, grid, s.batch, C);
      int64_t elements = back.candidate.panels.elements() + back.gates.panels.elements();
      if (b.grad_x) elements += back.input.panels.elements();
      if (!p.gates) {
        elements += again.elements();
        xg = {pieces.take<A>(steps.block * pixels * 3 * C), 3 * C};
        recomputed = pieces.take<A>(steps.block * pixels * 3 * C);
        bias = pieces.take<A>(3 * C);
      }
      weights = pieces.take<A>(elements);
      if (b.grad_weight_ih) of_input = {&x, slices(), 0, 3 * C, pieces.take<A>(points() * slices() * Cin * 3 * C)};
      if (b.grad_weight_hh) {
        of_gates = {&h, slices(), 0, 2 * C, pieces.take<A>(points() * slices() * C * 2 * C)};
        of_candidate = {&rh, slices(), 2 * C, C, pieces.take<A>(points() * slices() * C * C)};
      }
    });
  }

  void pack_all() {
    A* to = weights;
    const auto next = [&](Convolution<T>& convolution) {
      convolution.pack(parallel, to);
      convolution.panels.points = to;
      to += convolution.panels.elements();
    };
    next(back.candidate), next(back.gates);
    if (b.grad_x) next(back.input);
    if (p.gates) return;
    next(again.input), next(again.gates), next(again.candidate);
    take_bias(static_cast<const T*>(p.bias), {3, s.channels}, bias);
  }

  Maps<A> some(Maps<A> maps, int64_t first_step, int64_t n) const {
    maps = maps.from(first_step * s.batch);
    maps.count = n * s.batch;
    return maps;
  }

  // The inputs and the states before them, of steps [first, first + n).
  void take_states(int64_t first, int64_t n) {
    const int64_t h_step = s.batch * s.channels * s.pixels();
    for (int64_t i = 0; i < n; ++i) {
      if (needs_x()) take_inputs<T>(parallel, p, steps.time(first + i), some(x, i, 1));
      if (first + i > 0)
        take_maps(parallel, static_cast<const T*>(p.output) + steps.time(first + i - 1) * h_step, s.channels,
                  some(h, i, 1));
      else
        take_maps(parallel, static_cast<const A*>(p.h0), s.channels, some(h, i, 1));
    }
  }

  // The gates of n steps, all at once.
  void gates_again(int64_t n) {
    const Gates<A> to{recomputed, n * pixels * C, C};
    again.input.run(parallel, some(x, 0, n), KeepInput<A>{xg, bias});
    // z goes where it is kept, so the copy beside it is the same place
    again.gates.run(parallel, some(h, 0, n),
                    ResetAndUpdate<A, A>{xg, some(h, 0, n), some(rh, 0, n), {to.at(1, 0), C}, to});
    again.candidate.run(parallel, some(rh, 0, n), CandidateAgain<A>{xg, to, p.activation});
  }

  // d of z and n, and what of g goes by z to the state before; step i of the block, time t.
  template <class G>
  void output_gradient(int64_t i, int64_t t, const Gates<const G>& gates) {
    constexpr int S = kStrip<A>;
    const Maps<A> state = some(h, i, 1), to = some(d, i, 1);
    const T* from = static_cast<const T*>(b.grad_output) + t * s.batch * s.channels * s.pixels();
    for_lines<A>(parallel, grid, s.batch, C / S, [&](int64_t map, int64_t line, int64_t first, int64_t n, A* scratch) {
      pack<A, S>(planes<A>(from, s.channels, grid, map, line), first, n, scratch);
      const bool alive = !p.lengths || t < p.lengths[map];
      for_pixels(grid, map, first, n, [&](int64_t k, const Place& at) {
        A *sum = g.at(at, line), *dz = to.at(at, C / S + line), *dn = to.at(at, 2 * C / S + line);
        const Line<A> grad = load_pixel<A, S>(sum) + load_pixel<A, S>(scratch + k * S);
        if (!alive) {
          store_pixel(sum, grad), store_pixel(dz, Line<A>{}), store_pixel(dn, Line<A>{});
          return;
        }
        const Line<A> z = load_pixel<A, S>(gates.at(1, at.pixel) + line * S), rest = one_minus(z);
        const Line<A> candidate = load_pixel<A, S>(gates.at(2, at.pixel) + line * S);
        store_pixel(dz, grad * (load_pixel<A, S>(state.at(at, line)) - candidate) * z * rest);
        store_pixel(dn, grad * rest * activation_slope(p.activation, candidate));
        store_pixel(sum, grad * z);
      });
    });
  }

  template <class G>
  void step_back(int64_t i, int64_t t, const Gates<const G>& gates) {
    output_gradient(i, t, gates);
    const Maps<A> gradients = some(d, i, 1);
    back.candidate.run(parallel, gradients.of_channels(2 * C, C),
                       ResetGradient<A, G>{some(h, i, 1), some(rh, i, 1), gradients.of_channels(0, C), g, gates});
    back.gates.run(parallel, gradients.of_channels(0, 2 * C), StateGradient<A>{g});
  }

  // What a block adds to the gradients of weights and bias, and its own gradient of x.
  bool give_block(int64_t first, int64_t n, bool first_time) {
    const Maps<A> gradients = some(d, 0, n);
    if (b.grad_bias) add_bias_gradients(parallel, gradients, bias_sums.data());
    std::vector<WeightGradient<A>> sums;
    if (b.grad_weight_ih) sums.push_back(of_input);
    if (b.grad_weight_hh) sums.insert(sums.end(), {of_gates, of_candidate});
    if (winograd_sums) {
      if constexpr (sizeof(A) == 4)
        if (!sums.empty() && !add_winograd_gradients(parallel, sums, gradients, first_time)) return false;
    } else {
      for (const auto& sum : sums) add_direct_gradients(parallel, sum, gradients, first_time);
    }
    if (!b.grad_x) return true;
    back.input.run(parallel, gradients, KeepMaps<A>{dx});
    for (int64_t i = 0; i < n; ++i)
      give_maps(parallel, some(dx, i, 1), s.input_channels,
                static_cast<T*>(b.grad_x) + steps.time(first + i) * s.batch * s.input_channels * s.pixels());
    return true;
  }

  void give_weights() {
    const auto give = [&](const WeightGradient<A>& sum, int64_t inputs, int first_gate, int gates, void* to) {
      give_weight_gradient<T>(parallel, sum, winograd_sums, inputs, {gates, s.channels}, s.taps(),
                              static_cast<T*>(to) + first_gate * s.channels * inputs * s.taps());
    };
    if (b.grad_weight_ih) give(of_input, s.input_channels, 0, 3, b.grad_weight_ih);
    if (b.grad_weight_hh) give(of_gates, s.channels, 0, 2, b.grad_weight_hh);
    if (b.grad_weight_hh) give(of_candidate, s.channels, 2, 1, b.grad_weight_hh);
    if (b.grad_bias)
      for (int64_t i = 0; i < 3 * s.channels; ++i)
        static_cast<T*>(b.grad_bias)[i] = vgkernels::narrow<T>(A(bias_sums[i / s.channels * C + i % s.channels]));
  }

  // The gates of step i of the block, in the type that they are kept in.
  template <class F>
  void with_gates(int64_t i, int64_t t, int64_t n, const F& f) const {
    if (p.gates)
      f(Gates<const T>{static_cast<const T*>(p.gates) + t * 3 * pixels * C, pixels * C, C});
    else
      f(Gates<const A>{recomputed + i * pixels * C, n * pixels * C, C});
  }

  bool run() {
    if (!arrange_all()) return false;
    pack_all();
    take_maps(parallel, static_cast<const A*>(b.grad_h_T), s.channels, g);
    bool first_time = true;
    if (s.steps * s.batch == 0)
      for (const auto* sums : {&of_input, &of_gates, &of_candidate})
        if (sums->sums) std::fill_n(sums->sums, points() * sums->inputs() * sums->outputs, A(0));
    for (int64_t first = s.batch == 0 ? -1 : (s.steps - 1) / steps.block * steps.block; first >= 0 && first < s.steps;
         first -= steps.block) {
      const int64_t n = std::min(steps.block, s.steps - first);
      take_states(first, n);
      if (!p.gates) gates_again(n);
      for (int64_t i = n - 1; i >= 0; --i) {
        const int64_t t = steps.time(first + i);
        with_gates(i, t, n, [&](auto gates) { step_back(i, t, gates); });
      }
      if (!give_block(first, n, first_time)) return false;
      first_time = false;
    }
    give_weights();
    if (b.grad_h0) give_maps(parallel, g, s.channels, static_cast<A*>(b.grad_h0));
    return true;
  }
};

template <class T>
bool conv_gru_backward(const ConvGruBackward& b, const Parallel& parallel) {
  return Backward<T>(b, parallel).run();
}
