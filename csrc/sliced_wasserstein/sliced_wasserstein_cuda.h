// What the torch door calls of the CUDA kernels of sliced_wasserstein. Torch-free and CUDA-free.
#pragma once

#include "sliced_wasserstein/sliced_wasserstein.h"

namespace vgkernels {

// Bytes of workspace: never an (N, L) array, but what a chunk of the directions takes.
int64_t sliced_wasserstein_workspace_cuda(const SlicedWassersteinParams& p, DType dtype);

// All on `stream`, without waiting for it; bitwise the same every time. float64 or float32, all pointers on the device,
// workspace a multiple of 256 bytes; no weights: x_weights and y_weights must be null. Every size is below 2^31, no
// other limit. Returns null or what went wrong.
const char* sliced_wasserstein_cuda(const SlicedWassersteinParams& p, DType dtype, void* workspace, void* stream);

}  // namespace vgkernels
