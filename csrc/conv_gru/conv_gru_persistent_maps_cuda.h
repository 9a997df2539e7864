// A block of the persistent kernels: its maps, its weights, and the product of both. Decides what lies where in shared
// memory and which thread holds which sum; what becomes of the sums is decided in the two kernels.
//
//   shared memory:  weights [C / 32 chunks][taps][r, z, n][32 lanes][8]      stages [2][pixels][32 channels]
//
// The order of the terms of a sum is free where both operands have the same: lane 4 g + q multiplies channels 8 q to
// 8 q + 7 of a chunk, so that it reads a row's, and a column's, with one load of 16 bytes, and no two lanes one bank.
// A chunk of a pixel's channels is copied once and read for all taps; a tap outside of the map is a register of zeros.
#pragma once

#include "common/device_primitives.h"
#include "conv_gru/conv_gru_persistent_cuda.h"

namespace vgkernels {
namespace conv_gru_persistent {

constexpr int kBlockChannels = 8, kChunk = 32, kTile = 16, kMostWarps = 8, kMostTiles = 4;
constexpr int kLane = 8;  // numbers of 16 bits that a lane loads at once

VG_HOST_DEVICE int64_t slice_numbers(int64_t channels, int64_t taps) { return 3 * kBlockChannels * taps * channels; }

// Two neighbouring channels.
template <class T>
__device__ __forceinline__ float2 load_pair(const T* from) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(from);
  return make_float2(widen(T{uint16_t(word)}), widen(T{uint16_t(word >> 16)}));
}
template <class T>
__device__ __forceinline__ void store_pair(T* to, float first, float second) {
  *reinterpret_cast<uint32_t*>(to) = narrow<T>(first).bits | uint32_t(narrow<T>(second).bits) << 16;
}
__device__ __forceinline__ float2 load_pair(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ void store_pair(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}

// Of lane 4 g + q, sums[tile][2 i + j] is that of pixel `row(tile, i)`, channel `channel` + j.
template <class T, int kTiles>
struct Maps {
  int pixels;          // of this block's clips, 0 where none is left
  int64_t first;       // of them, among all pixels of a step
  int64_t all_pixels;  // of a step
  int channels, channel, height, width, edge, lane, warp, warps;
  T *weights, *stages;
  int stage_numbers;
  int place[kTiles][2];    // row in the map << 16 | column; beyond the pixels a row that is in no map
  const int64_t* lengths;  // of this block's clips; or null

  // The weights are on their way when this is done: `add_products` waits for them.
  __device__ __forceinline__ Maps(const ConvGruShape& shape, int clips, const int64_t* all_lengths, const T* packed,
                                  T* shared) {
    const int clip_pixels = int(shape.height * shape.width), taps = int(shape.kernel * shape.kernel);
    const int64_t first_clip = int64_t(blockIdx.y) * clips;
    const int64_t left = shape.batch - first_clip;
    pixels = left <= 0 ? 0 : int(left < clips ? left : clips) * clip_pixels;
    first = first_clip * clip_pixels;
    all_pixels = shape.batch * clip_pixels;
    channels = int(shape.channels), height = int(shape.height), width = int(shape.width), edge = int(shape.kernel);
    lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
    channel = int(blockIdx.x) * kBlockChannels + lane % 4 * 2;
    const int64_t slice = slice_numbers(channels, taps);
    weights = shared;
    stages = shared + slice;
    stage_numbers = clips * clip_pixels * kChunk;
    lengths = all_lengths ? all_lengths + first_clip : nullptr;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int pixel = row(tile, i) % clip_pixels;
        const bool mine = row(tile, i) < pixels;
        place[tile][i] = mine ? pixel / width << 16 | pixel % width : 1 << 30;
      }
    const T* from = packed + blockIdx.x * slice;
    for (int i = int(threadIdx.x) * kLane; i < slice; i += int(blockDim.x) * kLane)
      prim::cp_async16(weights + i, from + i);
    prim::cp_async_commit();
  }

  __device__ __forceinline__ int row(int tile, int i) const { return (tile * warps + warp) * kTile + lane / 4 + 8 * i; }

  // Whether the clip of this pixel has this step.
  __device__ __forceinline__ bool has_step(int tile, int i, int64_t step) const {
    return !lengths || step < lengths[row(tile, i) / (height * width)];
  }

  // Where this block's pixels begin in an array of all pixels with `columns` numbers each; by 32 bits from there on.
  template <class Number>
  __device__ __forceinline__ Number* own(Number* array, int columns) const {
    return array + first * columns;
  }

  // f(tile, i, pixel among the block's) for the pixels of this thread, of which it holds two channels.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (row(tile, i) < pixels) f(tile, i, row(tile, i));
  }

  // Chunk `chunk` of a's channels; a's pixels are `pitch` numbers apart. Past the last chunk an empty group.
  __device__ __forceinline__ void fetch(const T* a, int64_t pitch, int chunk) const {
    if (chunk * kChunk < channels)
      for (int item = int(threadIdx.x); item < pixels * (kChunk / kLane); item += int(blockDim.x)) {
        const int pixel = item / (kChunk / kLane), at = item % (kChunk / kLane) * kLane;
        prim::cp_async16(stages + chunk % 2 * stage_numbers + pixel * kChunk + at,
                         a + (first + pixel) * pitch + chunk * kChunk + at);
      }
    prim::cp_async_commit();
  }

  __device__ __forceinline__ uint4 operand(const T* stage, int tile, int i, int down, int right) const {
    const int y = (place[tile][i] >> 16) + down, x = (place[tile][i] & 0xFFFF) + right;
    if (unsigned(y) >= unsigned(height) || unsigned(x) >= unsigned(width)) return make_uint4(0, 0, 0, 0);
    const int pixel = row(tile, i) + down * width + right;
    return *reinterpret_cast<const uint4*>(stage + pixel * kChunk + lane % 4 * kLane);
  }

  // sums[gate] += the convolution of a (all pixels, C) with the weights of gate first_gate + gate. For all threads of a
  // block at once; they read `a` through L2, where other blocks have written it before the grid's last barrier.
  template <int kGates>
  __device__ __forceinline__ void add_products(const T* a, int64_t pitch, int first_gate,
                                               float (&sums)[kGates][kTiles][4]) const {
    fetch(a, pitch, 0);
    const uint4* weight = reinterpret_cast<const uint4*>(weights) + first_gate * 32 + lane;
    for (int chunk = 0; chunk * kChunk < channels; chunk++) {
      fetch(a, pitch, chunk + 1);
      prim::cp_async_wait<1>();
      __syncthreads();  // this chunk is there, and so are the weights
      const T* stage = stages + chunk % 2 * stage_numbers;
      for (int down = -(edge / 2); down <= edge / 2; down++)
        for (int right = -(edge / 2); right <= edge / 2; right++, weight += 3 * 32) {
          uint4 columns[kGates];
#pragma unroll
          for (int gate = 0; gate < kGates; gate++) columns[gate] = weight[gate * 32];
#pragma unroll
          for (int tile = 0; tile < kTiles; tile++) {
            if ((tile * warps + warp) * kTile >= pixels) break;  // the whole warp
            const uint4 low = operand(stage, tile, 0, down, right), high = operand(stage, tile, 1, down, right);
#pragma unroll
            for (int gate = 0; gate < kGates; gate++) {
              prim::multiply_half(sums[gate][tile], {low.x, high.x, low.y, high.y}, {columns[gate].x, columns[gate].y},
                                  T());
              prim::multiply_half(sums[gate][tile], {low.z, high.z, low.w, high.w}, {columns[gate].z, columns[gate].w},
                                  T());
            }
          }
        }
      __syncthreads();  // the chunk has been read: the next round refills it
    }
  }
};

// A call's workspace.
template <class T>
struct Workspace {
  unsigned* counter;  // of the grid's barriers
  T* weights;         // of each block's slice as above
  T *start, *rh;      // (B, S, C): h0 rounded, r . h
  int64_t bytes;
  Workspace(const ConvGruShape& shape, void* memory);
};

// Packs weight_hh for the forward, or for the backward: transposed, its taps in reverse; and zeroes the counter.
template <class T>
const char* prepare(const ConvGruShape& shape, const void* weight_hh, bool backward, const Workspace<T>& workspace,
                    void* stream);

// Launches the kernel with the plan's number of tiles a warp; `kernel_of` gives it for a constant.
template <class T, class Call, class KernelOf>
const char* run(const Call& call, const ConvGruPersistentPlan& plan, const Workspace<T>& workspace, void* stream,
                const KernelOf& kernel_of) {
  const auto launch = [&](auto tiles) -> const char* {
    const auto kernel = kernel_of(tiles);
    const int shared = int(plan.shared_bytes);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) != cudaSuccess)
      return cudaGetErrorString(cudaGetLastError());
    const dim3 grid(unsigned(call.shape.channels / kBlockChannels), unsigned(plan.clip_blocks));
    const cudaError_t error =
        VG_LAUNCH_COOPERATIVE(kernel, grid, 32 * plan.warps, shared, stream, call, plan.clips, workspace);
    if (error == cudaSuccess) return nullptr;
    (void)cudaGetLastError();  // told here, not at the next launch
    return cudaGetErrorString(error);
  };
  if (plan.tiles == 1) return launch(std::integral_constant<int, 1>());
  return plan.tiles == 2 ? launch(std::integral_constant<int, 2>()) : launch(std::integral_constant<int, 4>());
}

// f(T{}) with the 16-bit type.
template <class F>
const char* with_half_type(DType dtype, const F& f) {
  if (dtype == DType::bfloat16) return f(bfloat16());
  return dtype == DType::float16 ? f(float16()) : "conv_gru: the persistent kernels are for 16-bit dtypes";
}

}  // namespace conv_gru_persistent
}  // namespace vgkernels
