// Decides nothing for users: five small kernels, each right or with one planted fault, that prove the emulator's tools.
// The faults are listed in planted_faults.h. Compiles under nvcc too, so that the kernels are CUDA and no dialect.
#include "common/device_primitives.h"
#include "planted_faults.h"

namespace vgkernels {
namespace planted {
namespace {

constexpr int kTile = 8;

// c = a b. A block is a tile of c, a thread one element of it.
__global__ void matmul_kernel(const float* a, const float* b, float* c, int rows, int columns, int inner, Fault fault) {
  VG_SHARED(float, a_tile, [kTile][kTile]);
  VG_SHARED(float, b_tile, [kTile][kTile]);
  const int x = int(threadIdx.x), y = int(threadIdx.y);
  const int row = int(blockIdx.y) * kTile + y, column = int(blockIdx.x) * kTile + x;
  float sum = 0;
  for (int k = 0; k < inner; k += kTile) {
    a_tile[y][x] = row < rows && k + x < inner ? a[row * inner + k + x] : 0.0f;
    b_tile[y][x] = k + y < inner && column < columns ? b[(k + y) * columns + column] : 0.0f;
    if (fault != Fault::no_barrier_before_read) __syncthreads();  // the tiles are whole
    for (int i = 0; i < kTile; ++i) sum += a_tile[y][i] * b_tile[i][x];
    if (fault != Fault::no_barrier_before_write) __syncthreads();  // the tiles are free again
  }
  if ((row < rows || fault == Fault::no_bound_check) && column < columns) c[row * columns + column] = sum;
}

// Adds over the lanes of a full warp; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
  return value;
}

// sums[row] = sum of x[row, :]. A block is a row; the warps' sums meet in 32 words of dynamic shared memory.
__global__ void row_sums_kernel(const float* x, float* sums, int columns, Fault fault) {
  VG_DYNAMIC_SHARED(float, partial);
  const int thread = int(threadIdx.x), threads = int(blockDim.x), lane = thread % 32, warp = thread / 32;
  float sum = 0;
  for (int i = thread; i < columns; i += threads) sum += x[int(blockIdx.x) * columns + i];
  sum = warp_sum(sum);
  if (lane == 0) partial[warp] = sum;
  if (fault == Fault::shared_overflow && lane == 0) partial[32 + warp] = 0;
  __syncthreads();  // all warps have left their sums
  if (fault == Fault::barrier_in_branch && warp == 0) __syncthreads();
  if (warp == 0 && !(fault == Fault::half_warp_shuffle && lane >= 16)) {
    sum = lane < threads / 32 || fault == Fault::uninitialised_shared_read ? partial[lane] : 0.0f;
    sum = warp_sum(sum);
    if (lane == 0) sums[blockIdx.x] = sum;
  }
  if (fault == Fault::barrier_in_branch) __syncthreads();
}

// out[index[i]] += values[i]; blocks_done = the number of blocks. A thread is one value.
__global__ void scatter_add_kernel(const float* values, const int* index, float* out, int* blocks_done, int n,
                                   Fault fault) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    if (fault == Fault::no_atomic)
      out[index[i]] += values[i];
    else
      prim::red_add(out + index[i], values[i]);
  }
  __syncthreads();  // orders the block's threads, and only them
  if (threadIdx.x == 0) {
    if (fault == Fault::blocks_share_a_word)
      ++*blocks_done;
    else
      atomicAdd(blocks_done, 1);
  }
}

constexpr int kThreads = 64, kChunk = 4 * kThreads;

// out[t] = sum over tiles of four x[tile, .] that other threads fetched, and of the warp's sum of those.
// One block; two buffers, filled one tile ahead.
__global__ void smooth_kernel(const float* x, float* out, int tiles, Fault fault) {
  VG_SHARED(float4, buffer, [2][kThreads]);
  const int thread = int(threadIdx.x);
  const auto fill = [&](int tile) {
    if (tile < tiles) prim::cp_async16(&buffer[tile % 2][thread], x + tile * kChunk + 4 * thread);
    prim::cp_async_commit();  // an empty group too, so that the count is the same in every round
  };
  float sum = 0;
  fill(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fill(tile + 1);
    if (fault == Fault::wait_one_stage_short)
      prim::cp_async_wait<2>();
    else
      prim::cp_async_wait<1>();
    __syncthreads();  // this tile is there for all threads
    const float4 far = buffer[tile % 2][kThreads - 1 - thread], next = buffer[tile % 2][(thread + 1) % kThreads];
    const float mine = far.x + far.w - next.y + next.z * float(tile + 1);
    sum += mine + warp_sum(mine);  // keeps a warp in step: only a schedule that favours one warp shows the last fault
    if (fault != Fault::no_barrier_after_last_read) __syncthreads();  // the next round refills this buffer
  }
  out[thread] = sum;
}

__global__ void empty_kernel() {}

// One warp.
__global__ void misuse_kernel(Misuse misuse) {
  const int lane = int(threadIdx.x);
  const unsigned all = 0xFFFFFFFFu;
  if (misuse == Misuse::outside_own_mask) (void)__ballot_sync(0xFFFFu, lane > 3);
  if (misuse == Misuse::disagreeing_masks) __syncwarp(lane < 16 ? all : all << 15);
  if (misuse == Misuse::lane_has_returned && lane < 31) (void)__shfl_sync(all, lane, 0);
  if (misuse == Misuse::two_primitives) {
    if (lane < 16)
      (void)__ballot_sync(all, lane > 3);
    else
      (void)__shfl_sync(all, lane, 0);
  }
  if (misuse == Misuse::warp_and_block) {
    if (lane < 31)
      __syncwarp();
    else
      __syncthreads();  // waits for the lanes that wait for it
  }
}

// One block of 40 threads, so one full warp and one of 8 lanes; 12 results a thread.
__global__ void warp_exchanges_kernel(const int* x, int* out) {
  VG_SHARED(int, total, );
  const int thread = int(threadIdx.x), lane = thread % 32, mine = x[thread];
  const unsigned all = thread < 32 ? 0xFFFFFFFFu : 0xFFu, half = lane < 4 ? 0xFu : all & ~0xFu;
  int* result = out + 12 * thread;
  if (thread == 0) total = 0;
  result[0] = __shfl_sync(all, mine, 3);
  result[1] = __shfl_sync(all, mine, lane + 1, 8);  // the source is taken modulo the width
  result[2] = __shfl_up_sync(all, mine, 2, 8);
  result[3] = __shfl_down_sync(all, mine, 3, 8);
  result[4] = __shfl_xor_sync(all, mine, 5);
  result[5] = int(__ballot_sync(all, mine % 3 == 0));
  result[6] = int(__ballot_sync(half, mine % 2 == 0));  // two sets of lanes, one after the other
  result[7] = 2 * __any_sync(half, mine == x[thread / 32 * 32]) + __all_sync(half, mine >= 0);
  result[8] = __syncthreads_count(mine % 2);
  result[9] = 4 * __syncthreads_or(mine == x[39]) + __syncthreads_and(mine >= 0);
  atomicMax(&total, mine);
  __syncthreads();  // total is the maximum
  result[10] = total;
  result[11] = __popc(unsigned(mine)) + 100 * __ffs(mine) + 10000 * __clz(mine);
}

}  // namespace

void matmul(const float* a, const float* b, float* c, int rows, int columns, int inner, Fault fault) {
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  VG_LAUNCH(matmul_kernel, grid, dim3(kTile, kTile), 0, nullptr, a, b, c, rows, columns, inner, fault);
}

void row_sums(const float* x, float* sums, int rows, int columns, Fault fault) {
  VG_LAUNCH(row_sums_kernel, rows, 96, 32 * sizeof(float), nullptr, x, sums, columns, fault);
}

void scatter_add(const float* values, const int* index, float* out, int* blocks_done, int n, Fault fault) {
  VG_LAUNCH(scatter_add_kernel, (n + 63) / 64, 64, 0, nullptr, values, index, out, blocks_done, n, fault);
}

void smooth(const float* x, float* out, int tiles, Fault fault) {
  VG_LAUNCH(smooth_kernel, 1, kThreads, 0, nullptr, x, out, tiles, fault);
}

void empty_launch(unsigned (&grid)[3], unsigned (&block)[3], unsigned shared_bytes) {
  VG_LAUNCH(empty_kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes, nullptr);
}

bool raise_shared_limit(int bytes) {
  return cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess;
}

void misuse(Misuse misuse) { VG_LAUNCH(misuse_kernel, 1, 32, 0, nullptr, misuse); }

void warp_exchanges(const int* x, int* out) { VG_LAUNCH(warp_exchanges_kernel, 1, 40, 0, nullptr, x, out); }

}  // namespace planted
}  // namespace vgkernels
