// Decides how the CPU work of flow_warp is handed out: ranges of units that are independent of one another. Any split
// of the units over threads gives the same bits.
#pragma once

#include "flow_warp/flow_warp.h"

namespace vgkernels {

// The image rows that the taps of one output row can touch.
struct RowSpan {
  int32_t low, high;
};

// First: spans (B, Ho). Units: the B Ho rows of the output.
void flow_warp_spans_cpu(const FlowWarpParams& p, DType dtype, RowSpan* spans, int64_t begin, int64_t end);

// Then one of these. False: there was no memory for a window, and the result is incomplete.
int64_t flow_warp_forward_units_cpu(const FlowWarpParams& p, DType dtype);
bool flow_warp_forward_cpu(const FlowWarpParams& p, DType dtype, const RowSpan* spans, int64_t begin, int64_t end);

// Units: the B H rows of the image. Scratch is shared by all of them.
int64_t flow_warp_backward_scratch_cpu(const FlowWarpBackwardParams& p, DType dtype);  // bytes
bool flow_warp_backward_cpu(const FlowWarpBackwardParams& p, DType dtype, const RowSpan* spans, void* scratch,
                            int64_t begin, int64_t end);

}  // namespace vgkernels
