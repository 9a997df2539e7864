// Decides the CPU stages of flow_warp and their scratch memory, and picks the copy compiled for this processor.
// What a unit does is in flow_warp_stages.h, the loops over pixels in flow_warp_pixels.h.
#include "flow_warp/flow_warp_cpu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace vgkernels {
namespace {

template <class A>
constexpr int wide_group = 64 / int(sizeof(A));  // channels in one cache line
constexpr int narrow_group = 4;

// A run of channels that is packed together: `count` of them, padded to `width`.
struct Group {
  int64_t first;
  int count, width;
};

template <class A>
int64_t group_count(int64_t C) {
  const int64_t wide = wide_group<A>, rest = C % wide;
  return C / wide + (rest > wide / 2 ? 1 : (rest + narrow_group - 1) / narrow_group);
}

template <class A>
Group nth_group(int64_t C, int64_t n) {
  const int64_t wide = wide_group<A>, rest = C % wide, whole = C / wide;
  if (n < whole) return {n * wide, int(wide), int(wide)};
  if (rest > wide / 2) return {whole * wide, int(rest), int(wide)};
  const int64_t first = whole * wide + (n - whole) * narrow_group;
  return {first, int(std::min<int64_t>(narrow_group, C - first)), narrow_group};
}

struct GroupStage {
  int64_t b;
  Group group;
  int step;
};

template <class A>
GroupStage group_stage(int64_t C, int64_t stage, int steps) {
  const int64_t groups = group_count<A>(C), turn = stage / steps;
  return {turn / groups, nth_group<A>(C, turn % groups), int(stage % steps)};
}

template <class A>
int64_t widest_group(int64_t C) {
  return nth_group<A>(C, 0).width;
}

template <class A>
bool direct(const FlowWarpParams& p) {
  return p.channels_last && p.C % wide_group<A> == 0;
}
constexpr int64_t planar_channels = 4;  // above, packing once per group beats gathering once per channel
template <class T>
bool planar(const FlowWarpParams& p) {
  return std::is_same_v<T, float> && !p.channels_last && p.C <= planar_channels && p.H * p.W <= INT32_MAX;
}
template <class T>
bool direct_backward(const FlowWarpParams& p) {  // 16-bit gradients are summed in float scratch, so never in place
  return std::is_same_v<T, Acc<T>> && direct<Acc<T>>(p);
}

// Cuts one allocation into arrays that start on cache lines.
struct Cutter {
  char* at;
  int64_t bytes = 0;
  template <class X>
  X* take(int64_t count) {
    char* start = at + bytes;
    bytes += (count * int64_t(sizeof(X)) + 63) / 64 * 64;
    return reinterpret_cast<X*>(start);  // a cut of untyped memory, on a cache line
  }
};

template <class A>
struct BackwardScratch {
  int32_t *row_low, *row_high;  // (B, Ho)
  A* dots;                      // (Ho, Wo, 4)
  A* dot_painted;               // (Ho, Wo)
  A *image, *grad_image;        // (H, W, G)
  int64_t bytes;

  template <class T>
  static BackwardScratch of(const FlowWarpBackwardParams& p, void* memory) {
    BackwardScratch scratch;
    Cutter cut{static_cast<char*>(memory)};
    const bool in_place = direct_backward<T>(p), need_dots = p.grad_flow || p.grad_mask;
    const int64_t plane = in_place ? 0 : p.H * p.W * widest_group<A>(p.C);
    const int64_t carried = in_place || group_count<A>(p.C) == 1 ? 0 : p.Ho * p.Wo;
    scratch.row_low = cut.take<int32_t>(p.B * p.Ho);
    scratch.row_high = cut.take<int32_t>(p.B * p.Ho);
    scratch.dots = cut.take<A>(need_dots ? 4 * carried : 0);
    scratch.dot_painted = cut.take<A>(p.grad_mask ? carried : 0);
    scratch.image = cut.take<A>(need_dots && !planar<T>(p) ? plane : 0);
    scratch.grad_image = cut.take<A>(p.grad_image ? plane : 0);
    scratch.bytes = cut.bytes;
    return scratch;
  }
};

}  // namespace
}  // namespace vgkernels

#define VG_ISA_FILE "flow_warp/flow_warp_isa.h"
#include "common/foreach_isa.h"

namespace vgkernels {
namespace {

// Calls f(T{}) for the type that dtype names.
template <class F>
auto with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::float64:
      return f(double{});
    case DType::float16:
      return f(float16{});
    case DType::bfloat16:
      return f(bfloat16{});
    default:
      return f(float{});
  }
}

}  // namespace

CpuPlan flow_warp_forward_plan_cpu(const FlowWarpParams& p, DType dtype) {
  return with_type(dtype, [&](auto zero) -> CpuPlan {
    using A = Acc<decltype(zero)>;
    if (direct<A>(p) || planar<decltype(zero)>(p)) return {1, 0};
    return {2 * p.B * group_count<A>(p.C), p.H * p.W * widest_group<A>(p.C) * int64_t(sizeof(A))};
  });
}

int64_t flow_warp_forward_units_cpu(const FlowWarpParams& p, DType dtype, int64_t stage) {
  return with_type(dtype, [&](auto zero) -> int64_t {
    using T = decltype(zero);
    if (direct<Acc<T>>(p) || planar<T>(p)) return p.B * p.Ho;
    return stage % 2 == 0 ? p.H : p.Ho;
  });
}

void flow_warp_forward_cpu(const FlowWarpParams& p, DType dtype, void* scratch, int64_t stage, int64_t begin,
                           int64_t end) {
  with_type(dtype, [&](auto zero) { VG_FOR_ISA(forward<decltype(zero)>(p, scratch, stage, begin, end)); });
}

CpuPlan flow_warp_backward_plan_cpu(const FlowWarpBackwardParams& p, DType dtype) {
  return with_type(dtype, [&](auto zero) -> CpuPlan {
    using T = decltype(zero);
    using A = Acc<T>;
    return {1 + (direct_backward<T>(p) ? 1 : 3 * p.B * group_count<A>(p.C)),
            BackwardScratch<A>::template of<T>(p, nullptr).bytes};
  });
}

int64_t flow_warp_backward_units_cpu(const FlowWarpBackwardParams& p, DType dtype, int64_t stage, int threads) {
  if (stage == 0) return threads > 1 && p.grad_image ? p.B * p.Ho : 0;
  return with_type(dtype, [&](auto zero) -> int64_t { return direct_backward<decltype(zero)>(p) ? p.B * p.H : p.H; });
}

void flow_warp_backward_cpu(const FlowWarpBackwardParams& p, DType dtype, void* scratch, int64_t stage, int64_t begin,
                            int64_t end) {
  with_type(dtype, [&](auto zero) { VG_FOR_ISA(backward<decltype(zero)>(p, scratch, stage, begin, end)); });
}

}  // namespace vgkernels
