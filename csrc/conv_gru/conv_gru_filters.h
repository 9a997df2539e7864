// Decides how a convolution's weights lie while the CPU kernels work: in panels of up to three lines of outputs, in a
// panel point by point (a point is a tap, or one of Winograd's 36), in a point input by input. Compiled once per
// instruction set, no guard.

// Channels in groups (gates), each of which is padded to whole lines.
struct Grouped {
  int64_t groups, channels;
  int64_t padded() const { return groups * kept_channels(channels); }
};

// The caller's weights of one convolution: from input i to output o, tap t is data[i input_stride + o output_stride +
// t]; of a convolution's transpose, which runs back, the taps are in the opposite order.
template <class T>
struct Filters {
  const T* data;
  Grouped inputs, outputs;
  int64_t input_stride, output_stride, taps;
  bool backwards;
};

// What the engines multiply by: all lines of a panel side by side. To Winograd's engine the taps' slices are inputs.
template <class A>
struct Panels {
  const A* points;
  int64_t inputs, lines, count_points, slices;
  int64_t multiplied;  // inputs, without the padding behind the last one

  int64_t panels() const { return ceil_div(lines, 3); }
  int64_t first(int64_t panel) const { return panel * lines / panels(); }  // as even as they get
  int64_t width(int64_t panel) const { return first(panel + 1) - first(panel); }
  const A* at(int64_t panel, int64_t point) const {
    return points + (first(panel) * count_points + point * width(panel)) * inputs * kStrip<A>;
  }
  int64_t elements() const { return lines * kStrip<A> * inputs * count_points; }
};

template <class T>
Panels<Acc<T>> panels_of(const Filters<T>& filters, int64_t count_points, int64_t slices) {
  const Grouped& in = filters.inputs;
  const int64_t inputs = slices * in.padded(), padding = kept_channels(in.channels) - in.channels;
  return {nullptr, inputs, filters.outputs.padded() / kStrip<Acc<T>>, count_points, slices, inputs - padding};
}

constexpr int64_t kInputRun = 16;  // inputs whose taps are read at a time: padded channels are a multiple

// Calls f(input, lines of taps) for inputs [first, first + n) of one group, of outputs of one line: taps[t] holds the
// line's weights.
template <class T, class F>
void for_taps(const Filters<T>& filters, int64_t line, int64_t input, int64_t n, Acc<T>* scratch, const F& f) {
  using A = Acc<T>;
  constexpr int S = kStrip<A>;
  const int64_t padded = kept_channels(filters.outputs.channels), group = line * S / padded, output = line * S % padded,
                taps = filters.taps;
  const int count = int(std::clamp<int64_t>(filters.outputs.channels - output, 0, S));
  const T* data = filters.data + (group * filters.outputs.channels + output) * filters.output_stride;
  if (filters.input_stride == taps) {  // all taps of all inputs side by side
    pack<A, S>(Channels<const T>{data + input * taps, filters.output_stride, 1, count}, 0, n * taps, scratch);
  } else {
    for (int64_t i = 0; i < n; ++i)
      pack<A, S>(Channels<const T>{data + (input + i) * filters.input_stride, filters.output_stride, 1, count}, 0, taps,
                 scratch + i * taps * S);
  }
  for (int64_t i = 0; i < n; ++i) {
    A* of_input = scratch + i * taps * S;
    if (filters.backwards)
      for (int64_t t = 0; t < taps / 2; ++t) {
        const Line<A> early = load_pixel<A, S>(of_input + t * S),
                      late = load_pixel<A, S>(of_input + (taps - 1 - t) * S);
        store_pixel(of_input + t * S, late);
        store_pixel(of_input + (taps - 1 - t) * S, early);
      }
    f(input + i, of_input);
  }
}

// Fills `panels` from the filters; Point::write(taps of one input, slice and line, how many, to, from point to point).
template <class Point, class T>
void pack_filters(const Parallel& parallel, const Filters<T>& filters, const Panels<Acc<T>>& panels, Acc<T>* points) {
  using A = Acc<T>;
  constexpr int S = kStrip<A>;
  const int64_t channels = filters.inputs.channels, padded = kept_channels(channels), of_group = padded / kInputRun,
                runs = of_group * filters.inputs.groups, taps = filters.taps / panels.slices;
  parallel(panels.panels() * runs, 3 * kInputRun * S * panels.count_points, [&](int64_t unit, int64_t end) {
    const Scratch memory(kInputRun * filters.taps * S * int64_t(sizeof(A)));
    A* scratch = static_cast<A*>(memory.data());
    if (!scratch) return false;
    for (; unit < end; ++unit) {
      const int64_t panel = unit / runs, group = unit % runs / of_group, first = unit % of_group * kInputRun,
                    width = panels.width(panel) * S, step = panels.inputs * width,
                    n = std::clamp<int64_t>(channels - first, 0, kInputRun);
      A* to = points + (panels.at(panel, 0) - panels.points);
      const auto row = [&](int64_t slice, int64_t input) {  // of the group
        return to + (slice * filters.inputs.padded() + group * padded + input) * width;
      };
      for (int64_t l = 0; l < panels.width(panel); ++l) {
        const int64_t line = panels.first(panel) + l;
        for_taps(filters, line, group * channels + first, n, scratch, [&](int64_t input, const A* of_input) {
          for (int64_t slice = 0; slice < panels.slices; ++slice)
            Point::write(of_input + slice * taps * S, taps, row(slice, input - group * channels) + l * S, step);
        });
        for (int64_t input = first + n; input < first + kInputRun; ++input)  // padding
          for (int64_t slice = 0; slice < panels.slices; ++slice)
            for (int64_t point = 0; point < panels.count_points; ++point)
              store_pixel(row(slice, input) + l * S + point * step, Line<A>{});
      }
    }
    return true;
  });
}

// A point is a tap.
struct TapPoint {
  template <class A>
  VG_INLINE static void write(const A* taps, int64_t count, A* to, int64_t step) {
    for (int64_t t = 0; t < count; ++t) store_pixel(to + t * step, load_pixel<A, kStrip<A>>(taps + t * kStrip<A>));
  }
};
