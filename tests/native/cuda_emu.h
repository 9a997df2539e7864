// Decides which names of CUDA a .cu file finds under g++: attributes, built-in variables, intrinsics, runtime calls.
// What they do is decided in cuda_emu_sched.h and cuda_emu_intrinsics.h; csrc/common/launch.h includes this file.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cmath>

#include "cuda_emu_grid.h"
#include "cuda_emu_intrinsics.h"

// The toolkit's headers spell these as attributes that g++ warns about.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__ static
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define VG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emu::launch(kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__)
#define VG_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  (emu::launch<true>(kernel, grid, block, shared_bytes, stream, ##__VA_ARGS__), cudaSuccess)
#define VG_SHARED(T, name, dims)  \
  static char vg_declares_##name; \
  auto& name = emu::shared_variable<T dims>(&vg_declares_##name)
#define VG_DYNAMIC_SHARED(T, name) T* name = emu::dynamic_shared<T>()

using emu::blockDim;
using emu::blockIdx;
using emu::gridDim;
using emu::threadIdx;
constexpr int warpSize = emu::kWarp;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads(emu::Site at = emu::Site::here()) { emu::barrier("__syncthreads", false, at); }
inline int __syncthreads_count(bool vote, emu::Site at = emu::Site::here()) {
  return emu::barrier("__syncthreads_count", vote, at);
}
inline int __syncthreads_or(bool vote, emu::Site at = emu::Site::here()) {
  return emu::barrier("__syncthreads_or", vote, at) != 0;
}
inline int __syncthreads_and(bool vote, emu::Site at = emu::Site::here()) {
  return emu::barrier("__syncthreads_and", !vote, at) == 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, emu::Site at = emu::Site::here()) { emu::sync_warp(mask, at); }
inline unsigned __ballot_sync(unsigned mask, bool predicate, emu::Site at = emu::Site::here()) {
  return emu::ballot("__ballot_sync", mask, predicate, at);
}
inline int __any_sync(unsigned mask, bool predicate, emu::Site at = emu::Site::here()) {
  return emu::ballot("__any_sync", mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, bool predicate, emu::Site at = emu::Site::here()) {
  return emu::ballot("__all_sync", mask, !predicate, at) == 0;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emu::Site at = emu::Site::here()) {
  return emu::shuffle("__shfl_sync", mask, value, width, at,
                      [=](int, int begin, int) { return begin + (source & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, emu::Site at = emu::Site::here()) {
  return emu::shuffle("__shfl_xor_sync", mask, value, width, at,
                      [=](int lane, int, int end) { return (lane ^ lanes) < end ? (lane ^ lanes) & 31 : lane; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emu::Site at = emu::Site::here()) {
  return emu::shuffle("__shfl_up_sync", mask, value, width, at, [=](int lane, int begin, int) {
    return lane - int(delta & 31) >= begin ? lane - int(delta & 31) : lane;
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, emu::Site at = emu::Site::here()) {
  return emu::shuffle("__shfl_down_sync", mask, value, width, at, [=](int lane, int, int end) {
    return lane + int(delta & 31) < end ? lane + int(delta & 31) : lane;
  });
}

template <class T>
T atomicAdd(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return T(old + v); });
}
template <class T>
T atomicSub(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return T(old - v); });
}
template <class T>
T atomicMin(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return v < old ? v : old; });
}
template <class T>
T atomicMax(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return old < v ? v : old; });
}
template <class T>
T atomicAnd(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return old & v; });
}
template <class T>
T atomicOr(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return old | v; });
}
template <class T>
T atomicExch(T* p, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, typename emu::Exactly<T>::type expected, typename emu::Exactly<T>::type v) {
  return emu::atomically(p, [=](T old) { return old == expected ? v : old; });
}
inline void __threadfence() { emu::fence(); }
inline void __threadfence_block() { emu::fence(); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, typename emu::Exactly<T>::type v) {
  *p = v;
}
template <class T>
void __stcg(T* p, typename emu::Exactly<T>::type v) {
  *p = v;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
template <class T, class U>
std::common_type_t<T, U> min(T a, U b) {
  return b < a ? b : a;
}
template <class T, class U>
std::common_type_t<T, U> max(T a, U b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline unsigned __float_as_uint(float x) { return emu::same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emu::same_bits<float>(x); }
inline int __float_as_int(float x) { return emu::same_bits<int>(x); }
inline float __int_as_float(int x) { return emu::same_bits<float>(x); }

// The runtime of one small device. A launch that the device would refuse throws at the launch itself.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "error"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
  if (bytes) memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = emu::config.multiprocessors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = int(emu::kOptInShared), cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = 1, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > emu::kOptInShared) return cudaErrorInvalidValue;
  emu::machine.shared_limit[reinterpret_cast<const void*>(kernel)] = size_t(value);
  return cudaSuccess;
}
