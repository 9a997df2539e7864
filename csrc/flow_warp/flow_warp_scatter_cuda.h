// The gradient of the image by float atomics, for few channels: neighbours that meet the same tap are added in
// registers. Decides who adds what to which tap; leaves the choice against the gather to flow_warp_backward_cuda.cu.
#pragma once

#include "common/device_primitives.h"
#include "flow_warp/flow_warp_cuda.h"

namespace vgkernels {
namespace flow_warp_cuda {
namespace {

template <class P>
__device__ __forceinline__ typename P::A keep_of(const P& p,
                                                 typename P::Index pixel) {  // 1 - mask; pixel: of the batch
  return p.mask ? 1 - __ldg(p.mask + pixel) : typename P::A(1);
}

template <int kVector, class A>
__device__ __forceinline__ void add_vector(A* to, const A (&value)[kVector]) {
  // Atomic: pixels of other threads and blocks reach the same tap. The order, and so the last bits, depend on timing.
  if constexpr (kVector == 4)
    prim::red_add4(to, make_float4(value[0], value[1], value[2], value[3]));
  else
    prim::red_add(to, value[0]);
}

// Channels_last: one thread = 4 pixels of a row x kVector channels. A pixel's right taps wait in registers: where the
// next pixel's left taps are the same, they go to memory together. Grid: Tiling over (Ho, ceil(Wo / 4)).
template <class P, int kVector>
__global__ void __launch_bounds__(kThreads, 2) scatter_pixels(P p, Tiling tiling, typename P::A* sums) {
  using A = typename P::A;
  using Index = typename P::Index;
  const Spot spot = spot_of(tiling);
  if (!spot.inside) return;
  const Index pixels = Index(p.Ho) * p.Wo;
  A* image = sums + Index(spot.b) * p.C * p.H * p.W;  // (H, W, C)
  for (int c = spot.lane * kVector; c < p.C; c += kVector << tiling.lanes) {
    Index waits_at[2] = {-1, -1};
    A waiting[2][kVector];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const int x = 4 * spot.x + k;
      if (x >= p.Wo) break;
      const Index pixel = spot.b * pixels + Index(spot.y) * p.Wo + x;
      const Taps<P> taps = taps_of(p, spot.b, spot.y, x);
      const A keep = keep_of(p, pixel);
      const auto grad = load<kVector>(p.grad_out + pixel * p.C + c);
#pragma unroll
      for (int row = 0; row < 2; row++) {
        const int left = 2 * row, right = left + 1;
        A sum[kVector];
#pragma unroll
        for (int i = 0; i < kVector; i++) sum[i] = keep * taps.weight[left] * grad[i];
        if (taps.weight[left] != 0) {
          const bool meets = waits_at[row] == taps.at[left];
          if (waits_at[row] >= 0 && !meets) add_vector<kVector>(image + waits_at[row] * p.C + c, waiting[row]);
#pragma unroll
          for (int i = 0; i < kVector; i++) sum[i] += meets ? waiting[row][i] : A(0);
          add_vector<kVector>(image + taps.at[left] * p.C + c, sum);
        } else if (waits_at[row] >= 0) {
          add_vector<kVector>(image + waits_at[row] * p.C + c, waiting[row]);
        }
        waits_at[row] = taps.weight[right] != 0 ? taps.at[right] : Index(-1);
#pragma unroll
        for (int i = 0; i < kVector; i++) waiting[row][i] = keep * taps.weight[right] * grad[i];
      }
    }
#pragma unroll
    for (int row = 0; row < 2; row++)
      if (waits_at[row] >= 0) add_vector<kVector>(image + waits_at[row] * p.C + c, waiting[row]);
  }
}

// Planes: one thread = 2 pixels of a column x the channels of a slice. The lower taps of the upper pixel join the upper
// taps of the lower one, right taps join the left taps of the next lane, where they are the same. Grid: Tiling over (Ho
// / 2, Wo).
template <class P>
__global__ void __launch_bounds__(kThreads, kWide<P> ? 2 : 3) scatter_planes(P p, Tiling tiling, typename P::A* sums) {
  using A = typename P::A;
  using Index = typename P::Index;
  const Spot spot = spot_of(tiling);
  const Index pixels = Index(p.Ho) * p.Wo, plane = Index(p.H) * p.W, top = Index(2 * spot.y) * p.Wo + spot.x;
  // Line k is a pair of taps side by side: k >> 1 the pixel, k & 1 its upper or lower taps. -1: nothing to add there.
  Index left[4] = {-1, -1, -1, -1}, right[4] = {-1, -1, -1, -1};
  A left_weight[4] = {}, right_weight[4] = {};
  bool inside[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    inside[r] = spot.inside && 2 * spot.y + r < p.Ho;
    if (!inside[r]) continue;
    const Taps<P> taps = taps_of(p, spot.b, 2 * spot.y + r, spot.x);
    const A keep = keep_of(p, spot.b * pixels + top + r * p.Wo);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      left[2 * r + k] = taps.weight[2 * k] != 0 ? taps.at[2 * k] : Index(-1);
      right[2 * r + k] = taps.weight[2 * k + 1] != 0 ? taps.at[2 * k + 1] : Index(-1);
      left_weight[2 * r + k] = keep * taps.weight[2 * k];
      right_weight[2 * r + k] = keep * taps.weight[2 * k + 1];
    }
  }
  const bool fold_left = left[1] >= 0 && left[1] == left[2], fold_right = right[1] >= 0 && right[1] == right[2];
  if (fold_left) left[1] = -1;
  if (fold_right) right[1] = -1;
  unsigned takes = 0, gives = 0,
           moves = 0;  // bit k: line k, from the lane below, to the lane above, anywhere in the warp
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const Index neighbour = __shfl_up_sync(kAllLanes, right[k], 1);
    const unsigned lane = threadIdx.x & 31;
    const bool take = lane > 0 && neighbour >= 0 && neighbour == left[k];
    const unsigned takers = __ballot_sync(kAllLanes, take);
    takes |= unsigned(take) << k;
    gives |= (lane < 31 ? takers >> (lane + 1) & 1 : 0) << k;
    moves |= unsigned(takers != 0) << k;
  }
  const int last = min(p.C, (spot.slice + 1) * tiling.slice_channels);
  for (int c = spot.slice * tiling.slice_channels; c < last; c++) {  // the same count in the whole warp
    A to_left[4], to_right[4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const Index from = (Index(spot.b) * p.C + c) * pixels + top + r * p.Wo;
      const A grad = inside[r] ? load<1>(p.grad_out + from)[0] : A(0);
#pragma unroll
      for (int k = 2 * r; k < 2 * r + 2; k++) {
        to_left[k] = left_weight[k] * grad;
        to_right[k] = right_weight[k] * grad;
      }
    }
    if (fold_left) to_left[2] += to_left[1];
    if (fold_right) to_right[2] += to_right[1];
    A* image = sums + (Index(spot.b) * p.C + c) * plane;  // (H, W)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (moves >> k & 1) {
        const A neighbour = __shfl_up_sync(kAllLanes, to_right[k], 1);
        if (takes >> k & 1) to_left[k] += neighbour;
      }
      // Atomic: other warps and blocks reach the same tap.
      if (left[k] >= 0) prim::red_add(image + left[k], to_left[k]);
      if (right[k] >= 0 && !(gives >> k & 1)) prim::red_add(image + right[k], to_right[k]);
    }
  }
}

// One thread = one element of the group's grad_image. Grid: 1-D.
template <class T>
__global__ void __launch_bounds__(kThreads, 6) round_sums(const Acc<T>* sums, T* grad_image, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) grad_image[i] = narrow<T>(sums[i]);
}

template <class P, int kVector>
const char* scatter_pixels_launch(const P& p, int64_t images, typename P::A* sums, void* stream) {
  int64_t blocks;
  const Tiling tiling = tile(images, p.C, p.Ho, (p.Wo + 3) / 4, kVector, &blocks);
  if (too_many(blocks)) return kTooManyBlocks;
  VG_LAUNCH((scatter_pixels<P, kVector>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, p, tiling, sums);
  return launch_error();
}

template <class P>
const char* scatter(const P& p, const FlowWarpParams& params, int64_t images, void* workspace, void* stream) {
  using T = typename P::T;
  using A = typename P::A;
  constexpr bool kSums = sizeof(T) == 2;
  A* sums = static_cast<A*>(kSums ? workspace : static_cast<void*>(p.grad_image));
  const int64_t count = images * p.C * p.H * p.W;
  cudaMemsetAsync(sums, 0, count * sizeof(A), static_cast<cudaStream_t>(stream));
  if (!params.channels_last || p.C == 1) {
    int64_t blocks;
    const Tiling tiling = tile(images, p.C, (int64_t(p.Ho) + 1) / 2, p.Wo, 0, &blocks);
    if (too_many(blocks)) return kTooManyBlocks;
    VG_LAUNCH((scatter_planes<P>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, p, tiling, sums);
  } else {
    constexpr int kVector = sizeof(A) == 4 ? 4 : 1;
    const bool fits = vectors_fit(p.C, sizeof(T), kVector * sizeof(T), p.grad_out) && vectors_fit(0, 0, 16, sums);
    const char* error = fits ? scatter_pixels_launch<P, kVector>(p, images, sums, stream)
                             : scatter_pixels_launch<P, 1>(p, images, sums, stream);
    if (error) return error;
  }
  if constexpr (kSums) {
    const int64_t blocks = (count + kThreads - 1) / kThreads;
    if (too_many(blocks)) return kTooManyBlocks;
    VG_LAUNCH((round_sums<T>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, sums, p.grad_image, count);
  }
  return launch_error();
}

}  // namespace
}  // namespace flow_warp_cuda
}  // namespace vgkernels
