// Products of float matrices on the tensor cores, as exact as by fused multiply-adds: each operand is split into two
// numbers of 11 bits, three products of those are summed (3xTF32), and after 32 terms the sum leaves the tensor core,
// whose adder does not round to nearest, for one that does. Decides how operands come to shared memory.
#include "common/device_primitives.h"
#include "sliced_wasserstein/sliced_wasserstein_product_cuda.h"

namespace vgkernels {
namespace swd_cuda {
namespace {

constexpr int kThreads = 128, kChunk = 32;                   // a warp: 32 x 32 of the tile, as 2 x 4 of 16 x 8
constexpr int kAlongK = kChunk + 4, kAlongRows = kTile + 8;  // distances in shared memory: no two lanes in one bank
constexpr int kStage = kTile * kAlongK;                      // floats of one operand's chunk, of either layout
static_assert(kStage == kChunk * kAlongRows, "both layouts take as much");

// One operand's tile: `rows` rows from `top` on. kRowsTogether: neighbours in memory are rows, else they are k.
// kWords: floats of one copy, 4 where everything is aligned to 16 bytes, else 1.
template <bool kRowsTogether, int kWords>
struct Tile {
  const float* data;   // of the entry
  int64_t distance;    // of the other direction
  int top, rows, end;  // of k

  // The chunk of k from `from` on; zeros beyond the matrix.
  __device__ __forceinline__ void fetch(float* stage, int from) const {
#pragma unroll 4
    for (int item = int(threadIdx.x); item < kTile * kChunk / kWords; item += kThreads) {
      constexpr int kAcross = (kRowsTogether ? kTile : kChunk) / kWords;
      const int across = item % kAcross * kWords, down = item / kAcross;
      const int x = across + (kRowsTogether ? top : from), y = down + (kRowsTogether ? from : top);
      const int left = y < (kRowsTogether ? end : rows) ? (kRowsTogether ? rows : end) - x : 0;
      const unsigned bytes = left <= 0 ? 0 : left >= kWords ? 4 * kWords : 4 * left;
      const float* from_here = bytes ? data + y * distance + x : data;
      float* to = stage + down * (kRowsTogether ? kAlongRows : kAlongK) + across;
      if (kWords == 4)
        prim::cp_async16(to, from_here, bytes);
      else
        prim::cp_async4(to, from_here, bytes);
    }
  }
  static __device__ __forceinline__ float at(const float* stage, int row, int k) {
    return kRowsTogether ? stage[k * kAlongRows + row] : stage[row * kAlongK + k];
  }
};

// value = high + low + at most 2^-23 of it. A NaN stays one in low, which therefore isn't rounded but cut: the device's
// own NaN, 0x7FFFFFFF, plus anything is a number. So are floats above 2^128 (1 - 2^-12) no longer finite.
__device__ __forceinline__ void split(float value, uint32_t* high, uint32_t* low) {
  *high = (bit_cast<uint32_t>(value) + 0x1000u) & 0xFFFFE000u;
  *low = bit_cast<uint32_t>(value - bit_cast<float>(*high)) & 0xFFFFE000u;
}

template <bool kRows, int kWords>
__device__ __forceinline__ Tile<kRows, kWords> tile_of(const Operand<float>& operand, const Work<float>& work, int top,
                                                       int rows) {
  return {operand.of(work.entry), kRows ? operand.k : operand.row, top, rows, work.end};
}

// Block: a piece of the sums of one tile.
template <bool kARows, bool kBRows, int kWords>
__global__ void __launch_bounds__(kThreads, 2) multiply_tf32_tiles(Products<float> all) {
  VG_DYNAMIC_SHARED(float, stages);  // (2 chunks, 2 operands, kStage)
  const Work<float> work = work_of(all, blockIdx.x);
  const Product<float>& p = work.product;
  const auto a = tile_of<kARows, kWords>(p.a, work, work.top, p.rows);
  const auto b = tile_of<kBRows, kWords>(p.b, work, work.left, p.columns);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
  float total[2][4][4] = {}, lost[2][4][4] = {};

  const auto fetch = [&](int from) {
    float* stage = stages + from / kChunk % 2 * (2 * kStage);
    if (from < work.end) a.fetch(stage, from), b.fetch(stage + kStage, from);
    prim::cp_async_commit();  // an empty group too, so that the count is the same for every chunk
  };
  fetch(work.begin);
  for (int from = work.begin; from < work.end; from += kChunk) {
    fetch(from + kChunk);
    prim::cp_async_wait<1>();
    __syncthreads();  // this chunk is there
    const float *a_stage = stages + from / kChunk % 2 * (2 * kStage), *b_stage = a_stage + kStage;
    float sum[2][4][4] = {};
#pragma unroll 2
    for (int k = 0; k < kChunk; k += 8) {
      uint32_t a_high[2][4], a_low[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int part = 0; part < 4; part++) {
          const int row = warp_row + 16 * i + g + part % 2 * 8;
          split(a.at(a_stage, row, k + t + part / 2 * 4), &a_high[i][part], &a_low[i][part]);
        }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t high[2], low[2];
#pragma unroll
        for (int part = 0; part < 2; part++)
          split(b.at(b_stage, warp_column + 8 * j + g, k + t + part * 4), &high[part], &low[part]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          prim::multiply_tf32(sum[i][j], a_low[i], high);
          prim::multiply_tf32(sum[i][j], a_high[i], low);
          prim::multiply_tf32(sum[i][j], a_high[i], high);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int part = 0; part < 4; part++) add_exactly(&total[i][j][part], &lost[i][j][part], sum[i][j][part]);
    __syncthreads();  // the chunk has been read: the next round refills it
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int part = 0; part < 4; part++)
        work.put(warp_row + 16 * i + g + part / 2 * 8, warp_column + 8 * j + 2 * t + part % 2,
                 total[i][j][part] + lost[i][j][part]);
}

// Every 16 bytes that are copied begin at a multiple of 16.
bool aligned(const Operand<float>& operand) {
  const int64_t distance = operand.k == 1 ? operand.row : operand.k;
  return distance % 4 == 0 && operand.entry % 4 == 0 && reinterpret_cast<uintptr_t>(operand.data) % 16 == 0;
}
bool aligned(const Product<float>& product) { return aligned(product.a) && aligned(product.b); }

template <int kWords>
void launch(const Products<float>& products, void* stream) {
  const dim3 grid{unsigned(products.blocks)}, threads(kThreads);
  constexpr size_t kShared = 4 * kStage * sizeof(float);
  if (products.first.a.k != 1)  // gradients to samples: rows of directions, transposed, times directions
    VG_LAUNCH((multiply_tf32_tiles<true, true, kWords>), grid, threads, kShared, stream, products);
  else if (products.first.b.k != 1)  // gradients to directions
    VG_LAUNCH((multiply_tf32_tiles<false, true, kWords>), grid, threads, kShared, stream, products);
  else
    VG_LAUNCH((multiply_tf32_tiles<false, false, kWords>), grid, threads, kShared, stream, products);
}

}  // namespace

void multiply_on_tensor_cores(const Products<float>& products, void* stream) {
  if (aligned(products.first) && aligned(products.second))
    launch<4>(products, stream);
  else
    launch<1>(products, stream);
}

}  // namespace swd_cuda
}  // namespace vgkernels
