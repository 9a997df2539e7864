// Decides how one source serves g++, nvcc and the emulator: function attributes only.
// Launches and device primitives are in launch.h, storage types in dtype.h.
#pragma once

#if defined(__CUDACC__)
#define VG_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define VG_HOST_DEVICE inline __attribute__((always_inline))
#else
#define VG_HOST_DEVICE inline
#endif

// True only while nvcc compiles for the device: the place for intrinsics that have no host body.
#if defined(__CUDA_ARCH__)
#define VG_DEVICE_CODE 1
#else
#define VG_DEVICE_CODE 0
#endif
