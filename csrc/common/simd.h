// Decides how a pixel's channels sit in vector registers: G channels of type A, in vectors of this instruction set's
// width. Compiled once per instruction set (no include guard: foreach_isa.h); leaves the arithmetic of an op to the op.

#define VG_INLINE inline __attribute__((always_inline))
#define VG_LAMBDA __attribute__((always_inline))  // after a lambda's parameters, where it takes or returns vectors

template <class A, int N>
struct VectorOf {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A, int N>
using Vector = typename VectorOf<A, N>::type;

template <class A, int G>
struct Pixel {
  static constexpr int native = VG_ISA_BYTES / int(sizeof(A));
  static constexpr int N = G < native ? G : native, parts = G / N;
  using V = Vector<A, N>;
  V part[parts];
};

// ---- storage <-> registers ----

template <int N>
VG_INLINE Vector<float, N> widen(Vector<uint16_t, N> bits, bfloat16) {
  return (Vector<float, N>)(__builtin_convertvector(bits, Vector<uint32_t, N>) << 16);
}
template <int N>
VG_INLINE Vector<float, N> widen(Vector<uint16_t, N> bits, float16) {  // the formula of dtype.h, on vectors
  using F = Vector<float, N>;
  using U = Vector<uint32_t, N>;
  const U word = __builtin_convertvector(bits, U) << 16, twice = word + word;
  const F normal = (F)((twice >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const F subnormal = (F)((twice >> 17) | (126u << 23)) - 0.5f;
  const U magnitude = twice < (1u << 27) ? (U)subnormal : (U)normal;
  return (F)((word & 0x80000000u) | magnitude);
}
template <int N>
VG_INLINE Vector<uint16_t, N> narrow(Vector<float, N> value, bfloat16) {
  using U = Vector<uint32_t, N>;
  const U word = (U)value, rounded = (word + 0x7FFFu + ((word >> 16) & 1u)) >> 16;
  const U nan = U{} + 0x7FC0u;
  return __builtin_convertvector(value == value ? rounded : nan, Vector<uint16_t, N>);
}
template <int N>
VG_INLINE Vector<uint16_t, N> narrow(Vector<float, N> value, float16) {
  using F = Vector<float, N>;
  using U = Vector<uint32_t, N>;
  const U word = (U)value, twice = word + word;
  const F base = ((F)(word & 0x7FFFFFFFu) * 0x1p112f) * 0x1p-110f;
  const U exponent = twice & 0xFF000000u, least = U{} + 0x71000000u;
  const U bias = exponent < least ? least : exponent;
  const U bits = (U)((F)((bias >> 1) + 0x07800000u) + base);
  const U rounded = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu), nan = U{} + 0x7E00u;
  return __builtin_convertvector(((word & 0x80000000u) >> 16) | (twice > 0xFF000000u ? nan : rounded),
                                 Vector<uint16_t, N>);
}

// The N elements at `from`, in the accumulation type; memcpy because they need not be aligned.
template <class A, int N, class T>
VG_INLINE Vector<A, N> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Vector<uint16_t, N> bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return __builtin_convertvector(widen<N>(bits, T{}), Vector<A, N>);
  } else {
    Vector<T, N> value;
    __builtin_memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, Vector<A, N>);
  }
}
template <class A, int N, class T>
VG_INLINE void store(T* to, Vector<A, N> value) {
  if constexpr (sizeof(T) == 2) {
    const Vector<uint16_t, N> bits = narrow<N>(__builtin_convertvector(value, Vector<float, N>), T{});
    __builtin_memcpy(to, &bits, sizeof bits);
  } else {
    const Vector<T, N> stored = __builtin_convertvector(value, Vector<T, N>);
    __builtin_memcpy(to, &stored, sizeof stored);
  }
}

template <class A, int G, class T>
VG_INLINE Pixel<A, G> load_pixel(const T* from) {
  Pixel<A, G> pixel;
#pragma GCC unroll 8
  for (int i = 0; i < pixel.parts; ++i) pixel.part[i] = load<A, pixel.N>(from + i * pixel.N);
  return pixel;
}
template <class A, int G, class T>
VG_INLINE void store_pixel(T* to, const Pixel<A, G>& pixel) {
#pragma GCC unroll 8
  for (int i = 0; i < pixel.parts; ++i) store<A, pixel.N>(to + i * pixel.N, pixel.part[i]);
}

// ---- arithmetic ----

// 1 in the first `count` lanes, 0 in the others; and x where it is 1, 0 where it is not.
template <class A, int G>
VG_INLINE Pixel<A, G> first_lanes(int count) {
  Pixel<A, G> lanes;
  for (int c = 0; c < G; ++c) lanes.part[c / lanes.N][c % lanes.N] = c < count;
  return lanes;
}
template <class A, int G>
VG_INLINE Pixel<A, G> select(const Pixel<A, G>& lanes, Pixel<A, G> x) {
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) x.part[i] = lanes.part[i] != 0 ? x.part[i] : typename Pixel<A, G>::V{};
  return x;
}

template <class S, class A, int G, class = std::enable_if_t<std::is_arithmetic_v<S>>>
VG_INLINE Pixel<A, G> operator*(S scale, const Pixel<A, G>& x) {
  Pixel<A, G> out;
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) out.part[i] = A(scale) * x.part[i];
  return out;
}
template <class A, int G>
VG_INLINE Pixel<A, G> operator+(const Pixel<A, G>& x, const Pixel<A, G>& y) {
  Pixel<A, G> out;
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) out.part[i] = x.part[i] + y.part[i];
  return out;
}
template <class A, int G>
VG_INLINE Pixel<A, G> operator-(const Pixel<A, G>& x, const Pixel<A, G>& y) {
  Pixel<A, G> out;
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) out.part[i] = x.part[i] - y.part[i];
  return out;
}
template <class A, int G>
VG_INLINE Pixel<A, G> operator*(const Pixel<A, G>& x, const Pixel<A, G>& y) {  // element by element
  Pixel<A, G> out;
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) out.part[i] = x.part[i] * y.part[i];
  return out;
}
template <class A, int G>
VG_INLINE void add_scaled(Pixel<A, G>& sum, A scale, const Pixel<A, G>& x) {  // sum += scale x
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) sum.part[i] += scale * x.part[i];
}
template <class A, int G>
VG_INLINE void add_product(Pixel<A, G>& sum, const Pixel<A, G>& x, const Pixel<A, G>& y) {  // sum += x y
#pragma GCC unroll 8
  for (int i = 0; i < x.parts; ++i) sum.part[i] += x.part[i] * y.part[i];
}

// The smaller and the larger of each two lanes; b where one of them is NaN: one instruction each.
template <class V>
VG_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
template <class V>
VG_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

// ---- shuffles ----

// Lanes Index... of a and b laid end to end.
template <class V, int... Index>
VG_INLINE V shuffle(V a, V b, std::integer_sequence<int, Index...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index...);
#else
  constexpr int N = sizeof...(Index);
  using Lane = std::conditional_t<sizeof(V) / N == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, Vector<Lane, N>{Index...});
#endif
}
template <int N, int Half, int... I>
constexpr auto zipped(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I / 2 + (I % 2) * N + Half * N / 2)...>{};
}
template <int Odd, int... I>
constexpr auto unzipped(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (2 * I + Odd)...>{};
}
// Lanes of a and b alternating, from the lower (Half = 0) or the upper (1) half of both.
template <int Half, int N, class V>
VG_INLINE V zip(V a, V b) {
  return shuffle(a, b, zipped<N, Half>(std::make_integer_sequence<int, N>{}));
}

// The even (Odd = 0) or the odd (1) lanes of a, then of b.
template <int Odd, int N, class V>
VG_INLINE V unzip(V a, V b) {
  return shuffle(a, b, unzipped<Odd>(std::make_integer_sequence<int, N>{}));
}

// Q rows of N lanes, Q <= N: from lane j of every row side by side, Q lanes of vector j Q / N at j Q % N, by log2 Q
// shuffles. For Q == N a transpose.
template <class A, int N, int Q>
VG_INLINE void interleave(Vector<A, N> (&rows)[Q]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < Q; stage *= 2) {
    Vector<A, N> shuffled[Q];
#pragma GCC unroll 16
    for (int i = 0; i < Q / 2; ++i) {
      shuffled[2 * i] = zip<0, N>(rows[i], rows[i + Q / 2]);
      shuffled[2 * i + 1] = zip<1, N>(rows[i], rows[i + Q / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) rows[i] = shuffled[i];
  }
}
// The way back.
template <class A, int N, int Q>
VG_INLINE void deinterleave(Vector<A, N> (&rows)[Q]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < Q; stage *= 2) {
    Vector<A, N> shuffled[Q];
#pragma GCC unroll 16
    for (int i = 0; i < Q / 2; ++i) {
      shuffled[i] = unzip<0, N>(rows[2 * i], rows[2 * i + 1]);
      shuffled[i + Q / 2] = unzip<1, N>(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) rows[i] = shuffled[i];
  }
}

// The sums of N lanes taken four apart: lane j of the result is the sum of lanes j, j + 4, j + 8, ...
template <class A, int N>
VG_INLINE Vector<A, 4> fold_to_4(Vector<A, N> x) {
  if constexpr (N == 2) {
    return Vector<A, 4>{x[0], x[1], 0, 0};
  } else if constexpr (N == 4) {
    return x;
  } else {
    struct {
      Vector<A, N / 2> low, high;
    } halves;
    __builtin_memcpy(&halves, &x, sizeof x);
    return fold_to_4<A, N / 2>(halves.low + halves.high);
  }
}

// (sum of a, sum of b, sum of c, sum of d) over the channels of a pixel, in a fixed order.
template <class A, int G>
VG_INLINE Vector<A, 4> sum_channels(const Pixel<A, G>& a, const Pixel<A, G>& b, const Pixel<A, G>& c,
                                    const Pixel<A, G>& d) {
  Vector<A, 4> lanes[4] = {};
#pragma GCC unroll 8
  for (int i = 0; i < a.parts; ++i) {
    const Vector<A, 4> next[4] = {fold_to_4<A, a.N>(a.part[i]), fold_to_4<A, a.N>(b.part[i]),
                                  fold_to_4<A, a.N>(c.part[i]), fold_to_4<A, a.N>(d.part[i])};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) lanes[k] = i == 0 ? next[k] : lanes[k] + next[k];
  }
  interleave<A, 4, 4>(lanes);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}
