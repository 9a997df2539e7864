// Decides in which groups channels are packed and how many rows a window holds, and picks the copy of the kernels
// compiled for this processor. What a range of rows does is in flow_warp_rows.h, the loops over pixels in
// flow_warp_pixels.h.
#include "flow_warp/flow_warp_cpu.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "common/scratch.h"

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

// Whole cache lines first; more than half a line left fills another, less goes in fours.
template <class A>
Group nth_group(int64_t C, int64_t n) {
  const int64_t wide = wide_group<A>, rest = C % wide, whole = C / wide;
  if (n < whole) return {n * wide, int(wide), int(wide)};
  if (rest > wide / 2) return {whole * wide, int(rest), int(wide)};
  const int64_t first = whole * wide + (n - whole) * narrow_group;
  return {first, int(std::min<int64_t>(narrow_group, C - first)), narrow_group};
}

template <class A>
bool in_place(const FlowWarpParams& p) {
  return p.channels_last && p.C % wide_group<A> == 0;
}
template <class T>
bool in_place_backward(const FlowWarpParams& p) {  // 16-bit gradients are summed in a float window, never in place
  return std::is_same_v<T, Acc<T>> && in_place<Acc<T>>(p);
}

int32_t power_of_two(int32_t at_least) {
  int32_t power = 1;
  while (power < at_least) power *= 2;
  return power;
}

// Rows that a window needs so that every one of these spans fits, with some room to slide.
int32_t window_capacity(const FlowWarpParams& p, const RowSpan* spans, int64_t count) {
  int32_t widest = 1;
  for (int64_t i = 0; i < count; ++i) widest = std::max(widest, spans[i].high - spans[i].low + 1);
  return power_of_two(int32_t(std::min<int64_t>(int64_t(widest) + 4, p.H)));
}

// Sums over the channels of several groups, carried from one group to the next. Nothing with a single group.
template <class A>
struct CarriedSums {
  A* dots = nullptr;         // (B, Ho, Wo, 4)
  A* dot_painted = nullptr;  // (B, Ho, Wo)
  CarriedSums() = default;
  CarriedSums(const FlowWarpBackwardParams& p, void* scratch)
      : dots(static_cast<A*>(scratch)), dot_painted(dots + (scratch ? 4 * p.B * p.Ho * p.Wo : 0)) {}
};

}  // namespace
}  // namespace vgkernels

#define VG_ISA_FILE "flow_warp/flow_warp_isa.h"
#include "common/foreach_isa.h"

namespace vgkernels {

void flow_warp_spans_cpu(const FlowWarpParams& p, DType dtype, RowSpan* spans, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto zero) { VG_FOR_ISA(row_spans<Acc<decltype(zero)>>(p, spans, begin, end)); });
}

int64_t flow_warp_forward_units_cpu(const FlowWarpParams& p, DType dtype) {
  return with_type(dtype, [&](auto zero) -> int64_t {
    using A = Acc<decltype(zero)>;
    return p.B * p.Ho * (in_place<A>(p) ? 1 : group_count<A>(p.C));
  });
}

bool flow_warp_forward_cpu(const FlowWarpParams& p, DType dtype, const RowSpan* spans, int64_t begin, int64_t end) {
  return with_type(dtype, [&](auto zero) { return VG_FOR_ISA(forward<decltype(zero)>(p, spans, begin, end)); });
}

int64_t flow_warp_backward_scratch_cpu(const FlowWarpBackwardParams& p, DType dtype) {
  return with_type(dtype, [&](auto zero) -> int64_t {
    using T = decltype(zero);
    using A = Acc<T>;
    const bool carries = (p.grad_flow || p.grad_mask) && !in_place_backward<T>(p) && group_count<A>(p.C) > 1;
    return carries ? 5 * p.B * p.Ho * p.Wo * int64_t(sizeof(A)) : 0;
  });
}

bool flow_warp_backward_cpu(const FlowWarpBackwardParams& p, DType dtype, const RowSpan* spans, void* scratch,
                            int64_t begin, int64_t end) {
  return with_type(dtype,
                   [&](auto zero) { return VG_FOR_ISA(backward<decltype(zero)>(p, spans, scratch, begin, end)); });
}

}  // namespace vgkernels
