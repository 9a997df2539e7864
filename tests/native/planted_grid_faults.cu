// Decides nothing for users: one small cooperative kernel, right or with one planted fault, that proves the emulator's
// grid barrier. The faults are listed in planted_grid_faults.h. Compiles under nvcc too.
#include "planted_grid_faults.h"

#include "common/device_primitives.h"

namespace vgkernels {
namespace planted {
namespace {

constexpr int kThreads = 64;

__global__ void relax_kernel(float* x, unsigned* counter, int rounds, GridFault fault) {
  VG_SHARED(float, mine, [kThreads]);
  const int thread = int(threadIdx.x), block = int(blockIdx.x), n = kThreads * int(gridDim.x);
  const int i = block * kThreads + thread;
  const bool odd_one = block == 1;
  unsigned barriers = 0;
  if (fault == GridFault::block_returns && odd_one) return;
  for (int round = 0; round < rounds; ++round) {
    const float* from = x + round % 2 * n;
    float* to = x + (round + 1) % 2 * n;
    mine[thread] = from[i];
    if (fault != GridFault::no_block_barrier) __syncthreads();  // the block's numbers are there
    to[i] = mine[thread] + mine[(thread + 1) % kThreads] + from[(i + kThreads) % n];
    if (fault == GridFault::thread_returns && odd_one && thread == 5) return;
    if (fault == GridFault::half_a_block && odd_one && thread < 32) __syncthreads();
    if (fault == GridFault::block_skips_one && odd_one && round == 0) continue;
    if (fault == GridFault::no_grid_barrier)
      __syncthreads();
    else if (fault == GridFault::two_lines && odd_one)
      prim::grid_sync(counter, &barriers);
    else
      prim::grid_sync(counter + (fault == GridFault::two_counters ? block : 0), &barriers);
  }
}

}  // namespace

void relax(float* x, unsigned* counter, int blocks, int rounds, GridFault fault) {
  if (fault == GridFault::counter_in_use) *counter = 1;
  if (fault == GridFault::not_cooperative)
    VG_LAUNCH(relax_kernel, blocks, kThreads, 0, nullptr, x, counter, rounds, fault);
  else
    (void)VG_LAUNCH_COOPERATIVE(relax_kernel, blocks, kThreads, 0, nullptr, x, counter, rounds, fault);
}

}  // namespace planted
}  // namespace vgkernels
