// Decides what is done with a convolution's result, pixel by pixel and line by line: gates and state forward, their
// derivatives backward. Compiled once per instruction set, no guard.

// ---- exp, sigmoid, tanh: to 2 units in the last place in float, the C library's in double ----

template <int N>
VG_INLINE Vector<float, N> exponential(Vector<float, N> x) {  // NaN: anything
  using V = Vector<float, N>;
  using U = Vector<uint32_t, N>;
  x = x < -87.0f ? V{} - 87.0f : x;
  x = x > 88.0f ? V{} + 88.0f : x;
  const V shifted = x * 1.44269504f + 12582912.0f, k = shifted - 12582912.0f;  // 1.5 2^23: to the nearest integer
  const V r = x - k * 0.693359375f + k * 2.12194440e-4f;
  V sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  sum = sum * r * r + r + 1.0f;
  return (V)((U)sum + ((U)shifted << 23));
}
template <int N>
VG_INLINE Vector<float, N> sigmoid(Vector<float, N> x) {
  const Vector<float, N> value = 1.0f / (1.0f + exponential<N>(-x));
  return x == x ? (x < -88.0f ? Vector<float, N>{} : value) : x;
}
template <int N>
VG_INLINE Vector<float, N> tanh_of(Vector<float, N> x) {
  using V = Vector<float, N>;
  using U = Vector<uint32_t, N>;
  const U sign = (U)x & 0x80000000u;
  const V size = (V)((U)x & 0x7FFFFFFFu), x2 = x * x;
  V small = x2 * -5.70498872745e-3f + 2.06390887954e-2f;
  small = small * x2 - 5.37397155531e-2f;
  small = small * x2 + 1.33314422036e-1f;
  small = (small * x2 - 3.33332819422e-1f) * x2 * x + x;
  const V large = (V)((U)(1.0f - 2.0f / (exponential<N>(2.0f * size) + 1.0f)) | sign);
  const V value = size < 0.625f ? small : large;
  return x == x ? value : x;
}
template <int N>
VG_INLINE Vector<double, N> sigmoid(Vector<double, N> x) {
  for (int i = 0; i < N; ++i) x[i] = 1 / (1 + std::exp(-x[i]));
  return x;
}
template <int N>
VG_INLINE Vector<double, N> tanh_of(Vector<double, N> x) {
  for (int i = 0; i < N; ++i) x[i] = std::tanh(x[i]);
  return x;
}

template <class A, int G>
VG_INLINE Pixel<A, G> sigmoid(Pixel<A, G> x) {
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) x.part[i] = sigmoid<x.N>(x.part[i]);
  return x;
}
template <class A, int G>
VG_INLINE Pixel<A, G> activate(Activation activation, Pixel<A, G> x) {
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i)
    x.part[i] = activation == Activation::tanh ? tanh_of<x.N>(x.part[i])
                                               : (x.part[i] < 0 ? typename Pixel<A, G>::V{} : x.part[i]);  // keeps NaN
  return x;
}
// act'(a) from n = act(a)
template <class A, int G>
VG_INLINE Pixel<A, G> activation_slope(Activation activation, Pixel<A, G> n) {
#pragma GCC unroll 8
  for (int i = 0; i < n.parts; ++i) {
    const typename Pixel<A, G>::V one = typename Pixel<A, G>::V{} + 1;
    n.part[i] = activation == Activation::tanh ? 1 - n.part[i] * n.part[i]
                                               : (n.part[i] <= 0 ? typename Pixel<A, G>::V{} : one);  // of NaN: 1
  }
  return n;
}
template <class A, int G>
VG_INLINE Pixel<A, G> one_minus(Pixel<A, G> x) {
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) x.part[i] = 1 - x.part[i];
  return x;
}

// ---- where gates are kept ----

// r, z, n of pixels: gate g of pixel p at data + g gate_step + p channels; null: not kept.
template <class G>
struct Gates {
  G* data;
  int64_t gate_step, channels;
  G* at(int gate, int64_t pixel) const { return data + gate * gate_step + pixel * channels; }
};

// One array of pixels x channels.
template <class A>
struct Plane {
  A* data;
  int64_t channels;
  A* at(const Place& place, int64_t line) const { return data + place.pixel * channels + line * kStrip<A>; }
};

// ---- forward ----

// W_ih * x + b, of all three gates
template <class A>
struct KeepInput {
  Plane<A> xg;
  const A* bias;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    store_pixel(xg.at(place, line), value + load_pixel<A, kStrip<A>>(bias + line * kStrip<A>));
  }
};

// W_rz * h: r, z, and r . h
template <class A, class G>
struct ResetAndUpdate {
  Plane<A> xg;
  Maps<A> h, rh;
  Plane<A> z;
  Gates<G> gates;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    constexpr int S = kStrip<A>;
    const Line<A> gate = sigmoid(value + load_pixel<A, S>(xg.at(place, line)));
    const bool update = line >= h.lines();
    const int64_t of_map = update ? line - h.lines() : line;
    if (update)
      store_pixel(z.at(place, of_map), gate);
    else
      store_pixel(rh.at(place, line), gate * load_pixel<A, S>(h.at(place, line)));
    if (gates.data) store_pixel(gates.at(update, place.pixel) + of_map * S, gate);
  }
};

// W_n * (r . h): n, and the new state in place of the old
template <class A, class G>
struct Candidate {
  Plane<A> xg, z;
  Maps<A> h;
  Gates<G> gates;
  Activation activation;
  const int64_t* lengths;
  int64_t step;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    constexpr int S = kStrip<A>;
    const Line<A> n = activate(activation, value + load_pixel<A, S>(xg.at(place, 2 * h.lines() + line)));
    if (gates.data) store_pixel(gates.at(2, place.pixel) + line * S, n);
    if (lengths && step >= lengths[place.map]) return;
    const Line<A> update = load_pixel<A, S>(z.at(place, line));
    A* state = h.at(place, line);
    store_pixel(state, update * load_pixel<A, S>(state) + one_minus(update) * n);
  }
};

// n alone, where the states are known
template <class A>
struct CandidateAgain {
  Plane<A> xg;
  Gates<A> gates;
  Activation activation;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    constexpr int S = kStrip<A>;
    const Line<A> x = load_pixel<A, S>(xg.at(place, 2 * gates.channels / S + line));
    store_pixel(gates.at(2, place.pixel) + line * S, activate(activation, value + x));
  }
};

// ---- backward: g is the gradient of the state, d those of the gates before sigmoid and act ----

// W_n transposed * dn: the gradient of r . h
template <class A, class G>
struct ResetGradient {
  Maps<A> h, rh, dr, g;
  Gates<const G> gates;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    constexpr int S = kStrip<A>;
    const Line<A> state = load_pixel<A, S>(h.at(place, line));
    const Line<A> r = load_pixel<A, S>(gates.at(0, place.pixel) + line * S), reset = r * state;
    store_pixel(rh.at(place, line), reset);
    store_pixel(dr.at(place, line), value * reset * one_minus(r));
    A* sum = g.at(place, line);
    store_pixel(sum, load_pixel<A, S>(sum) + value * r);
  }
};

// W_rz transposed * [dr; dz]
template <class A>
struct StateGradient {
  Maps<A> g;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    A* sum = g.at(place, line);
    store_pixel(sum, load_pixel<A, kStrip<A>>(sum) + value);
  }
};

// W_ih transposed * d
template <class A>
struct KeepMaps {
  Maps<A> to;
  VG_INLINE void operator()(const Place& place, int64_t line, const Line<A>& value) const {
    store_pixel(to.at(place, line), value);
  }
};
