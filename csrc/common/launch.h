// Decides how a .cu file names launches, shared memory and the stream: nvcc gets CUDA, g++ gets the emulator.
// A .cu file includes this and nothing else of CUDA; raw <<<>>>, __shared__ and asm are not written outside it.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define VG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define VG_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  vgkernels::launch_cooperative(kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__)
#define VG_SHARED(T, name, dims) __shared__ T name dims
#define VG_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char vg_dynamic_[]; \
  T* name = reinterpret_cast<T*>(vg_dynamic_)

namespace vgkernels {

// All blocks run at once, as prim::grid_sync needs; an error, not a hang, where the device has no room for them.
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
                               Arguments... arguments) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace vgkernels
#else
#include "cuda_emu.h"  // the test build puts it on the include path
#endif
