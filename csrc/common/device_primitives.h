// Decides what each instruction without a C++ spelling is: PTX under nvcc, the emulator's model of it under g++.
// A .cu file includes this beside launch.h; inline PTX is written nowhere else.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/launch.h"

namespace vgkernels {
namespace prim {

// Starts the copy of 16 bytes from global to shared memory; from `bytes` on (0 to 16) zeros are written instead.
// Both addresses are multiples of 16. The copy is seen after cp_async_wait, by other threads after a barrier as well.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, unsigned bytes = 16) {
#if defined(__CUDACC__)
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  emu::copy_async(shared, global, 16, bytes);
#endif
}

// The same for 4 bytes, of which all are copied or, where `bytes` is 0, none. Addresses are multiples of 4.
__device__ __forceinline__ void cp_async4(void* shared, const void* global, unsigned bytes = 4) {
#if defined(__CUDACC__)
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  emu::copy_async(shared, global, 4, bytes);
#endif
}

// Closes the group of the copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::commit_copies();
#endif
}

// Waits until at most the latest `kPending` groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emu::wait_copies(kPending);
#endif
}

// d += a b on the tensor cores, for a whole warp: a (16, 8) and b (8, 8) of which the leading 11 bits of each float
// count (tf32), d (16, 8) in float, rounded once or twice in a way of the device's own. Of lane 4 g + t:
// a = {(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)}, b = {(t, g), (t + 4, g)}, d = {(g, 2t), (g, 2t + 1), (g + 8,
// 2t), (g + 8, 2t + 1)}.
#if defined(__CUDACC__)
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                          emu::Site at = emu::Site::here()) {
  emu::multiply_tf32(d, a, b, at);
}
#endif

// *p += v in global memory, in no order, without the old value. Float reductions flush subnormals on the device.
__device__ __forceinline__ void red_add(float* p, float v) { (void)atomicAdd(p, v); }
__device__ __forceinline__ void red_add(double* p, double v) { (void)atomicAdd(p, v); }

// The same for p[0..3]; p is a multiple of 16 bytes. Each component is atomic, the four together are not.
__device__ __forceinline__ void red_add4(float* p, float4 v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
#else
#if !defined(__CUDACC__)
  emu::require_aligned(p, 16, "red.v4");
#endif
  red_add(p, v.x), red_add(p + 1, v.y), red_add(p + 2, v.z), red_add(p + 3, v.w);
#endif
}

// Four matrices of 8 x 8 numbers of 16 bits from shared memory, for a whole warp: lane 8 i + j brings the address of
// row j of matrix i, 16 bytes at a multiple of 16. Lane 4 g + t gets matrix[i] = {(g, 2t), (g, 2t + 1)}.
#if defined(__CUDACC__)
__device__ __forceinline__ void load_matrices(uint32_t (&matrix)[4], const void* shared_row) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(from)
               : "memory");
}
#else
inline void load_matrices(uint32_t (&matrix)[4], const void* shared_row, emu::Site at = emu::Site::here()) {
  emu::load_matrices(matrix, shared_row, at);
}
#endif

// d += a b on the tensor cores, for a whole warp: a (16, 16) and b (16, 8) of T, whose products are exact, d (16, 8) in
// float, rounded in a way of the device's own. Two numbers of T in a word, the first in its low half. Of lane 4 g + t:
// a = {(g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)}, b = {(2t.., g), (2t + 8.., g)}, and d = {(g, 2t),
// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)}, where 2t.. stands for 2t and 2t + 1.
#if defined(__CUDACC__)
#define VG_MULTIPLY_HALF(T, name)                                                                                   \
  __device__ __forceinline__ void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                      \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                                       \
        "{%0, %1, %2, %3};"                                                                                         \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                        \
  }
VG_MULTIPLY_HALF(bfloat16, "bf16")
VG_MULTIPLY_HALF(float16, "f16")
#undef VG_MULTIPLY_HALF
#else
template <class T>
void multiply_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T, emu::Site at = emu::Site::here()) {
  emu::multiply_half(d, a, b, [](uint16_t bits) { return double(widen(T{bits})); }, at);
}
#endif

// A barrier of all threads of a cooperative launch, who must all come to it: what any did before is seen by all after,
// but not through read-only loads. `counter` is 0 before the launch and counts blocks, 2^32 - 1 at most; `round` is the
// thread's own count of its barriers, 0 before the first.
#if defined(__CUDACC__)
__device__ __forceinline__ void grid_sync(unsigned* counter, unsigned* round) {
  ++*round;
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    const unsigned all = *round * (gridDim.x * gridDim.y * gridDim.z);
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter)) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(seen)
                   : "l"(__cvta_generic_to_global(counter))
                   : "memory");
    } while (seen < all);
  }
  __syncthreads();
}
#else
inline void grid_sync(unsigned* counter, unsigned* round, emu::Site at = emu::Site::here()) {
  emu::grid_barrier(counter, round, at);
}
#endif

}  // namespace prim
}  // namespace vgkernels
