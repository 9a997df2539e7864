// What the CUDA files of this room share: a call's layers, their state on the device, and how a launch is divided.
// Decides who works on which tile and how the last tile of a layer is told; leaves what is computed to the kernels.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "svc_projection/svc_projection.h"
#include "svc_projection/svc_projection_sign.h"

namespace vgkernels {
namespace svc_cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTile = 32;      // of the (m, m) matrices
constexpr int kGramTile = 64;  // of partial Gram matrices, and rows of a product in apply
constexpr int kStrip = 32;     // most columns of W that a block of apply owns
constexpr int kBuffers = 5;    // (m, m) matrices a layer needs
constexpr unsigned kAllLanes = 0xffffffffu;

// Tests lower these to reach every path on small data.
struct Policy {
  int64_t split_columns = 512;              // at least so many columns of W are one sum, in a split of its own
  int64_t shared_bytes = int64_t(1) << 31;  // of a strip of W, where the device has more
  int rounds = kSvcRounds;
};
inline Policy policy;

// A layer waits in `measuring` for its certificate, in float first; then it is inside, outside, or not finite.
enum class Phase : int { measuring, inside, outside, projecting, changing, nonfinite, failed };

// One matrix; fixed during a call. Chunks of them travel as kernel parameters, so no host memory need outlive the call.
struct Layer {
  SvcMatrix matrix;
  char* buffers;                             // kBuffers x (m, m), or (m, m) and the partial Gram matrices
  double unit;                               // c^-2
  double limit;                              // log2 of the largest eigenvalue of G that counts as 1
  int first_item, first_tile, first_strip;   // where its work begins in a grid over all layers
  int splits, split_columns, strip_columns;  // of the Gram sum; of apply
  int double_sign_steps;
  bool always_double;

  VG_HOST_DEVICE int m() const { return int(matrix.rows); }
  VG_HOST_DEVICE int side(int tile) const { return (m() + tile - 1) / tile; }
  VG_HOST_DEVICE int edge() const { return m() < kGramTile ? m() : kGramTile; }  // of a partial tile, (edge, edge)
  template <class A>
  VG_HOST_DEVICE A* buffer(int index) const {                          // (m, m), symmetric
    return reinterpret_cast<A*>(buffers) + size_t(index) * m() * m();  // reinterpret_cast: typed by the layer's state
  }
  template <class A>
  VG_HOST_DEVICE A* parts() const {  // (splits, tiles of G, edge, edge), until G is summed
    return buffer<A>(1);
  }
};

// What the device has decided about a layer.
struct Control {
  Phase phase;
  bool in_double;
  int rounds;         // projections made
  unsigned finished;  // tiles of the launch under way
  int first_sign, first_root, last_root;
  int change;           // the buffer that E is in
  double log2_scale;    // X = G^(2^k) is held times 2^(-2^k log2_scale)
  double factor;        // X is multiplied by this power of two before it is squared
  double shrink, size;  // A = G shrink - I, with norm at most `size`; both are powers of two
  double largest, above;
};

struct Problem {
  Layer* layers;       // (count)
  Control* controls;   // (count)
  double2* sums;       // (2 tiles): of squares and the diagonal, of each tile of at most two products
  int* any_nonfinite;  // of the call
  int count, items, tiles, strips;
  double reach[kSvcRootSteps];  // log2 of the largest eigenvalue of G that a row of the root takes
  bool skip_nonfinite;
};

// The layer whose work holds this block, and the block's place in it.
struct Place {
  int layer, index;
};

__device__ __forceinline__ Place place_of(const Problem& p, int Layer::* first) {
  const int block = int(blockIdx.x);
  int low = 0, high = p.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (p.layers[middle].*first <= block)
      low = middle;
    else
      high = middle;
  }
  return {low, block - p.layers[low].*first};
}

struct Tile {
  int row, column;  // row >= column: tiles on and below the diagonal, row by row
};

VG_HOST_DEVICE int tiles_of(int side) { return side * (side + 1) / 2; }

__device__ __forceinline__ Tile tile_of(int index) {
  int row = int((sqrt(8.0 * index + 1) - 1) / 2);
  while (tiles_of(row + 1) <= index) row++;
  while (tiles_of(row) > index) row--;
  return {row, index - tiles_of(row)};
}

// The sum over the block, in one order, for all threads. Between two calls there must be a barrier.
__device__ __forceinline__ double2 block_sum(double2 value) {
  VG_SHARED(double2, partial, [kWarps]);
  for (int lanes = 16; lanes; lanes /= 2) {
    value.x += __shfl_xor_sync(kAllLanes, value.x, lanes);
    value.y += __shfl_xor_sync(kAllLanes, value.y, lanes);
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();  // every warp's sum is written
  double2 total = partial[0];
  for (int warp = 1; warp < kWarps; warp++) total.x += partial[warp].x, total.y += partial[warp].y;
  return total;
}

// All `blocks` of a layer call this once a launch, with part `index` of its sums. True in the block that comes last,
// and there `total` is the sum of the parts; it alone may then change the layer's Control. A null `total`: no sums.
__device__ __forceinline__ bool is_last(const Problem& p, Place place, int index, int blocks, double2 part,
                                        double2* total) {
  VG_SHARED(int, last, [1]);
  Control& control = p.controls[place.layer];
  double2* sums = p.sums + 2 * p.layers[place.layer].first_tile;  // (2 tiles)
  part = block_sum(part);
  if (threadIdx.x == 0) {
    if (total) sums[index] = part;
    __threadfence();  // the part is seen before the count
    last[0] = atomicAdd(&control.finished, 1u) == unsigned(blocks - 1);
    __threadfence();  // parts are read after the count
  }
  __syncthreads();  // `last` is written; in the last block, what other blocks wrote is seen by all threads
  if (!last[0]) return false;
  if (threadIdx.x == 0) control.finished = 0;
  if (!total) return true;
  double2 mine = make_double2(0, 0);
  for (int i = int(threadIdx.x); i < blocks; i += kThreads) {
    const double2 other = __ldcg(sums + i);  // not from this multiprocessor's cache: another one has written it
    mine.x += other.x, mine.y += other.y;
  }
  *total = block_sum(mine);
  return true;
}

// ---- launches, by file ----

// svc_projection_weights_cuda.cu: Gram matrices in parts, of layers being measured in that arithmetic; W' = W + E W.
const char* gram_parts(const Problem& p, DType dtype, bool in_double, void* stream);
const char* apply(const Problem& p, DType dtype, size_t shared_bytes, void* stream);

// svc_projection_sign_cuda.cu: sums of the parts and their certificate; E for layers outside.
void certify(const Problem& p, bool in_double, int squarings, void* stream);
void project(const Problem& p, int sign_steps, void* stream);

inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace svc_cuda
}  // namespace vgkernels
