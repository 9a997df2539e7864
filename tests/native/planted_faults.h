// Decides which faults are planted in planted_faults.cu, one at a time; the emulator must find each of them.
// Which tool is to find which fault is said in tests/test_emulator.py.
#pragma once

namespace vgkernels {
namespace planted {

enum class Fault : int {
  none,
  no_barrier_before_read,      // matmul: a tile is read before all of it is written
  no_barrier_before_write,     // matmul: a tile is overwritten before all have read it
  no_bound_check,              // matmul: rows past the last one are written
  uninitialised_shared_read,   // row_sums: partial sums that no warp has written
  shared_overflow,             // row_sums: one element past the dynamic shared memory
  barrier_in_branch,           // row_sums: only the first warp comes to a barrier
  half_warp_shuffle,           // row_sums: half a warp names all of it
  no_atomic,                   // scatter_add: += by many threads
  blocks_share_a_word,         // scatter_add: two blocks count in one word, with barriers but no atomic
  wait_one_stage_short,        // smooth: a cp.async buffer is read before its copy has come
  no_barrier_after_last_read,  // smooth: a cp.async buffer is refilled while others read it
};

// Each runs its kernel with one fault or none; a fault of another kernel changes nothing.
void matmul(const float* a, const float* b, float* c, int rows, int columns, int inner, Fault fault);
void row_sums(const float* x, float* sums, int rows, int columns, Fault fault);
void scatter_add(const float* values, const int* index, float* out, int* blocks_done, int n, Fault fault);
void smooth(const float* x, float* out, int tiles, Fault fault);
void empty_launch(unsigned (&grid)[3], unsigned (&block)[3], unsigned shared_bytes);
bool raise_shared_limit(int bytes);  // of empty_launch

// Ways of one warp to be out of step; each must be refused.
enum class Misuse : int { outside_own_mask, disagreeing_masks, lane_has_returned, two_primitives, warp_and_block };
void misuse(Misuse misuse);

// Every name that one thread exchanges with its neighbours: checked against a plain reading of the CUDA manual.
void warp_exchanges(const int* x, int* out);

}  // namespace planted
}  // namespace vgkernels
