// Lists of the source pixels that fall into each cell of the image, in source order: what the gather of grad_image
// reads. Decides the layout of the lists and their scratch; leaves the use of the weights to
// flow_warp_backward_cuda.cu.
#pragma once

#include "common/launch.h"
#include "flow_warp/flow_warp.h"

namespace vgkernels {
namespace flow_warp_cuda {

// Cell (y, x), y in [-1, H), x in [-1, W), has the taps (y, x) to (y + 1, x + 1); its number is (y + 1) (W + 1) + x
// + 1.
template <class A>
struct alignas(16) CellEntry {
  A fx, fy, keep;  // fractions, and 1 - mask
  uint32_t pixel;
};

template <class A>
struct CellLists {
  const CellEntry<A>* entries;  // (images, Ho * Wo); what lies outside the image is not in the ranges
  const uint2* ranges;          // (images, cells): first entry and one past the last
};

inline int64_t cell_count(const FlowWarpParams& p) { return (p.H + 1) * (p.W + 1); }

// Pixels and cells of one image are 32-bit numbers here.
inline bool cell_lists_possible(const FlowWarpParams& p) {
  return p.Ho * p.Wo <= INT32_MAX - 4096 && cell_count(p) <= INT32_MAX - 4096;
}

template <class A>
int64_t cell_lists_bytes(const FlowWarpParams& p, int64_t images);

// flow: (images, 2, Ho, Wo), mask: (images, Ho, Wo) or null. Integer atomics only: the lists do not depend on timing.
template <class A>
const char* build_cell_lists(const FlowWarpParams& p, const A* flow, const A* mask, int64_t images, void* workspace,
                             void* stream, CellLists<A>* lists);

}  // namespace flow_warp_cuda
}  // namespace vgkernels
