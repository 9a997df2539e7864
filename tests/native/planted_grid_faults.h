// Decides which faults are planted in planted_grid_faults.cu, one at a time, around the barrier of a whole grid.
// Which tool is to find which fault is said in tests/test_emulator_grid.py.
#pragma once

namespace vgkernels {
namespace planted {

enum class GridFault : int {
  none,
  no_grid_barrier,   // the block's own barrier in its place
  no_block_barrier,  // shared memory is read before all of it is written
  block_returns,     // before its first barrier
  block_skips_one,   // comes to one barrier less than the others
  thread_returns,    // one of a block
  two_lines,         // blocks wait at different calls
  half_a_block,      // the other half waits at the block's own barrier
  counter_in_use,    // not 0 before the launch
  two_counters,      // one for each block
  not_cooperative,   // the launch
};

// x (2, 64 blocks): from one half to the other, `rounds` times, each number becomes the sum of itself, its neighbour in
// the block and its counterpart in the next block. counter (blocks): zeros.
void relax(float* x, unsigned* counter, int blocks, int rounds, GridFault fault);

}  // namespace planted
}  // namespace vgkernels
