// flow_warp backward on CUDA: one pass for the gradients of flow, mask and painted; a gather or a scatter for the
// image. Decides which of the two and the scratch; leaves the lists that the gather reads to flow_warp_sort_cuda.cu.
#include "flow_warp/flow_warp_cuda.h"
#include "flow_warp/flow_warp_scatter_cuda.h"
#include "flow_warp/flow_warp_sort.h"

namespace vgkernels {
namespace flow_warp_cuda {
namespace {

// d weight / d position of tap q along one axis: the weight of the other axis, with the side's sign.
template <class A>
__device__ __forceinline__ A tap_slope(bool far, bool other_far, A other_fraction) {
  const A other = other_far ? other_fraction : 1 - other_fraction;
  return far ? other : -other;
}

// Blocks a multiprocessor that ptxas must leave registers for; one more makes it spill on some architecture.
template <class P, int kVector, bool kPlanesBlend>
constexpr int kSourceBlocks = kWide<P> ? 2 : (kVector == 8 || kPlanesBlend ? 3 : 4);

// Sums over the channels, of one lane in order, then an xor tree over the lanes of the pixel: no order is left to
// timing. Lanes, pixels and grid as in the forward, without slices: Tiling over (Ho, Wo).
template <class P, int kVector, bool kPlanes, bool kBlend>
__global__ void __launch_bounds__(kThreads, kSourceBlocks<P, kVector, kPlanes && kBlend>)
    source_gradients(P p, Tiling tiling) {
  using T = typename P::T;
  using A = typename P::A;
  using Index = typename P::Index;
  const Spot spot = spot_of(tiling);
  const Pitch<kPlanes, Index> in(p.C, p.H, p.W), out(p.C, p.Ho, p.Wo);
  const Index pixels = Index(p.Ho) * p.Wo, pixel = Index(spot.y) * p.Wo + spot.x;  // read only inside
  Taps<P> taps;
  A along_x[4], along_y[4], blend = 0, dot[4] = {}, dot_painted = 0;
  if (spot.inside) {
    taps = taps_of(p, spot.b, spot.y, spot.x);
    if (kBlend) blend = __ldg(p.mask + spot.b * pixels + pixel);
    bool needed[4];
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const bool x_moves = p.grad_flow && taps.x.slope != 0, y_moves = p.grad_flow && taps.y.slope != 0;
      along_x[q] = taps.inside[q] && x_moves ? tap_slope(q & 1, q >> 1, taps.y.fraction) : A(0);
      along_y[q] = taps.inside[q] && y_moves ? tap_slope(q >> 1, q & 1, taps.x.fraction) : A(0);
      needed[q] = along_x[q] != 0 || along_y[q] != 0 || (kBlend && p.grad_mask && taps.weight[q] != 0);
    }
    const T* image = p.image + Index(spot.b) * p.C * p.H * p.W;           // (C, H, W)
    const Index here = Index(spot.b) * p.C * pixels + pixel * out.pixel;  // of channel 0
#pragma unroll(kPlanes ? 2 : 1)
    for (int c = spot.lane * kVector; c < p.C; c += kVector << tiling.lanes) {
      const Pack<T, kVector> grad = load<kVector>(p.grad_out + here + c * out.channel);
      Pack<T, kVector> value[4] = {}, fresh = {};
#pragma unroll
      for (int q = 0; q < 4; q++)
        if (needed[q]) value[q] = load<kVector>(image + c * in.channel + taps.at[q] * in.pixel);
      if (kBlend && p.grad_mask) fresh = load<kVector>(p.painted + here + c * out.channel);
      if (kBlend && p.grad_painted) {
        A result[kVector];
#pragma unroll
        for (int i = 0; i < kVector; i++) result[i] = blend * grad[i];
        store(p.grad_painted + here + c * out.channel, result);
      }
#pragma unroll
      for (int i = 0; i < kVector; i++) {
        const A g = grad[i];
#pragma unroll
        for (int q = 0; q < 4; q++) dot[q] += g * value[q][i];  // not read below where not needed
        if (kBlend) dot_painted += g * fresh[i];
      }
    }
  }
  // A full warp: every thread of the block comes here.
  for (int distance = (1 << tiling.lanes) >> 1; distance; distance >>= 1) {
#pragma unroll
    for (int q = 0; q < 4; q++) dot[q] += __shfl_xor_sync(kAllLanes, dot[q], distance);
    if (kBlend) dot_painted += __shfl_xor_sync(kAllLanes, dot_painted, distance);
  }
  if (!spot.inside || spot.lane) return;
  // Select, not multiply: a tap without a part in a sum must not bring its Inf or NaN into it.
  A grad_x = 0, grad_y = 0, warped = 0;
#pragma unroll
  for (int q = 0; q < 4; q++) {
    if (along_x[q] != 0) grad_x += along_x[q] * dot[q];
    if (along_y[q] != 0) grad_y += along_y[q] * dot[q];
    if (kBlend && taps.weight[q] != 0) warped += taps.weight[q] * dot[q];
  }
  if (p.grad_flow) {
    A* flow = p.grad_flow + 2 * spot.b * pixels + pixel;  // (2, pixels)
    const A keep = 1 - blend;
    flow[0] = taps.x.slope != 0 ? taps.x.slope * keep * grad_x : A(0);
    flow[pixels] = taps.y.slope != 0 ? taps.y.slope * keep * grad_y : A(0);
  }
  if (kBlend && p.grad_mask) p.grad_mask[spot.b * pixels + pixel] = dot_painted - warped;
}

// grad_image of one destination: over its 4 cells in fixed order, over the pixels of a cell in source order.
// Planes: one thread = one pixel of 32 x 8 x the channels of a slice, 8 at a time. Channels_last: one pixel x kVector.
// Grid: Tiling over (H, W).
template <class P, int kVector, bool kPlanes>
__global__ void __launch_bounds__(kThreads, kWide<P> ? 2 : 4)
    gather_image(P p, Tiling tiling, CellLists<typename P::A> lists) {
  using T = typename P::T;
  using A = typename P::A;
  using Index = typename P::Index;
  constexpr int kUnroll = kPlanes ? 8 : 1;
  const Spot spot = spot_of(tiling);
  if (!spot.inside) return;
  const Pitch<kPlanes, Index> in(p.C, p.H, p.W), out(p.C, p.Ho, p.Wo);
  const Index pixels = Index(p.Ho) * p.Wo;
  const CellEntry<A>* entries = lists.entries + spot.b * pixels;               // (pixels)
  const uint2* ranges = lists.ranges + spot.b * (Index(p.H + 1) * (p.W + 1));  // (H + 1, W + 1)
  const T* grad_out = p.grad_out + Index(spot.b) * p.C * pixels;               // (C, Ho, Wo)
  T* target = p.grad_image + Index(spot.b) * p.C * p.H * p.W + (Index(spot.y) * p.W + spot.x) * in.pixel;  // channel 0
  const int step = kVector << tiling.lanes, first = spot.slice * tiling.slice_channels + spot.lane * kVector;
  const int last = min(p.C, (spot.slice + 1) * tiling.slice_channels);
  for (int c = first; c < last; c += step * kUnroll) {
    A sum[kUnroll][kVector] = {};
    for (int q = 0; q < 4; q++) {  // this destination is tap q of the cell up and left by (q >> 1, q & 1)
      const uint2 range = ranges[Index(spot.y + 1 - (q >> 1)) * (p.W + 1) + (spot.x + 1 - (q & 1))];
      for (uint32_t i = range.x; i < range.y; i++) {
        const CellEntry<A> entry = entries[i];
        const A weight = (q >> 1 ? entry.fy : 1 - entry.fy) * (q & 1 ? entry.fx : 1 - entry.fx);
        if (weight == 0) continue;
        const T* from = grad_out + c * out.channel + Index(entry.pixel) * out.pixel;  // (C, ...) from channel c on
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          if (c + u >= last) break;
          const Pack<T, kVector> grad = load<kVector>(from + u * out.channel);
#pragma unroll
          for (int k = 0; k < kVector; k++) sum[u][k] += entry.keep * weight * grad[k];
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (c + u >= last) break;
      store(target + (c + u) * in.channel, sum[u]);
    }
  }
}

// ---- launchers ----

// How grad_image is made: by cell lists or by atomics, and for how many images at a time the scratch is made.
struct Plan {
  bool lists, sums;  // sums: 16-bit gradients are scattered into float scratch first
  int64_t images, bytes;
};

bool is_empty(const FlowWarpParams& p) { return p.B * p.C * p.H * p.W * p.Ho * p.Wo == 0; }

Plan plan_of(const FlowWarpBackwardParams& p, DType dtype, bool deterministic) {
  if (!p.grad_image || is_empty(p)) return {false, false, p.B, 0};
  const bool is_double = dtype == DType::float64, is_16bit = dtype == DType::float16 || dtype == DType::bfloat16;
  const int64_t least = is_16bit ? policy.atomics_below_channels_16bit : policy.atomics_below_channels;
  const bool lists = deterministic || (p.C >= least && cell_lists_possible(p)), sums = is_16bit && !lists;
  const auto bytes = [&](int64_t images) {
    if (lists) return is_double ? cell_lists_bytes<double>(p, images) : cell_lists_bytes<float>(p, images);
    return sums ? images * p.C * p.H * p.W * int64_t(sizeof(float)) : int64_t(0);
  };
  const int64_t one = bytes(1), images = one ? std::min(p.B, std::max<int64_t>(policy.scratch_bytes / one, 1)) : p.B;
  return {lists, sums, images, bytes(images)};
}

template <class P, int kVector, bool kPlanes>
const char* source_launch(const FlowWarpBackwardParams& params, void* stream) {
  int64_t blocks;
  Tiling tiling = tile(params.B, params.C, params.Ho, params.Wo, kPlanes ? 0 : kVector, &blocks);
  blocks /= tiling.slices;  // one thread must meet all channels of its planes
  tiling.slices = 1;
  if (too_many(blocks)) return kTooManyBlocks;
  return with_bool(params.mask != nullptr, [&](auto blend) {
    constexpr bool kBlend = decltype(blend)::value;
    VG_LAUNCH((source_gradients<P, kVector, kPlanes, kBlend>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream,
              P(params), tiling);
    return launch_error();
  });
}

template <class P, int kVector, bool kPlanes>
const char* gather_launch(const P& p, int64_t images, const CellLists<typename P::A>& lists, void* stream) {
  int64_t blocks;
  const Tiling tiling = tile(images, p.C, p.H, p.W, kPlanes ? 0 : kVector, &blocks);
  if (too_many(blocks)) return kTooManyBlocks;
  VG_LAUNCH((gather_image<P, kVector, kPlanes>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, p, tiling, lists);
  return launch_error();
}

template <class P>
const char* gather(const P& p, const FlowWarpParams& params, int64_t images, void* workspace, void* stream) {
  constexpr int kVector = 16 / sizeof(typename P::T);
  CellLists<typename P::A> lists;
  if (const char* error = build_cell_lists(params, p.flow, p.mask, images, workspace, stream, &lists)) return error;
  if (!params.channels_last || p.C == 1) return gather_launch<P, 1, true>(p, images, lists, stream);
  if (vectors_fit(p.C, sizeof(typename P::T), 16, p.grad_out, p.grad_image))
    return gather_launch<P, kVector, false>(p, images, lists, stream);
  return gather_launch<P, 1, false>(p, images, lists, stream);
}

template <class P>
const char* image_gradient(const FlowWarpBackwardParams& params, const Plan& plan, void* workspace, void* stream) {
  P p(params);
  for (int64_t first = 0; first < params.B; first += plan.images) {
    const int64_t images = std::min(plan.images, params.B - first);
    const char* error =
        plan.lists ? gather(p, params, images, workspace, stream) : scatter(p, params, images, workspace, stream);
    if (error) return error;
    p.flow += images * 2 * params.Ho * params.Wo;
    p.mask += p.mask ? images * params.Ho * params.Wo : 0;
    p.grad_out += images * params.C * params.Ho * params.Wo;
    p.grad_image += images * params.C * params.H * params.W;
  }
  return nullptr;
}

void clear(void* memory, int64_t bytes, void* stream) {
  if (memory && bytes) cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace flow_warp_cuda

int64_t flow_warp_backward_workspace_cuda(const FlowWarpBackwardParams& params, DType dtype, bool deterministic) {
  return flow_warp_cuda::plan_of(params, dtype, deterministic).bytes;
}

const char* flow_warp_backward_cuda(const FlowWarpBackwardParams& params, DType dtype, bool deterministic,
                                    void* workspace, void* stream) {
  using namespace flow_warp_cuda;
  if (const char* error = sizes_error(params)) return error;
  const Plan plan = plan_of(params, dtype, deterministic);
  if (plan.lists && !cell_lists_possible(params))
    return "flow_warp: the deterministic CUDA backward needs fewer than 2^31 pixels an image";
  return with_types(params, dtype, [&](auto element, auto index) -> const char* {
    using T = decltype(element);
    using P = Problem<T, decltype(index)>;
    if (is_empty(params)) {  // sums of nothing
      const int64_t pixels = params.B * params.Ho * params.Wo;
      clear(params.grad_image, params.B * params.C * params.H * params.W * sizeof(T), stream);
      clear(params.grad_flow, 2 * pixels * sizeof(Acc<T>), stream);
      clear(params.grad_mask, pixels * sizeof(Acc<T>), stream);
      clear(params.grad_painted, pixels * params.C * sizeof(T), stream);
      return launch_error();
    }
    if (params.grad_flow || (params.mask && (params.grad_mask || params.grad_painted))) {
      const auto run =
          !params.channels_last || params.C == 1 ? source_launch<P, 1, true>
          : vectors_fit(params.C, sizeof(T), 16, params.image, params.painted, params.grad_out, params.grad_painted)
              ? source_launch<P, 16 / sizeof(T), false>
              : source_launch<P, 1, false>;
      if (const char* error = run(params, stream)) return error;
    }
    return params.grad_image ? image_gradient<P>(params, plan, workspace, stream) : nullptr;
  });
}

}  // namespace vgkernels
