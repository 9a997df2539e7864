// Decides how G channels of an image move between the caller's layout and pixel-major scratch: out of (C, P) planes by
// register shuffles, out of (P, C) rows by copies. Compiled once per instruction set (foreach_isa.h).

// Where G of an image's channels lie: element (c, p) is data[c * channel_stride + p * pixel_stride]; one stride is 1.
template <class T>
struct Channels {
  T* data;
  int64_t channel_stride, pixel_stride;
  int count;  // channels that exist, 1..G; the scratch is padded with zeros up to G
};

// to (n, G) A  <-  from (count, n) T, starting at pixel `first`
template <class A, int G, class T>
void pack(Channels<const T> from, int64_t first, int64_t n, A* to) {
  constexpr int N = VG_ISA_BYTES / int(sizeof(A)), Q = G < N ? G : N;  // N pixels of Q channels at a time
  const T* source = from.data + first * from.pixel_stride;
  int64_t x = 0;
  if (from.pixel_stride == 1) {
    for (; x + N <= n; x += N)
      for (int part = 0; part < G; part += Q) {
        Vector<A, N> rows[Q];
        const T* at = source + part * from.channel_stride + x;
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i)
          rows[i] = part + i < from.count ? load<A, N>(at + i * from.channel_stride) : Vector<A, N>{};
        interleave<A, N, Q>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) store<A, N>(to + (G == Q ? x * G + i * N : (x + i) * G + part), rows[i]);
      }
  } else {  // whole vectors as long as they end inside; lanes past `count` belong to a neighbour
    const Pixel<A, G> exists = first_lanes<A, G>(from.count);
    for (; x * from.pixel_stride + G <= (n - 1) * from.pixel_stride + from.count; ++x) {
      Pixel<A, G> pixel = load_pixel<A, G>(source + x * from.pixel_stride);
      if (from.count < G) pixel = select(exists, pixel);
      store_pixel(to + x * G, pixel);
    }
  }
  for (; x < n; ++x)
    for (int c = 0; c < G; ++c)
      to[x * G + c] = c < from.count ? vgkernels::widen(source[c * from.channel_stride + x * from.pixel_stride]) : A(0);
}

// to (count, n) T, starting at pixel `first`  <-  from (n, G) A
template <class A, int G, class T>
void unpack(const A* from, Channels<T> to, int64_t first, int64_t n) {
  constexpr int N = VG_ISA_BYTES / int(sizeof(A)), Q = G < N ? G : N;
  T* target = to.data + first * to.pixel_stride;
  int64_t x = 0;
  if (to.pixel_stride == 1) {
    for (; x + N <= n; x += N)
      for (int part = 0; part < G; part += Q) {
        Vector<A, N> rows[Q];
        T* at = target + part * to.channel_stride + x;
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i) rows[i] = load<A, N>(from + (G == Q ? x * G + i * N : (x + i) * G + part));
        deinterleave<A, N, Q>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < Q; ++i)
          if (part + i < to.count) store<A, N>(at + i * to.channel_stride, rows[i]);
      }
  } else if (to.count == G || to.count == to.pixel_stride) {  // what runs over into the next pixel is written again
    for (; x * to.pixel_stride + G <= (n - 1) * to.pixel_stride + to.count; ++x)
      store_pixel(target + x * to.pixel_stride, load_pixel<A, G>(from + x * G));
  }
  for (; x < n; ++x)
    for (int c = 0; c < to.count; ++c)
      target[c * to.channel_stride + x * to.pixel_stride] = vgkernels::narrow<T>(from[x * G + c]);
}
