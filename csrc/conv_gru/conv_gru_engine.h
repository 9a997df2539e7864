// Decides which engine a convolution of the GRU takes, and hides the choice from the phases. Compiled once per
// instruction set, no guard.

// Whether Winograd is possible, and asked for or worth it: multiplications, and reading 36 or 9 weights a filter, which
// counts where there are few tiles to use them on.
template <class A>
bool takes_winograd(const ConvGruForward& p, int64_t maps) {
  if (p.shape.kernel != 3 || p.shape.volumes || sizeof(A) == 8) return false;
  if (p.algorithm != ConvAlgorithm::automatic) return p.algorithm == ConvAlgorithm::winograd;
  constexpr int64_t kWeight = 13;  // a weight read costs as much as this many products
  const Grid grid(p.shape);
  const int64_t tiles = ceil_div(maps * grid.tiles(), kTileRows) * kTileRows;
  return kPoints * (tiles + kWeight) < p.shape.taps() * (maps * grid.pixels() + kWeight);
}

// One of the convolutions of a call, with its weights as its engine wants them.
template <class T>
struct Convolution {
  using A = Acc<T>;
  bool winograd;
  Filters<T> filters;
  Panels<A> panels;

  Convolution(bool winograd, const Filters<T>& filters)
      : winograd(winograd), filters(filters), panels(panels_of(filters, nullptr, winograd ? kPoints : filters.taps)) {}

  void pack(const Parallel& parallel, A* points) const {
    if (winograd)
      pack_filters<WinogradPoint>(parallel, filters, panels, points);
    else
      pack_filters<TapPoint>(parallel, filters, panels, points);
  }
  template <class Each>
  void run(const Parallel& parallel, const Maps<A>& in, const Each& each) const {
    const Results<A> results = for_each_place<A>(each);
    if constexpr (sizeof(A) == 4) {
      if (winograd) return convolve_winograd(parallel, in, panels, results);
    }
    convolve_direct(parallel, in, panels, results);
  }
};

// Filters of a weight (outputs, inputs, taps); `first` and `count` gates of its outputs.
template <class T>
Filters<T> forward_filters(const void* weight, const ConvGruShape& s, int64_t inputs, int first, int count) {
  const T* data = static_cast<const T*>(weight) + first * s.channels * inputs * s.taps();
  return {data, {1, inputs}, {count, s.channels}, s.taps(), inputs * s.taps(), s.taps(), false};
}
// The transpose: from the gates' gradients to the inputs'.
template <class T>
Filters<T> backward_filters(const void* weight, const ConvGruShape& s, int64_t inputs, int first, int count) {
  const T* data = static_cast<const T*>(weight) + first * s.channels * inputs * s.taps();
  return {data, {count, s.channels}, {1, inputs}, inputs * s.taps(), s.taps(), s.taps(), true};
}

// Packs convolutions side by side into `memory` (elements_of(...) of them), or finds them packed there.
template <class... C>
int64_t elements_of(const C&... convolutions) {
  return (convolutions.panels.elements() + ...);
}
template <class A, class... C>
void place(A* memory, C&... convolutions) {
  ((convolutions.panels.points = memory, memory += convolutions.panels.elements()), ...);
}
