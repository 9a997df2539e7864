// Decides how a .cu file names launches, shared memory and the stream: nvcc gets CUDA, g++ gets the emulator.
// A .cu file includes this and nothing else of CUDA; raw <<<>>>, __shared__ and asm are not written outside it.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define VG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define VG_SHARED(T, name, dims) __shared__ T name dims
#define VG_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char vg_dynamic_[]; \
  T* name = reinterpret_cast<T*>(vg_dynamic_)
#else
#include "cuda_emu.h"  // the test build puts it on the include path
#endif
