// flow_warp forward on CUDA: which thread computes which outputs, and how many loads it keeps in flight.
// Leaves the arithmetic of a tap to flow_warp.h, the block layout and vector loads to flow_warp_cuda.h.
#include "flow_warp/flow_warp_cuda.h"

namespace vgkernels {
namespace flow_warp_cuda {
namespace {

// Blocks a multiprocessor that ptxas must leave registers for; one more makes it spill on some architecture.
template <class P, bool kPlanes, bool kBlend>
constexpr int kForwardBlocks = sizeof(typename P::A) == 8                              ? 2
                               : sizeof(typename P::Index) == 8 || (kPlanes && kBlend) ? 3
                                                                                       : 4;

// Planes: one thread = one pixel of a 32 x 8 tile x the channels of a slice, 4 at a time.
// Channels_last: one thread = one pixel x kVector channels, then the next 2^lanes * kVector. Grid: Tiling over (Ho,
// Wo).
template <class P, int kVector, bool kPlanes, bool kBlend>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<P, kPlanes, kBlend>) forward(P p, Tiling tiling) {
  using T = typename P::T;
  using A = typename P::A;
  using Index = typename P::Index;
  constexpr int kUnroll = kPlanes ? 4 : 1;
  const Spot spot = spot_of(tiling);
  if (!spot.inside) return;
  const Taps<P> taps = taps_of(p, spot.b, spot.y, spot.x);
  const Pitch<kPlanes, Index> in(p.C, p.H, p.W), out(p.C, p.Ho, p.Wo);
  const Index pixels = Index(p.Ho) * p.Wo, pixel = Index(spot.y) * p.Wo + spot.x;
  const A blend = kBlend ? __ldg(p.mask + spot.b * pixels + pixel) : A(0);
  const T* image = p.image + Index(spot.b) * p.C * p.H * p.W;             // (C, H, W)
  const Index target = Index(spot.b) * p.C * pixels + pixel * out.pixel;  // of channel 0 in out and painted
  const int step = kVector << tiling.lanes, first = spot.slice * tiling.slice_channels + spot.lane * kVector;
  const int last = min(p.C, (spot.slice + 1) * tiling.slice_channels);

  for (int c = first; c < last; c += step * kUnroll) {
    Pack<T, kVector> value[kUnroll][4] = {}, fresh[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (c + u >= last) break;
#pragma unroll
      for (int q = 0; q < 4; q++)
        if (taps.weight[q] != 0) value[u][q] = load<kVector>(image + (c + u) * in.channel + taps.at[q] * in.pixel);
      if (kBlend) fresh[u] = load<kVector>(p.painted + target + (c + u) * out.channel);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (c + u >= last) break;
      A result[kVector];
#pragma unroll
      for (int i = 0; i < kVector; i++) {
        A sum = 0;
#pragma unroll
        for (int q = 0; q < 4; q++) sum += taps.weight[q] * value[u][q][i];
        if (kBlend) sum = (1 - blend) * sum + blend * fresh[u][i];
        result[i] = sum;
      }
      store(p.out + target + (c + u) * out.channel, result);
    }
  }
}

template <class P, int kVector, bool kPlanes>
const char* launch(const FlowWarpParams& params, void* stream) {
  int64_t blocks;
  const Tiling tiling = tile(params.B, params.C, params.Ho, params.Wo, kPlanes ? 0 : kVector, &blocks);
  if (too_many(blocks)) return kTooManyBlocks;
  return with_bool(params.mask != nullptr, [&](auto blend) {
    constexpr bool kBlend = decltype(blend)::value;
    VG_LAUNCH((forward<P, kVector, kPlanes, kBlend>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, P(params),
              tiling);
    return launch_error();
  });
}

}  // namespace
}  // namespace flow_warp_cuda

const char* flow_warp_forward_cuda(const FlowWarpParams& params, DType dtype, void* stream) {
  using namespace flow_warp_cuda;
  if (params.B * params.C * params.Ho * params.Wo == 0) return nullptr;
  if (const char* error = sizes_error(params)) return error;
  return with_types(params, dtype, [&](auto element, auto index) {
    using P = Problem<decltype(element), decltype(index)>;
    constexpr int kVector = 16 / sizeof(element);
    if (!params.channels_last || params.C == 1) return launch<P, 1, true>(params, stream);
    if (vectors_fit(params.C, sizeof(element), 16, params.image, params.painted, params.out))
      return launch<P, kVector, false>(params, stream);
    return launch<P, 1, false>(params, stream);
  });
}

}  // namespace vgkernels
