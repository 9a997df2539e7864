// What the torch door calls of the CUDA kernels of svc_projection. Torch-free and CUDA-free.
#pragma once

#include "svc_projection/svc_projection.h"

namespace vgkernels {

// Bytes of workspace. `matrices`: (count) in host memory, their data on the device.
int64_t svc_projection_workspace_cuda(const SvcMatrix* matrices, int64_t count, DType dtype);

// Clips in place what is not inside, all on `stream`, without waiting for it. A matrix that is not finite is left as it
// is, and unless skip_nonfinite all others too. report: (count) on the device. Returns null or what went wrong.
// largest: an upper bound, where clipped at most 1 % too large; clipped: counts what is above c, tolerance or not.
const char* svc_projection_cuda(const SvcMatrix* matrices, int64_t count, DType dtype, bool skip_nonfinite,
                                SvcReport* report, void* workspace, void* stream);

}  // namespace vgkernels
