// Decides the three loops over pixels whose channels lie together: warp, the sums behind the flow and mask gradients,
// and the scatter of the image gradient. Compiled once per instruction set; leaves layouts, rows and threads to
// flow_warp_rows.h.

template <auto value>
using Constant = std::integral_constant<decltype(value), value>;

constexpr int kBlock = 128;  // pixels of one row whose taps are worked out together

// The four taps of each pixel of a block, 0 = top left, 1 = top right, 2 = bottom left, 3 = bottom right.
template <class A>
struct Taps {
  int32_t x[kBlock], y[kBlock];  // cell of tap 0
  A weight[4][kBlock];
  A fraction_x[kBlock], fraction_y[kBlock], slope_x[kBlock], slope_y[kBlock];
  int32_t inside[kBlock];  // bit k: tap k is in the image
  int32_t loaded[kBlock];  // bit k: it also has a weight
};

// ForGradients: also what only the backward reads, namely fractions, slopes and `inside`.
template <bool ForGradients, Interpolation mode, Padding padding, class A>
void locate_block(const A* flow_x, const A* flow_y, int64_t x0, int64_t y, int n, int W, int H, Taps<A>& taps) {
  for (int i = 0; i < n; ++i) {
    const AxisTap<A> h = locate(A(x0 + i) + flow_x[i], W, mode, padding);
    const AxisTap<A> v = locate(A(y) + flow_y[i], H, mode, padding);
    const int left = unsigned(h.cell) < unsigned(W), right = unsigned(h.cell + 1) < unsigned(W);
    const int top = unsigned(v.cell) < unsigned(H), bottom = unsigned(v.cell + 1) < unsigned(H);
    const A w0 = (1 - h.fraction) * (1 - v.fraction), w1 = h.fraction * (1 - v.fraction);
    const A w2 = (1 - h.fraction) * v.fraction, w3 = h.fraction * v.fraction;
    const int inside = (top & left) | (top & right) << 1 | (bottom & left) << 2 | (bottom & right) << 3;
    taps.x[i] = h.cell;
    taps.y[i] = v.cell;
    taps.weight[0][i] = w0;
    taps.weight[1][i] = w1;
    taps.weight[2][i] = w2;
    taps.weight[3][i] = w3;
    if (ForGradients) {
      taps.fraction_x[i] = h.fraction;
      taps.fraction_y[i] = v.fraction;
      taps.slope_x[i] = h.slope;
      taps.slope_y[i] = v.slope;
      taps.inside[i] = inside;
    }
    taps.loaded[i] = inside & (int(w0 != 0) | int(w1 != 0) << 1 | int(w2 != 0) << 2 | int(w3 != 0) << 3);
  }
}

// n <= kBlock pixels of row y of image b, from column x0 on.
template <bool ForGradients, class A>
void locate_block(const FlowWarpParams& p, int64_t b, int64_t y, int64_t x0, int n, Taps<A>& taps) {
  const A* flow_x = static_cast<const A*>(p.flow) + (b * 2 * p.Ho + y) * p.Wo + x0;
  const A* flow_y = flow_x + p.Ho * p.Wo;
  const auto with = [&](auto mode, auto padding) {
    locate_block<ForGradients, mode(), padding()>(flow_x, flow_y, x0, y, n, int(p.W), int(p.H), taps);
  };
  const auto with_mode = [&](auto mode) {
    if (p.padding == Padding::border) return with(mode, Constant<Padding::border>{});
    if (p.padding == Padding::zeros) return with(mode, Constant<Padding::zeros>{});
    return with(mode, Constant<Padding::reflection>{});
  };
  if (p.mode == Interpolation::bilinear) return with_mode(Constant<Interpolation::bilinear>{});
  return with_mode(Constant<Interpolation::nearest>{});
}

// Rows of pixels that hold their channels side by side: pixel (x, y) starts at data + ((y & mask) W + x) channels.
// The mask is -1 for a whole image, capacity - 1 for a window. Fixed: channels is G; otherwise a multiple of G.
template <class T, int G, bool Fixed>
struct PixelImage {
  T* data;
  int32_t W, mask;
  int64_t run_time_channels;
  VG_INLINE int64_t channels() const { return Fixed ? G : run_time_channels; }
};

// Where the taps of a block lie in such rows.
template <class T>
struct TapPointers {
  T* data;
  int64_t channels;
  int32_t top[kBlock], bottom[kBlock];  // pixels from `data` to taps 0 and 2
  template <class A, int G, bool Fixed>
  VG_INLINE TapPointers(const Taps<A>& taps, int n, const PixelImage<T, G, Fixed>& image)
      : data(image.data), channels(image.channels()) {
    for (int i = 0; i < n; ++i) {
      top[i] = (taps.y[i] & image.mask) * image.W + taps.x[i];
      bottom[i] = ((taps.y[i] + 1) & image.mask) * image.W + taps.x[i];
    }
  }
  struct Four {
    T *upper, *lower;
    int64_t channels;
    VG_INLINE T* operator[](int k) const { return (k < 2 ? upper : lower) + (k & 1) * channels; }
  };
  VG_INLINE Four of(int i) const { return {data + top[i] * channels, data + bottom[i] * channels, channels}; }
};

#include "flow_warp/flow_warp_quads.h"

// out(i) = warped(i), or with a mask (1 - mask(i)) warped(i) + mask(i) painted(i); out and painted are blocks of n
// pixels.
template <class A, int G, bool Fixed, class T>
void warp_block(const Taps<A>& taps, int n, PixelImage<const T, G, Fixed> image, const A* mask, const T* painted,
                T* out) {
  using P = Pixel<A, G>;
  const int64_t channels = image.channels();
  const TapPointers<const T> pointers(taps, n, image);
  for (int i = 0; i < n; ++i) {
#if VG_QUADS
    if constexpr (kQuads<T, G, Fixed>)
      if (i + 4 <= n && warp_quad(taps, i, pointers, mask, painted, out)) {
        i += 3;
        continue;
      }
#endif
    const auto tap = pointers.of(i);
    const A w[4] = {taps.weight[0][i], taps.weight[1][i], taps.weight[2][i], taps.weight[3][i]};
    const int loaded = taps.loaded[i];
    for (int64_t c = 0; c < channels; c += G) {
      P sum = {};
      if (loaded == 15) {
        sum = w[0] * load_pixel<A, G>(tap[0] + c);
#pragma GCC unroll 3
        for (int k = 1; k < 4; ++k) add_scaled(sum, w[k], load_pixel<A, G>(tap[k] + c));
      } else {
        for (int k = 0; k < 4; ++k)
          if (loaded >> k & 1) add_scaled(sum, w[k], load_pixel<A, G>(tap[k] + c));
      }
      if (mask) {
        sum = (1 - mask[i]) * sum;
        add_scaled(sum, mask[i], load_pixel<A, G>(painted + i * channels + c));
      }
      store_pixel(out + i * channels + c, sum);
    }
  }
}

// dots(i, k) = sum over the channels of grad_out(i) tap_k(i), 0 where tap k is outside: enough for d/dflow and d/dmask.
template <class A, int G, bool Fixed, class T>
void dot_block(const Taps<A>& taps, int n, PixelImage<const T, G, Fixed> image, const T* grad_out, bool first,
               A* dots) {
  using P = Pixel<A, G>;
  const int64_t channels = image.channels();
  const TapPointers<const T> pointers(taps, n, image);
  for (int i = 0; i < n; ++i) {
#if VG_QUADS
    if constexpr (kQuads<T, G, Fixed>)
      if (first && i + 4 <= n && dot_quad(taps, i, pointers, grad_out, dots)) {
        i += 3;
        continue;
      }
#endif
    const auto tap = pointers.of(i);
    const int inside = taps.inside[i];
    P sum[4] = {};
    for (int64_t c = 0; c < channels; c += G) {
      const P g = load_pixel<A, G>(grad_out + i * channels + c);
      if (inside == 15) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) add_product(sum[k], g, load_pixel<A, G>(tap[k] + c));
      } else {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
          if (inside >> k & 1) add_product(sum[k], g, load_pixel<A, G>(tap[k] + c));
      }
    }
    Vector<A, 4> total = sum_channels(sum[0], sum[1], sum[2], sum[3]);
    if (!first) total += load<A, 4>(dots + 4 * i);
    store<A, 4>(dots + 4 * i, total);
  }
}

// The composite's own terms: dot(i) = sum over the channels of grad_out(i) painted(i); grad_painted(i) = mask(i)
// grad_out(i). Either result may be null.
template <class A, int G, bool Fixed, class T>
void painted_block(int n, int64_t run_time_channels, const A* mask, const T* grad_out, const T* painted, bool first,
                   A* dot, T* grad_painted) {
  using P = Pixel<A, G>;
  const int64_t channels = Fixed ? G : run_time_channels;
  for (int i = 0; i < n; ++i) {
    P sum = {};
    for (int64_t c = i * channels; c < (i + 1) * channels; c += G) {
      const P g = load_pixel<A, G>(grad_out + c);
      if (dot) add_product(sum, g, load_pixel<A, G>(painted + c));
      if (grad_painted) store_pixel(grad_painted + c, mask[i] * g);
    }
    if (dot) {
      const Vector<A, 4> total = sum_channels(sum, sum, sum, sum);
      dot[i] = first ? total[0] : dot[i] + total[0];
    }
  }
}

// grad(tap_k(i)) += (1 - mask(i)) w_k(i) grad_out(i) for the taps whose row is in [band_begin, band_end), in order of
// i, k.
template <class A, int G, bool Fixed, class T>
void scatter_block(const Taps<A>& taps, int n, const A* mask, const T* grad_out, int32_t band_begin, int32_t band_end,
                   PixelImage<A, G, Fixed> grad) {
  const int64_t channels = grad.channels();
  const TapPointers<A> pointers(taps, n, grad);
  for (int i = 0; i < n; ++i) {
    const int32_t y = taps.y[i];
    const A keep = mask ? 1 - mask[i] : A(1);
    int mine = taps.loaded[i];
    if (y < band_begin || y >= band_end) mine &= 12;
    if (y + 1 < band_begin || y + 1 >= band_end) mine &= 3;
    const auto tap = pointers.of(i);
    const T* g = grad_out + i * channels;
    if (mine == 15) {
      const A w[4] = {keep * taps.weight[0][i], keep * taps.weight[1][i], keep * taps.weight[2][i],
                      keep * taps.weight[3][i]};
      for (int64_t c = 0; c < channels; c += G) {
        const Pixel<A, G> value = load_pixel<A, G>(g + c);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          A* target = tap[k] + c;
          Pixel<A, G> sum = load_pixel<A, G>(target);
          add_scaled(sum, w[k], value);
          store_pixel(target, sum);
        }
      }
    } else {
      for (int k = 0; k < 4; ++k) {
        if (!(mine >> k & 1)) continue;
        const A w = keep * taps.weight[k][i];
        for (int64_t c = 0; c < channels; c += G) {
          A* target = tap[k] + c;
          Pixel<A, G> sum = load_pixel<A, G>(target);
          add_scaled(sum, w, load_pixel<A, G>(g + c));
          store_pixel(target, sum);
        }
      }
    }
  }
}

// From the dots of a block to the gradients of flow and mask; either may be null. Selects where a weight is 0: a tap
// without a part in a sum must not bring its Inf or NaN into it.
template <class A>
void finish_block(const Taps<A>& taps, int n, const A (&dots)[4][kBlock], const A* dot_painted, const A* mask,
                  A* grad_flow_x, A* grad_flow_y, A* grad_mask) {
  for (int i = 0; grad_flow_x && i < n; ++i) {
    const A d0 = dots[0][i], d1 = dots[1][i], d2 = dots[2][i], d3 = dots[3][i];
    const A fx = taps.fraction_x[i], fy = taps.fraction_y[i], keep = mask ? 1 - mask[i] : A(1);
    const A upper = fy != 1 ? (d1 - d0) * (1 - fy) : A(0), lower = fy != 0 ? (d3 - d2) * fy : A(0);
    const A left = fx != 1 ? (d2 - d0) * (1 - fx) : A(0), right = fx != 0 ? (d3 - d1) * fx : A(0);
    const A dx = keep * taps.slope_x[i] * (upper + lower), dy = keep * taps.slope_y[i] * (left + right);
    grad_flow_x[i] = taps.slope_x[i] != 0 ? dx : A(0);
    grad_flow_y[i] = taps.slope_y[i] != 0 ? dy : A(0);
  }
  for (int i = 0; grad_mask && i < n; ++i) {
    A warped = 0;
    for (int k = 0; k < 4; ++k) warped += taps.loaded[i] >> k & 1 ? taps.weight[k][i] * dots[k][i] : A(0);
    grad_mask[i] = dot_painted[i] - warped;
  }
}
