// Decides how the CPU work of flow_warp is handed out: stages that run in order, each made of units that are independent
// of one another. Any split of a stage's units over threads gives the same bits.
#pragma once

#include "flow_warp/flow_warp.h"

namespace vgkernels {

struct CpuPlan {
  int64_t stages;
  int64_t scratch_bytes;  // shared by all units, 64-byte aligned, handed in uninitialised
};

CpuPlan flow_warp_forward_plan_cpu(const FlowWarpParams& p, DType dtype);
int64_t flow_warp_forward_units_cpu(const FlowWarpParams& p, DType dtype, int64_t stage);
void flow_warp_forward_cpu(const FlowWarpParams& p, DType dtype, void* scratch, int64_t stage, int64_t begin, int64_t end);

CpuPlan flow_warp_backward_plan_cpu(const FlowWarpBackwardParams& p, DType dtype);
// Stage 0 helps to split the others; with one thread, which then runs every stage in one call per image, it has no units.
int64_t flow_warp_backward_units_cpu(const FlowWarpBackwardParams& p, DType dtype, int64_t stage, int threads);
void flow_warp_backward_cpu(const FlowWarpBackwardParams& p, DType dtype, void* scratch, int64_t stage, int64_t begin,
                            int64_t end);

}  // namespace vgkernels
