// Decides what a range of rows means to one thread: which channels it takes together, and what it holds packed
// meanwhile. Compiled once per instruction set; the loops over pixels are in flow_warp_pixels.h.
//
// In place: channels_last with whole groups of channels is worked on where it lies. All else goes through a window: G
// channels of the rows that the flow can reach, pixel-major, worked on as if they were channels_last. A flow of few
// pixels has a window that stays in L2; the widest possible one is the whole image.

// n pixels of one row of image b's output, the first one being number `pixel` of that image.
struct BlockOfRow {
  int64_t b, pixel;
  int n;
};

template <class T>
Channels<const T> group_in(const FlowWarpParams& p, const void* data, int64_t b, int64_t pixels, Group group) {
  const T* image = static_cast<const T*>(data) + b * p.C * pixels;
  if (p.channels_last) return {image + group.first, 1, p.C, group.count};
  return {image + group.first * pixels, pixels, 1, group.count};
}
template <class T>
Channels<T> group_out(const FlowWarpParams& p, void* data, int64_t b, int64_t pixels, Group group) {
  const Channels<const T> in = group_in<T>(p, data, b, pixels, group);
  return {const_cast<T*>(in.data), in.channel_stride, in.pixel_stride, in.count};
}

// The image rows that the taps of each output row can touch, from the extremes of its flow.
template <class A>
void row_spans(const FlowWarpParams& p, RowSpan* spans, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.Ho, y = unit % p.Ho;
    const A* flow_y = static_cast<const A*>(p.flow) + ((b * 2 + 1) * p.Ho + y) * p.Wo;
    A low = flow_y[0], high = flow_y[0], sum = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : sum)
    for (int64_t x = 0; x < p.Wo; ++x) {
      low = flow_y[x] < low ? flow_y[x] : low;
      high = flow_y[x] > high ? flow_y[x] : high;
      sum += flow_y[x] - flow_y[x];  // 0, unless one is not finite
    }
    low += A(y);
    high += A(y);
    const A last = A(p.H - 1);
    const bool anywhere = sum != 0 || sum != sum || (p.padding == Padding::reflection && (low < 0 || high > last));
    if (anywhere) {
      spans[unit] = {0, int32_t(p.H - 1)};
    } else {  // inside as `locate` clamps, and more on both sides than floor, rounding and the last cell can need
      const A first = std::min(std::max(low, A(0)), last) - 2, stop = std::min(std::max(high, A(0)), last) + 2;
      spans[unit] = {int32_t(std::max(first, A(0))), int32_t(std::min(stop, last))};
    }
  }
}

// Rows of one group of channels of one image, packed; row y lies at y modulo the capacity, a power of two.
template <class A, int G>
struct Window {
  A* data;
  int64_t W;
  int32_t mask;
  int32_t first = 0, end = 0;  // the rows held
  A* row(int64_t y) const { return data + (y & mask) * W * G; }

  // Holds rows low .. high, and as many others as stay. fill(y, row) packs one.
  template <class Fill>
  VG_INLINE void hold(int32_t low, int32_t high, const Fill& fill) {
    const int32_t capacity = mask + 1;
    if (low > end || high + 1 < first) first = end = low;
    if (low < first) {
      end = std::min(end, low + capacity);
      for (int32_t y = low; y < first; ++y) fill(y, row(y));
      first = low;
    }
    if (high >= end) {
      first = std::max(first, high + 1 - capacity);
      for (int32_t y = end; y <= high; ++y) fill(y, row(y));
      end = high + 1;
    }
  }
};

template <class T, class A, int G>
struct PackRow {
  Channels<const T> image;
  int64_t W;
  VG_INLINE void operator()(int32_t y, A* row) const { pack<A, G>(image, y * W, W, row); }
};

// ---- forward ----

// Units: rows of the output, all images.
template <class T, class A>
void forward_in_place(const FlowWarpParams& p, int64_t begin, int64_t end) {
  constexpr int G = wide_group<A>;
  Taps<A> taps;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.Ho, y = unit % p.Ho;
    const PixelImage<const T, G, false> image{static_cast<const T*>(p.image) + b * p.C * p.H * p.W, int32_t(p.W), -1,
                                              p.C};
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      const int64_t pixel = unit * p.Wo + x;
      const A* mask = p.mask ? static_cast<const A*>(p.mask) + pixel : nullptr;
      locate_block<false>(p, b, y, x, n, taps);
      warp_block<A, G, false>(taps, n, image, mask, mask ? static_cast<const T*>(p.painted) + pixel * p.C : nullptr,
                              static_cast<T*>(p.out) + pixel * p.C);
    }
  }
}

// Rows begin .. end - 1 of the output of image b, one group of channels.
template <class T, class A, int G>
bool forward_group(const FlowWarpParams& p, const RowSpan* spans, int64_t b, Group group, int64_t begin, int64_t end) {
  const int64_t pixels = p.Ho * p.Wo;
  const int32_t capacity = window_capacity(p, spans + b * p.Ho + begin, end - begin);
  const Scratch memory(capacity * p.W * G * sizeof(A));
  if (!memory.data()) return false;
  Window<A, G> window{static_cast<A*>(memory.data()), p.W, capacity - 1};
  const PackRow<T, A, G> fill{group_in<T>(p, p.image, b, p.H * p.W, group), p.W};
  const PixelImage<const A, G, true> image{window.data, int32_t(p.W), window.mask, G};
  Taps<A> taps;
  alignas(64) A out[kBlock * G], painted[kBlock * G];
  for (int64_t y = begin; y < end; ++y) {
    const RowSpan span = spans[b * p.Ho + y];
    window.hold(span.low, span.high, fill);
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      const int64_t pixel = y * p.Wo + x;
      const A* mask = p.mask ? static_cast<const A*>(p.mask) + b * pixels + pixel : nullptr;
      locate_block<false>(p, b, y, x, n, taps);
      if (mask) pack<A, G>(group_in<T>(p, p.painted, b, pixels, group), pixel, n, painted);
      warp_block<A, G, true>(taps, n, image, mask, painted, out);
      unpack<A, G>(out, group_out<T>(p, p.out, b, pixels, group), pixel, n);
    }
  }
  return true;
}

// Units: rows of the output, of every group of channels of every image.
template <class T>
bool forward(const FlowWarpParams& p, const RowSpan* spans, int64_t begin, int64_t end) {
  using A = Acc<T>;
  if (in_place<A>(p)) {
    forward_in_place<T, A>(p, begin, end);
    return true;
  }
  const int64_t groups = group_count<A>(p.C);
  for (int64_t unit = begin; unit < end;) {
    const int64_t turn = unit / p.Ho, y = unit % p.Ho, stop = std::min(p.Ho, y + end - unit), b = turn / groups;
    const Group group = nth_group<A>(p.C, turn % groups);
    if (!(group.width == narrow_group ? forward_group<T, A, narrow_group>(p, spans, b, group, y, stop)
                                      : forward_group<T, A, wide_group<A>>(p, spans, b, group, y, stop)))
      return false;
    unit += stop - y;
  }
  return true;
}

// ---- backward ----

// What the loops over pixels read: packed channels are held in A, others lie as the caller's T.
template <class T, class A, bool Packed>
using StoredIn = std::conditional_t<Packed, A, T>;

// The gradients that belong to the output's pixels, for one block of a row: everything but grad_image.
template <class T, class A, int G, bool Packed>
void pixel_gradients(const FlowWarpBackwardParams& p, const BlockOfRow& at, Group group, const Taps<A>& taps,
                     PixelImage<const StoredIn<T, A, Packed>, G, Packed> image, const StoredIn<T, A, Packed>* grad_out,
                     const CarriedSums<A>& carried) {
  const int64_t pixels = p.Ho * p.Wo, row = at.b * pixels + at.pixel;
  const int n = at.n;
  const bool need_dots = p.grad_flow || p.grad_mask, first = group.first == 0, last = group.first + group.count == p.C;
  const A* mask = p.mask ? static_cast<const A*>(p.mask) + row : nullptr;
  alignas(64) A block_dots[4 * kBlock], planes[4][kBlock], block_dot_painted[kBlock], packed[Packed ? kBlock * G : 1];
  A* dots = !need_dots || (first && last) ? block_dots : carried.dots + 4 * row;
  A* dot_painted = !p.grad_mask ? nullptr : first && last ? block_dot_painted : carried.dot_painted + row;
  if (need_dots) dot_block<A, G, Packed>(taps, n, image, grad_out, first, dots);
  if (p.grad_mask || p.grad_painted) {
    if constexpr (Packed) {
      if (p.grad_mask) pack<A, G>(group_in<T>(p, p.painted, at.b, pixels, group), at.pixel, n, packed);
      painted_block<A, G, true>(n, G, mask, grad_out, packed, first, dot_painted, p.grad_painted ? packed : nullptr);
      if (p.grad_painted) unpack<A, G>(packed, group_out<T>(p, p.grad_painted, at.b, pixels, group), at.pixel, n);
    } else {
      painted_block<A, G, false>(n, p.C, mask, grad_out, static_cast<const T*>(p.painted) + row * p.C, first,
                                 dot_painted, p.grad_painted ? static_cast<T*>(p.grad_painted) + row * p.C : nullptr);
    }
  }
  if (need_dots && last) {
    unpack<A, 4>(dots, Channels<A>{planes[0], kBlock, 1, 4}, 0, n);
    A* grad_flow = p.grad_flow ? static_cast<A*>(p.grad_flow) + at.b * pixels + row : nullptr;
    finish_block(taps, n, planes, dot_painted, mask, grad_flow, grad_flow ? grad_flow + pixels : nullptr,
                 p.grad_mask ? static_cast<A*>(p.grad_mask) + row : nullptr);
  }
}

// Rows begin .. end - 1 of image b: a thread owns these rows of grad_image, and the like share of the output's rows for
// the other gradients. Every sum runs over the output's pixels in their order, whoever owns it.
template <class A>
struct Share {
  int64_t begin, end, own_begin, own_end;
  const RowSpan* spans;  // (Ho), of image b
  Share(const FlowWarpBackwardParams& p, const RowSpan* all, int64_t b, int64_t first, int64_t stop)
      : begin(first), end(stop), own_begin(first * p.Ho / p.H), own_end(stop * p.Ho / p.H), spans(all + b * p.Ho) {
    if (!(p.grad_flow || p.grad_mask || p.grad_painted)) own_end = own_begin;
  }
  bool owns(int64_t y) const { return y >= own_begin && y < own_end; }
  bool hits(int64_t y) const { return spans[y].low < end && spans[y].high >= begin; }
};

template <class T, class A>
void backward_in_place(const FlowWarpBackwardParams& p, const RowSpan* spans, int64_t b, int64_t begin, int64_t end) {
  constexpr int G = wide_group<A>;
  const Share<A> share(p, spans, b, begin, end);
  const int64_t plane = p.H * p.W * p.C;
  const PixelImage<const T, G, false> image{static_cast<const T*>(p.image) + b * plane, int32_t(p.W), -1, p.C};
  A* rows = p.grad_image ? static_cast<A*>(p.grad_image) + b * plane : nullptr;
  const PixelImage<A, G, false> grad_image{rows, int32_t(p.W), -1, p.C};
  int64_t filled = begin;
  const auto open_rows = [&](int64_t stop) {  // zeros, just before they are added to: the row is in the cache then
    for (; filled < stop; ++filled) std::memset(rows + filled * p.W * p.C, 0, p.W * p.C * sizeof(A));
  };
  Taps<A> taps;
  for (int64_t y = 0; y < p.Ho; ++y) {
    const bool own = share.owns(y), hit = p.grad_image && share.hits(y);
    if (hit) open_rows(std::min<int64_t>(end, share.spans[y].high + 1));
    for (int64_t x = 0; (own || hit) && x < p.Wo; x += kBlock) {
      const BlockOfRow at{b, y * p.Wo + x, int(std::min<int64_t>(kBlock, p.Wo - x))};
      const int64_t row = b * p.Ho * p.Wo + at.pixel;
      const T* grad_out = static_cast<const T*>(p.grad_out) + row * p.C;
      locate_block<true>(p, b, y, x, at.n, taps);
      if (own) pixel_gradients<T, A, G, false>(p, at, Group{0, int(p.C), G}, taps, image, grad_out, CarriedSums<A>{});
      if (hit)
        scatter_block<A, G, false>(taps, at.n, p.mask ? static_cast<const A*>(p.mask) + row : nullptr, grad_out,
                                   int32_t(begin), int32_t(end), grad_image);
    }
  }
  if (p.grad_image) open_rows(end);
}

template <class T, class A, int G>
bool backward_group(const FlowWarpBackwardParams& p, const RowSpan* spans, const CarriedSums<A>& carried, int64_t b,
                    Group group, int64_t begin, int64_t end) {
  const Share<A> share(p, spans, b, begin, end);
  const int64_t plane = p.H * p.W, pixels = p.Ho * p.Wo;
  const bool need_dots = p.grad_flow || p.grad_mask;
  // keep[y]: the lowest row that the output's rows from y on still add to; below it, rows of the gradient are complete.
  const Scratch keep_memory((p.Ho + 1) * sizeof(int32_t));
  if (!keep_memory.data()) return false;
  int32_t* keep = static_cast<int32_t*>(keep_memory.data());
  keep[p.Ho] = int32_t(end);
  for (int64_t y = p.Ho; y-- > 0;)
    keep[y] = share.hits(y) ? std::max(int32_t(begin), std::min(keep[y + 1], share.spans[y].low)) : keep[y + 1];
  int32_t rows_open = 1, filled = int32_t(begin), done = int32_t(begin);
  for (int64_t y = 0; y < p.Ho; ++y)  // `keep` never falls: rows opened for an earlier y were counted there
    if (share.hits(y)) rows_open = std::max(rows_open, std::min(int32_t(end), share.spans[y].high + 1) - keep[y]);

  const int32_t capacity =
      need_dots ? window_capacity(p, share.spans + share.own_begin, share.own_end - share.own_begin) : 0;
  const int32_t grad_capacity = p.grad_image ? power_of_two(rows_open) : 0;
  const Scratch memory((int64_t(capacity) + grad_capacity) * p.W * G * sizeof(A));
  if (!memory.data()) return false;
  Window<A, G> window{static_cast<A*>(memory.data()), p.W, capacity - 1};
  Window<A, G> grad_window{window.data + capacity * p.W * G, p.W, grad_capacity - 1};
  const PackRow<T, A, G> fill{group_in<T>(p, p.image, b, plane, group), p.W};
  const PixelImage<const A, G, true> image{window.data, int32_t(p.W), window.mask, G};
  const PixelImage<A, G, true> grad_image{grad_window.data, int32_t(p.W), grad_window.mask, G};
  const auto open_rows = [&](int32_t stop) __attribute__((always_inline)) {
    for (; filled < stop; ++filled) std::memset(grad_window.row(filled), 0, p.W * G * sizeof(A));
  };
  const auto finish_rows = [&](int32_t stop) __attribute__((always_inline)) {
    for (; done < stop; ++done) {
      open_rows(done + 1);
      unpack<A, G>(grad_window.row(done), group_out<T>(p, p.grad_image, b, plane, group), done * p.W, p.W);
    }
  };

  Taps<A> taps;
  alignas(64) A grad_out[kBlock * G];
  for (int64_t y = 0; y < p.Ho; ++y) {
    const bool own = share.owns(y), hit = p.grad_image && share.hits(y);
    if (own && need_dots) window.hold(share.spans[y].low, share.spans[y].high, fill);
    if (hit) {
      finish_rows(keep[y]);
      open_rows(std::min(int32_t(end), share.spans[y].high + 1));
    }
    for (int64_t x = 0; (own || hit) && x < p.Wo; x += kBlock) {
      const BlockOfRow at{b, y * p.Wo + x, int(std::min<int64_t>(kBlock, p.Wo - x))};
      locate_block<true>(p, b, y, x, at.n, taps);
      pack<A, G>(group_in<T>(p, p.grad_out, b, pixels, group), at.pixel, at.n, grad_out);
      if (own) pixel_gradients<T, A, G, true>(p, at, group, taps, image, grad_out, carried);
      if (hit)
        scatter_block<A, G, true>(taps, at.n, p.mask ? static_cast<const A*>(p.mask) + b * pixels + at.pixel : nullptr,
                                  grad_out, int32_t(begin), int32_t(end), grad_image);
    }
  }
  if (p.grad_image) finish_rows(int32_t(end));
  return true;
}

// Units: rows of the image, all images.
template <class T>
bool backward(const FlowWarpBackwardParams& p, const RowSpan* spans, void* scratch, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const CarriedSums<A> carried(p, scratch);
  for (int64_t unit = begin; unit < end;) {
    const int64_t b = unit / p.H, first = unit % p.H, stop = std::min(p.H, first + end - unit);
    unit += stop - first;
    if (in_place_backward<T>(p)) {
      if constexpr (std::is_same_v<T, A>) backward_in_place<T, A>(p, spans, b, first, stop);
      continue;
    }
    for (int64_t n = 0; n < group_count<A>(p.C); ++n) {
      const Group group = nth_group<A>(p.C, n);
      if (!(group.width == narrow_group
                ? backward_group<T, A, narrow_group>(p, spans, carried, b, group, first, stop)
                : backward_group<T, A, wide_group<A>>(p, spans, carried, b, group, first, stop)))
        return false;
    }
  }
  return true;
}
