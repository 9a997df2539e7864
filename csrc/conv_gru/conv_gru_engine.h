// Decides which engine a convolution of the GRU takes, and hides the choice from the phases. Compiled once per
// instruction set, no guard.

// Whether Winograd is possible, and asked for or worth it: by the products of either engine, whose rows come in groups.
template <class A>
bool takes_winograd(const ConvGruForward& p, int64_t maps) {
  if (p.shape.kernel != 3 || sizeof(A) == 8) return false;
  if (p.algorithm != ConvAlgorithm::automatic) return p.algorithm == ConvAlgorithm::winograd;
  constexpr int64_t kTransforms = 2;  // they and the larger weights cost as much as this many tiles
  const Grid grid(p.shape);
  const auto rows = [](int64_t count) { return ceil_div(count, kTileRows) * kTileRows; };
  return grid.tap_slices() * kPoints * (rows(maps * grid.tiles()) + kTransforms) <
         p.shape.taps() * rows(maps * grid.pixels());
}

// One of the convolutions of a call, with its weights as its engine wants them.
template <class T>
struct Convolution {
  using A = Acc<T>;
  bool winograd;
  Filters<T> filters;
  Panels<A> panels;

  Convolution(bool winograd, const Filters<T>& filters)
      : winograd(winograd),
        filters(filters),
        panels(winograd ? panels_of(filters, kPoints, filters.taps / 9) : panels_of(filters, filters.taps, 1)) {}

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
