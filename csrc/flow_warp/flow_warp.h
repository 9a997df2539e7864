// flow_warp: backward warping by a flow in pixels, and vid2vid's occlusion composite over it (arXiv 1808.06601, eq. 4).
//
//   warped(c, p) = sum over the 4 taps q around x = p + flow(p) of  w_q(x) image(c, q)          w = bilinear weights
//   out(c, p)    = warped(c, p)                                            without a mask
//   out(c, p)    = (1 - mask(p)) warped(c, p) + mask(p) new(c, p)          with one (mask 1 = newly painted)
//
// Decides the parameters and the arithmetic of one tap; the CPU loops and CUDA kernels only decide who computes what.
// A tap of weight 0, or outside the image, is never loaded: 0 * Inf makes no NaN here.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"

namespace vgkernels {

enum class Interpolation : int { bilinear, nearest };
enum class Padding : int { border, zeros, reflection };

// T is the dtype of the images, A = Acc<T>. Images lie packed, all contiguous or all channels_last; flow and mask
// contiguous.
struct FlowWarpParams {
  int64_t B, C, H, W, Ho, Wo;
  bool channels_last;
  Interpolation mode;
  Padding padding;
  const void* image;    // (B, C, H, W) T
  const void* flow;     // (B, 2, Ho, Wo) A, pixels, channel 0 = x, 1 = y
  const void* mask;     // (B, 1, Ho, Wo) A; null: no composite
  const void* painted;  // (B, C, Ho, Wo) T, the argument `new`; null: no composite
  void* out;            // (B, C, Ho, Wo) T; null in the backward
};

// A gradient that nobody asked for is null.
struct FlowWarpBackwardParams : FlowWarpParams {
  const void* grad_out;  // (B, C, Ho, Wo) T
  void* grad_image;      // (B, C, H, W) T, overwritten
  void* grad_flow;       // (B, 2, Ho, Wo) A
  void* grad_mask;       // (B, 1, Ho, Wo) A
  void* grad_painted;    // (B, C, Ho, Wo) T
};

// Where a coordinate falls on an axis of n samples: taps `cell` and `cell + 1` with weights 1 - fraction and fraction.
template <class A>
struct AxisTap {
  int cell;    // in [-2, n]; a tap outside [0, n) counts as 0
  A fraction;  // in [0, 1]
  A slope;     // d position / d flow: 1, -1 where reflected, 0 where clamped
};

// The fold of a mirror at both end samples (period 2 (n - 1)); 0 where x is not finite.
template <class A>
VG_HOST_DEVICE A reflect(A x, A last, A* slope) {
  const A distance = std::fabs(x), period = last + last;
  if (!(last > 0) || distance - distance != 0) return A(0);
  const A folded = std::fmod(distance, period);  // exact for any size; x - floor(x / period) * period is not
  *slope = ((x < 0) != (folded > last)) ? A(-1) : A(1);
  return folded > last ? period - folded : folded;
}

template <class A>
VG_HOST_DEVICE AxisTap<A> locate(A x, int n, Interpolation mode, Padding padding) {
  const A last = A(n - 1);
  A slope = 1;
  if (padding == Padding::zeros) {
    x = x >= A(-2) ? x : A(-2);  // NaN goes to -2, where both taps are outside
    x = x <= A(n) ? x : A(n);
  } else {
    if (padding == Padding::reflection && !(x >= 0 && x <= last)) x = reflect(x, last, &slope);
    slope = (x > 0 && x < last) ? slope : A(0);
    x = x > 0 ? x : A(0);  // NaN goes to 0
    x = x < last ? x : last;
  }
  if (mode == Interpolation::nearest) return {int(std::nearbyint(x)), A(0), A(0)};  // half to even
  int cell = int(x);
  cell -= A(cell) > x;                                            // floor, without a call on baseline x86
  if (padding != Padding::zeros && cell == n - 1) cell -= n > 1;  // both taps inside, fraction up to 1
  return {cell, x - A(cell), slope};
}

// ---- CUDA: every function returns null, or what went wrong ----

const char* flow_warp_forward_cuda(const FlowWarpParams& p, DType dtype, void* stream);

// deterministic: no float atomics, bitwise repeatable; otherwise the launcher may pick the faster path for the shape.
const char* flow_warp_backward_cuda(const FlowWarpBackwardParams& p, DType dtype, bool deterministic, void* workspace,
                                    void* stream);
int64_t flow_warp_backward_workspace_cuda(const FlowWarpBackwardParams& p, DType dtype, bool deterministic);  // bytes

}  // namespace vgkernels
