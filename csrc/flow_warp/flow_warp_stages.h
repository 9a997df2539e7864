// Decides what one unit of one CPU stage does: which rows, which channels, through which buffers. Compiled once per
// instruction set; flow_warp_cpu.cpp says how many stages and units there are.
//
// In place: channels_last with whole groups of channels, and planes of few channels, are worked on where they lie. All else
// goes through scratch, one group of G channels of one image at a time: pack it pixel-major, work on it as if it were
// channels_last, unpack. The image gradient of planes always goes that way.

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

template <class A>
const A* mask_row(const FlowWarpParams& p, int64_t b, int64_t y) {
  return p.mask ? static_cast<const A*>(p.mask) + (b * p.Ho + y) * p.Wo : nullptr;
}

// ---- forward ----

// Units: rows of the output, all images.
inline void forward_planes(const FlowWarpParams& p, int64_t begin, int64_t end) {
  Taps<float> taps;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.Ho, y = unit % p.Ho;
    const float* image = static_cast<const float*>(p.image) + b * p.C * p.H * p.W;
    const float* mask = mask_row<float>(p, b, y);
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      const int64_t at = (b * p.C * p.Ho + y) * p.Wo + x;
      locate_block(p, b, y, x, n, taps);
      warp_planes(p, taps, n, image, mask ? mask + x : nullptr, static_cast<const float*>(p.painted) + (mask ? at : 0),
                  static_cast<float*>(p.out) + at);
    }
  }
}

// Units: rows of the output, all images.
template <class T, class A>
void forward_direct(const FlowWarpParams& p, int64_t begin, int64_t end) {
  constexpr int G = wide_group<A>;
  Taps<A> taps;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / p.Ho, y = unit % p.Ho;
    const PixelImage<const T, G, false> image{static_cast<const T*>(p.image) + b * p.C * p.H * p.W, p.W, p.C};
    const A* mask = mask_row<A>(p, b, y);
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      const int64_t at = (unit * p.Wo + x) * p.C;
      locate_block(p, b, y, x, n, taps);
      warp_block<A, G, false>(taps, n, image, mask ? mask + x : nullptr,
                              mask ? static_cast<const T*>(p.painted) + at : nullptr, static_cast<T*>(p.out) + at);
    }
  }
}

// Units: rows of the image.
template <class T, class A, int G>
void pack_rows(const FlowWarpParams& p, int64_t b, Group group, int64_t begin, int64_t end, A* scratch) {
  const auto image = group_in<T>(p, p.image, b, p.H * p.W, group);
  pack<A, G>(image, begin * p.W, (end - begin) * p.W, scratch + begin * p.W * G);
}

// Units: rows of the output of image b.
template <class T, class A, int G>
void forward_packed(const FlowWarpParams& p, int64_t b, Group group, int64_t begin, int64_t end, const A* scratch) {
  Taps<A> taps;
  alignas(64) A out[kBlock * G], painted[kBlock * G];
  const PixelImage<const A, G, true> image{scratch, p.W, G};
  for (int64_t y = begin; y < end; ++y) {
    const A* mask = mask_row<A>(p, b, y);
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      locate_block(p, b, y, x, n, taps);
      if (mask) pack<A, G>(group_in<T>(p, p.painted, b, p.Ho * p.Wo, group), y * p.Wo + x, n, painted);
      warp_block<A, G, true>(taps, n, image, mask ? mask + x : nullptr, painted, out);
      unpack<A, G>(out, group_out<T>(p, p.out, b, p.Ho * p.Wo, group), y * p.Wo + x, n);
    }
  }
}

template <class T, class A, int G>
void forward_group(const FlowWarpParams& p, GroupStage at, int64_t begin, int64_t end, A* scratch) {
  if (at.step == 0)
    pack_rows<T, A, G>(p, at.b, at.group, begin, end, scratch);
  else
    forward_packed<T, A, G>(p, at.b, at.group, begin, end, scratch);
}

template <class T>
void forward(const FlowWarpParams& p, void* scratch, int64_t stage, int64_t begin, int64_t end) {
  using A = Acc<T>;
  if (direct<A>(p)) return forward_direct<T, A>(p, begin, end);
  if constexpr (std::is_same_v<T, float>)
    if (planar<T>(p)) return forward_planes(p, begin, end);
  const GroupStage at = group_stage<A>(p.C, stage, 2);
  A* packed = static_cast<A*>(scratch);
  if (at.group.width == narrow_group)
    forward_group<T, A, narrow_group>(p, at, begin, end, packed);
  else
    forward_group<T, A, wide_group<A>>(p, at, begin, end, packed);
}

// ---- backward ----

// n pixels of one row of image b's output, the first one being number `pixel` of that image.
struct BlockOfRow {
  int64_t b, pixel;
  int n;
};

// What the loops over pixels read: packed channels are held in A, others lie as the caller's T.
template <class T, class A, bool Packed>
using StoredIn = std::conditional_t<Packed, A, T>;

// Units: rows of the output, all images. Notes which image rows the taps of each one can touch, for units that own some.
template <class A>
void note_row_ranges(const FlowWarpBackwardParams& p, const BackwardScratch<A>& scratch, int64_t begin, int64_t end) {
  Taps<A> taps;
  for (int64_t unit = begin; unit < end; ++unit) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const int n = int(std::min<int64_t>(kBlock, p.Wo - x));
      locate_block(p, unit / p.Ho, unit % p.Ho, x, n, taps);
      for (int i = 0; i < n; ++i) {
        low = std::min(low, taps.y[i]);
        high = std::max(high, taps.y[i] + 1);
      }
    }
    scratch.row_low[unit] = low;
    scratch.row_high[unit] = high;
  }
}

// The gradients that belong to the output's pixels, for one block of row y: everything but grad_image.
template <class T, class A, int G, bool Packed>
void pixel_gradients(const FlowWarpBackwardParams& p, const BlockOfRow& at, Group group, const Taps<A>& taps,
                     const StoredIn<T, A, Packed>* grad_out, const BackwardScratch<A>& scratch) {
  using Stored = StoredIn<T, A, Packed>;
  const int64_t plane = p.H * p.W, pixels = p.Ho * p.Wo, row = at.b * pixels + at.pixel;
  const int n = at.n;
  const bool need_dots = p.grad_flow || p.grad_mask, first = group.first == 0, last = group.first + group.count == p.C;
  const A* mask = p.mask ? static_cast<const A*>(p.mask) + row : nullptr;
  alignas(64) A dots[4 * kBlock], planes[4][kBlock], dot_painted[kBlock], packed[Packed ? kBlock * G : 1];
  A* sums = first && last ? dots : scratch.dots + 4 * at.pixel;
  A* sum_painted = first && last ? dot_painted : scratch.dot_painted + at.pixel;
  if (!p.grad_mask) sum_painted = nullptr;

  bool done = false;
  if constexpr (Packed && std::is_same_v<T, float>) {
    if (planar<T>(p)) {
      done = true;
      const int64_t first_plane = at.b * p.C * pixels + at.pixel;
      const float* grad = static_cast<const float*>(p.grad_out) + first_plane;
      if (need_dots) dot_planes(p, taps, n, static_cast<const float*>(p.image) + at.b * p.C * plane, grad, planes);
      if (mask)
        painted_planes(p, n, mask, grad, static_cast<const float*>(p.painted) + first_plane, sum_painted,
                       p.grad_painted ? static_cast<float*>(p.grad_painted) + first_plane : nullptr);
    }
  }
  if (!done && need_dots) {
    const Stored* pixels_of_image;
    if constexpr (Packed)
      pixels_of_image = scratch.image;
    else
      pixels_of_image = static_cast<const T*>(p.image) + at.b * plane * p.C;
    dot_block<A, G, Packed>(taps, n, PixelImage<const Stored, G, Packed>{pixels_of_image, p.W, p.C}, grad_out, first, sums);
    if (last) unpack<A, 4>(sums, Channels<A>{planes[0], kBlock, 1, 4}, 0, n);
  }
  if (!done && (p.grad_mask || p.grad_painted)) {
    if constexpr (Packed) {
      if (p.grad_mask) pack<A, G>(group_in<T>(p, p.painted, at.b, pixels, group), at.pixel, n, packed);
      painted_block<A, G, true>(n, G, mask, grad_out, packed, first, sum_painted, p.grad_painted ? packed : nullptr);
      if (p.grad_painted) unpack<A, G>(packed, group_out<T>(p, p.grad_painted, at.b, pixels, group), at.pixel, n);
    } else {
      painted_block<A, G, false>(n, p.C, mask, grad_out, static_cast<const T*>(p.painted) + row * p.C, first, sum_painted,
                                 p.grad_painted ? static_cast<T*>(p.grad_painted) + row * p.C : nullptr);
    }
  }
  if (need_dots && last) {
    A* grad_flow = p.grad_flow ? static_cast<A*>(p.grad_flow) + at.b * pixels + row : nullptr;
    finish_block(taps, n, planes, sum_painted, mask, grad_flow, grad_flow ? grad_flow + pixels : nullptr,
                 p.grad_mask ? static_cast<A*>(p.grad_mask) + row : nullptr);
  }
}

// Units: rows of image b. A unit owns that row of grad_image, and the like share of the output's rows for the other
// gradients; every sum runs over the output's pixels in their order, whoever owns it.
template <class T, class A, int G, bool Packed>
void backward_rows(const FlowWarpBackwardParams& p, int64_t b, Group group, int64_t begin, int64_t end,
                   const BackwardScratch<A>& scratch) {
  const int64_t own_begin = begin * p.Ho / p.H, own_end = end * p.Ho / p.H;
  const bool whole = begin == 0 && end == p.H, need_pixels = p.grad_flow || p.grad_mask || p.grad_painted;
  PixelImage<A, G, Packed> grad_image{scratch.grad_image, p.W, p.C};
  if (!Packed && p.grad_image) grad_image.data = static_cast<A*>(p.grad_image) + b * p.H * p.W * p.C;
  Taps<A> taps;
  alignas(64) A packed[Packed ? kBlock * G : 1];
  for (int64_t y = 0; y < p.Ho; ++y) {
    const int64_t row = b * p.Ho + y;
    const bool own = need_pixels && y >= own_begin && y < own_end;
    const bool hit = p.grad_image && (whole || (scratch.row_low[row] < end && scratch.row_high[row] >= begin));
    if (!own && !hit) continue;
    for (int64_t x = 0; x < p.Wo; x += kBlock) {
      const BlockOfRow at{b, y * p.Wo + x, int(std::min<int64_t>(kBlock, p.Wo - x))};
      locate_block(p, b, y, x, at.n, taps);
      const StoredIn<T, A, Packed>* grad_out;
      if constexpr (Packed) {
        pack<A, G>(group_in<T>(p, p.grad_out, b, p.Ho * p.Wo, group), at.pixel, at.n, packed);
        grad_out = packed;
      } else {
        grad_out = static_cast<const T*>(p.grad_out) + (row * p.Wo + x) * p.C;
      }
      if (own) pixel_gradients<T, A, G, Packed>(p, at, group, taps, grad_out, scratch);
      if (hit) {
        const A* mask = mask_row<A>(p, b, y);
        scatter_block<A, G, Packed>(taps, at.n, mask ? mask + x : nullptr, grad_out, int32_t(begin), int32_t(end),
                                    grad_image);
      }
    }
  }
}

// Units: rows of the image; the range may span images.
template <class T, class A>
void backward_direct(const FlowWarpBackwardParams& p, int64_t begin, int64_t end, const BackwardScratch<A>& scratch) {
  const Group all{0, int(p.C), 0};
  for (int64_t unit = begin; unit < end;) {
    const int64_t b = unit / p.H, stop = std::min(end, (b + 1) * p.H);
    if (p.grad_image)
      std::memset(static_cast<T*>(p.grad_image) + unit * p.W * p.C, 0, (stop - unit) * p.W * p.C * sizeof(T));
    if constexpr (std::is_same_v<T, A>)
      backward_rows<T, A, wide_group<A>, false>(p, b, all, unit - b * p.H, stop - b * p.H, scratch);
    unit = stop;
  }
}

template <class T, class A, int G>
void backward_group(const FlowWarpBackwardParams& p, GroupStage at, int64_t begin, int64_t end,
                    const BackwardScratch<A>& scratch) {
  if (at.step == 0) {
    if ((p.grad_flow || p.grad_mask) && !planar<T>(p)) pack_rows<T, A, G>(p, at.b, at.group, begin, end, scratch.image);
    if (p.grad_image) std::memset(scratch.grad_image + begin * p.W * G, 0, (end - begin) * p.W * G * sizeof(A));
  } else if (at.step == 1) {
    backward_rows<T, A, G, true>(p, at.b, at.group, begin, end, scratch);
  } else if (p.grad_image) {
    unpack<A, G>(scratch.grad_image + begin * p.W * G, group_out<T>(p, p.grad_image, at.b, p.H * p.W, at.group),
                 begin * p.W, (end - begin) * p.W);
  }
}

template <class T>
void backward(const FlowWarpBackwardParams& p, void* memory, int64_t stage, int64_t begin, int64_t end) {
  using A = Acc<T>;
  const auto scratch = BackwardScratch<A>::template of<T>(p, memory);
  if (stage == 0) return note_row_ranges<A>(p, scratch, begin, end);
  if (direct_backward<T>(p)) return backward_direct<T, A>(p, begin, end, scratch);
  const GroupStage at = group_stage<A>(p.C, stage - 1, 3);
  if (at.group.width == narrow_group)
    backward_group<T, A, narrow_group>(p, at, begin, end, scratch);
  else
    backward_group<T, A, wide_group<A>>(p, at, begin, end, scratch);
}
