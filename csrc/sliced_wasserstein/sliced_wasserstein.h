// sliced_wasserstein: the mean over directions of the p-th power of the 1-D Wasserstein distance of projected samples.
//
//     value(b) = 1/L sum_l  W_p^p(theta_l . x(b, :), theta_l . y(b, :))
//     W_p^p(s, t) = sum_k w_k |s_(i_k) - t_(j_k)|^p         s_(i), t_(j): in ascending order, the lower index first
//
// where the segments (i_k, j_k, w_k) are the pieces in which both quantile functions are constant; for as many samples
// on either side, of equal weight, (k, k, 1/N). Wu, Huang et al.: Sliced Wasserstein Generative Models, arXiv
// 1706.02631, section 2. Decides what one call computes; who computes is decided in sliced_wasserstein_cpu.cpp and
// sliced_wasserstein_cuda.cu. Torch-free.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/host_device.h"

namespace vgkernels {

// All arrays are packed; elements of the call's dtype, float64 or float32.
struct SlicedWassersteinParams {
  const void* x;  // (B, N, D)
  const void* y;  // (B, M, D)
  const void*
      projections;  // (G, L, D): entry b of the batch takes b / (B / G); null: x, y are projected, D == L, G = 1
  const double* x_weights;  // (B, N), each row sums to 1; null: 1/N each. Both sides have weights or neither
  const double* y_weights;  // (B, M)
  int64_t batch, n, m, dim, directions, groups;  // B, N, M, D, L, G; all but B at least 1
  double p;                                      // at least 1
  void* value;                                   // (B,)
  void* grad_x;                                  // (B, N, D): d value(b) / d x(b); null here and below: not asked for
  void* grad_y;                                  // (B, M, D)
  void* grad_projections;                        // (B, L, D): d value(b) / d projections
};

// A NaN or Inf among the projections of an entry makes its value NaN, and its gradients wherever that direction adds to
// them; weights that are none, all of both. Other entries don't notice. d|d|^p at 0 is 0, also for p = 1.

}  // namespace vgkernels
