// The arithmetic of the gates at some neighbouring channels of a pixel, forward and backward, given the sums of their
// convolutions; both the gate kernels and the implicit product end in it. Decides how channels-innermost arrays are
// read and written: by vectors of at most 16 bytes.
#pragma once

#include <cmath>
#include <initializer_list>

#include "common/dtype.h"
#include "common/launch.h"
#include "conv_gru/conv_gru_cuda.h"

namespace vgkernels {
namespace conv_gru_gates {

// Where a thread is.
struct Place {
  int64_t pixel;  // of all clips
  int channel;
  int channels, kept;  // C, Cp
  int64_t clip_pixels;

  __device__ __forceinline__ int64_t of(int maps, int map = 0) const {
    return pixel * (int64_t(maps) * channels) + map * channels + channel;
  }
  __device__ __forceinline__ int64_t of_kept() const { return pixel * kept + channel; }
};

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Packet {
  T values[kCount];
};
template <class T, int kVector>
constexpr int kPacket = kVector * sizeof(T) > 16 ? 16 / sizeof(T) : kVector;

template <int kVector, class T>
__device__ __forceinline__ void load(const void* data, int64_t at, Acc<T> (&values)[kVector], T) {
  using P = Packet<T, kPacket<T, kVector>>;
  const P* from = reinterpret_cast<const P*>(static_cast<const T*>(data) + at);
#pragma unroll
  for (int i = 0; i < kVector; i += kPacket<T, kVector>) {
    const P packet = from[i / kPacket<T, kVector>];
#pragma unroll
    for (int j = 0; j < kPacket<T, kVector>; j++) values[i + j] = widen(packet.values[j]);
  }
}
template <int kVector, class T>
__device__ __forceinline__ void store(void* data, int64_t at, const Acc<T> (&values)[kVector], T) {
  using P = Packet<T, kPacket<T, kVector>>;
  P* to = reinterpret_cast<P*>(static_cast<T*>(data) + at);
#pragma unroll
  for (int i = 0; i < kVector; i += kPacket<T, kVector>) {
    P packet;
#pragma unroll
    for (int j = 0; j < kPacket<T, kVector>; j++) packet.values[j] = narrow<T>(values[i + j]);
    to[i / kPacket<T, kVector>] = packet;
  }
}

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  return 1 / (1 + std::exp(-x));
}
template <class A>
__device__ __forceinline__ A act(Activation activation, A x) {
  if (activation == Activation::tanh) return std::tanh(x);
  return x > 0 || x != x ? x : A(0);  // NaN stays NaN
}
template <class A>
__device__ __forceinline__ A slope(Activation activation, A n) {  // of act, where its value is n
  if (activation == Activation::tanh) return 1 - n * n;
  return n > 0 || n != n ? A(1) : A(0);
}

template <class Gates>
__device__ __forceinline__ bool has_step(const Gates& p, const Place& at) {
  return !p.lengths || p.step < p.lengths[at.pixel / at.clip_pixels];
}

// ---- apply: sums[g] are of the g-th map of the columns ----

template <class T, int kVector>
__device__ __forceinline__ void apply(const ConvGruResetUpdate& p, const Place& at, Acc<T> (&sums)[2][kVector]) {
  Acc<T> x_r[kVector], x_z[kVector], h[kVector];
  load(p.xg, at.of(3, 0), x_r, T{});
  load(p.xg, at.of(3, 1), x_z, T{});
  load(p.h, at.of(1), h, T{});
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    sums[0][i] = sigmoid(sums[0][i] + x_r[i]);
    sums[1][i] = sigmoid(sums[1][i] + x_z[i]);
    h[i] *= sums[0][i];
  }
  store(p.rh, at.of(1), h, T{});
  if (p.r) store(p.r, at.of_kept(), sums[0], T{});
  store(p.z, at.of_kept(), sums[1], T{});
}

template <class T, int kVector>
__device__ __forceinline__ void apply(const ConvGruCandidate& p, const Place& at, Acc<T> (&sums)[1][kVector]) {
  using A = Acc<T>;
  A x_n[kVector];
  load(p.xg, at.of(3, 2), x_n, T{});
#pragma unroll
  for (int i = 0; i < kVector; i++) sums[0][i] = act(p.activation, sums[0][i] + x_n[i]);
  if (p.n) store(p.n, at.of_kept(), sums[0], T{});
  if (!p.h) return;
  A z[kVector], h[kVector];
  load(p.h, at.of(1), h, A{});
  if (has_step(p, at)) {
    load(p.z, at.of_kept(), z, T{});
#pragma unroll
    for (int i = 0; i < kVector; i++) h[i] = z[i] * h[i] + (1 - z[i]) * sums[0][i];
    store(p.h, at.of(1), h, A{});
  }
  store(p.output, at.of(1), h, T{});
}

template <class T, int kVector>
__device__ __forceinline__ void apply(const ConvGruCandidateBackward& p, const Place& at, Acc<T> (&sums)[1][kVector]) {
  using A = Acc<T>;
  A(&g)[kVector] = sums[0];
  A grad_h[kVector], grad_output[kVector];
  load(p.grad_h, at.of(1), grad_h, A{});
#pragma unroll
  for (int i = 0; i < kVector; i++) g[i] += grad_h[i];
  if (p.z) {
    load(p.grad_output, at.of(1), grad_output, T{});
    A grad_z[kVector] = {}, grad_n[kVector] = {};
#pragma unroll
    for (int i = 0; i < kVector; i++) g[i] += grad_output[i];
    if (has_step(p, at)) {
      A h[kVector], z[kVector], n[kVector];
      load(p.h, at.of(1), h, T{});
      load(p.z, at.of_kept(), z, T{});
      load(p.n, at.of_kept(), n, T{});
#pragma unroll
      for (int i = 0; i < kVector; i++) {
        grad_z[i] = g[i] * (h[i] - n[i]) * (z[i] * (1 - z[i]));
        grad_n[i] = g[i] * (1 - z[i]) * slope(p.activation, n[i]);
        g[i] *= z[i];
      }
    }
    store(p.grad_rz, at.of(2, 1), grad_z, T{});
    store(p.grad_n, at.of(1), grad_n, T{});
  }
  store(p.grad_h, at.of(1), g, A{});
}

template <class T, int kVector>
__device__ __forceinline__ void apply(const ConvGruResetBackward& p, const Place& at, Acc<T> (&sums)[1][kVector]) {
  using A = Acc<T>;
  A h[kVector], r[kVector], grad_h[kVector];
  load(p.h, at.of(1), h, T{});
  load(p.r, at.of_kept(), r, T{});
  load(p.grad_h, at.of(1), grad_h, A{});
#pragma unroll
  for (int i = 0; i < kVector; i++) {
    grad_h[i] += sums[0][i] * r[i];
    sums[0][i] *= h[i] * (r[i] * (1 - r[i]));
  }
  store(p.grad_rz, at.of(2, 0), sums[0], T{});
  store(p.grad_h, at.of(1), grad_h, A{});
}

template <class Gates>
constexpr int kGates = 1;
template <>
constexpr int kGates<ConvGruResetUpdate> = 2;

// ---- the host's side of a launch ----

inline bool all_aligned(std::initializer_list<const void*> arrays) {  // null is
  for (const void* array : arrays)
    if (reinterpret_cast<uintptr_t>(array) % 16) return false;
  return true;
}
inline bool aligned(const ConvGruResetUpdate& p) { return all_aligned({p.xg, p.h, p.rh, p.r, p.z}); }
inline bool aligned(const ConvGruCandidate& p) { return all_aligned({p.xg, p.z, p.h, p.output, p.n}); }
inline bool aligned(const ConvGruCandidateBackward& p) {
  return all_aligned({p.grad_output, p.h, p.z, p.n, p.grad_h, p.grad_rz, p.grad_n});
}
inline bool aligned(const ConvGruResetBackward& p) { return all_aligned({p.h, p.r, p.grad_h, p.grad_rz}); }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// conv_gru_gemm_cuda.cu: the sums by tensor cores.
template <class Gates>
const char* multiply_and_apply(const ConvGruProduct& product, const Gates& gates, DType dtype, void* stream);

}  // namespace conv_gru_gates
}  // namespace vgkernels
