// Sorts the rows of a chunk: tiles of a row in registers by a bitonic network, then tiles merged two by two.
// Decides nothing about what is sorted: keys are integers with a total order (sliced_wasserstein_rows_cuda.h), so the
// result is one and the same whatever the tiles are.
#include "sliced_wasserstein/sliced_wasserstein_rows_cuda.h"

namespace vgkernels {
namespace swd_cuda {
namespace {

__device__ __forceinline__ uint32_t pick(bool low, uint32_t a, uint32_t b) { return low ? min(a, b) : max(a, b); }
__device__ __forceinline__ uint64_t pick(bool low, uint64_t a, uint64_t b) { return (a < b) == low ? a : b; }
__device__ __forceinline__ WideKey pick(bool low, const WideKey& a, const WideKey& b) { return (a < b) == low ? a : b; }

__device__ __forceinline__ uint32_t from_lane(uint32_t key, int mask) { return __shfl_xor_sync(kAllLanes, key, mask); }
__device__ __forceinline__ uint64_t from_lane(uint64_t key, int mask) { return __shfl_xor_sync(kAllLanes, key, mask); }
__device__ __forceinline__ WideKey from_lane(const WideKey& key, int mask) {
  return {__shfl_xor_sync(kAllLanes, key.value, mask), __shfl_xor_sync(kAllLanes, key.index, mask)};
}

template <class K>
__device__ __forceinline__ void order(K& a, K& b) {
  const K low = pick(true, a, b);
  b = pick(false, a, b);
  a = low;
}

// ---- a tile in registers: element t * E + e is key[e] of thread t. All comparators point the same way: a merge begins
// with the flip i <-> size - 1 - i, so that its halves may both ascend ----

template <int E, class K>
__device__ __forceinline__ void merge_in_thread(K (&key)[E]) {
#pragma unroll
  for (int stride = E / 2; stride; stride /= 2)
#pragma unroll
    for (int e = 0; e < E; e++)
      if (!(e & stride)) order(key[e], key[e | stride]);
}

template <int E, class K>
__device__ __forceinline__ void sort_in_thread(K (&key)[E]) {
#pragma unroll
  for (int size = 2; size <= E; size *= 2) {
#pragma unroll
    for (int e = 0; e < E; e++)
      if (!(e & size / 2)) order(key[e], key[e ^ (size - 1)]);
#pragma unroll
    for (int stride = size / 4; stride; stride /= 2)
#pragma unroll
      for (int e = 0; e < E; e++)
        if (!(e & stride)) order(key[e], key[e | stride]);
  }
}

// Compares with thread t ^ mask: key[e] with its key[e], or key[E - 1 - e] in a flip. `top`: the mask's highest bit.
template <bool kFlip, int E, class K>
__device__ __forceinline__ void meet(K (&key)[E], int mask, int top, K* tile) {
  const int t = int(threadIdx.x), threads = int(blockDim.x);
  const bool low = !(t & top);
  if (mask < 32) {
#pragma unroll
    for (int e = 0; e < E / 2; e++) {
      const int last = E - 1 - e;
      const K first_other = from_lane(key[kFlip ? last : e], mask), last_other = from_lane(key[kFlip ? e : last], mask);
      key[e] = pick(low, key[e], first_other), key[last] = pick(low, key[last], last_other);
    }
  } else {
#pragma unroll
    for (int e = 0; e < E; e++) tile[e * threads + t] = key[e];
    __syncthreads();  // all keys are there
#pragma unroll
    for (int e = 0; e < E; e++) key[e] = pick(low, key[e], tile[(kFlip ? E - 1 - e : e) * threads + (t ^ mask)]);
    __syncthreads();  // and have been read
  }
}

// Where element i lies in shared memory, so that neither runs of E elements nor neighbours meet in a bank.
__device__ __forceinline__ int skewed(int i) { return i + i / 32; }

// Block: one tile, E samples a thread, of one row. Grid: the tiles of all rows of x, then of y.
template <class T, bool kIndexed, int E>
__global__ void __launch_bounds__(512, 1) sort_tiles(Rows<T, kIndexed> rows, int tiles_x, int tiles_y) {
  using K = Key<T, kIndexed>;
  VG_DYNAMIC_SHARED(K, tile);
  const int64_t of_x = rows.count * tiles_x;
  const bool is_y = blockIdx.x >= of_x;
  const Side<T, kIndexed>& side = is_y ? rows.y : rows.x;
  const int64_t block = is_y ? blockIdx.x - of_x : blockIdx.x;
  const int tiles = is_y ? tiles_y : tiles_x, threads = int(blockDim.x), t = int(threadIdx.x);
  const int64_t row = block / tiles, first = block % tiles * threads * E;
  const int count = int(side.n - first < threads * E ? side.n - first : threads * E);
  const T* values = side.values + row * side.pitch + first;  // (count)
  K* out = side.keys + row * side.pitch + first;             // (count)
  K key[E];
#pragma unroll
  for (int e = 0; e < E; e++) {  // which key starts where does not matter: neighbours read neighbours
    const int i = e * threads + t;
    key[e] = i < count ? Keys<T, kIndexed>::make(values[i], uint32_t(first + i)) : Keys<T, kIndexed>::last();
  }
  sort_in_thread(key);
#pragma unroll 1
  for (int group = 2; group <= threads; group *= 2) {
    meet<true>(key, group - 1, group / 2, tile);
#pragma unroll 1
    for (int mask = group / 4; mask; mask /= 2) meet<false>(key, mask, mask, tile);
    merge_in_thread(key);
  }
#pragma unroll
  for (int e = 0; e < E; e++) tile[skewed(t * E + e)] = key[e];
  __syncthreads();  // the tile is sorted
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int i = e * threads + t;
    if (i < count) out[i] = tile[skewed(i)];
  }
}

// ---- merges: the output is cut into tiles, and where a tile's cut crosses both runs is searched ----

constexpr int kMergeThreads = 256;

// How many of the `taken` smallest keys of both runs are in a.
template <class K>
__device__ __forceinline__ int split(const K* a, int a_count, const K* b, int b_count, int taken) {
  int low = max(0, taken - b_count), high = min(taken, a_count);
  while (low < high) {
    const int middle = (low + high) / 2;
    if (b[taken - 1 - middle] < a[middle])
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Block: a tile of E outputs a thread, inside one pair of runs of one row. Grid: as in sort_tiles.
template <class T, bool kIndexed, int E>
__global__ void __launch_bounds__(kMergeThreads, 4)
    merge_runs(Rows<T, kIndexed> rows, int tiles_x, int tiles_y, int64_t run) {
  using K = Key<T, kIndexed>;
  VG_DYNAMIC_SHARED(K, tile);
  const int64_t of_x = rows.count * tiles_x;
  const bool is_y = blockIdx.x >= of_x;
  const Side<T, kIndexed>& side = is_y ? rows.y : rows.x;
  const int64_t block = is_y ? blockIdx.x - of_x : blockIdx.x;
  const int tiles = is_y ? tiles_y : tiles_x, threads = int(blockDim.x), t = int(threadIdx.x);
  const int64_t row = block / tiles, first = block % tiles * threads * E, pair = first / (2 * run) * (2 * run);
  const K* a = side.keys + row * side.pitch + pair;  // (a_count), then b: (b_count)
  K* out = side.room + row * side.pitch + first;     // (count)
  const int a_count = int(min(run, side.n - pair)), b_count = int(min(run, side.n - pair - a_count));
  const K* b = a + a_count;
  const int before = int(first - pair), count = min(threads * E, a_count + b_count - before);
  const int a_first = split(a, a_count, b, b_count, before);
  const int a_here = split(a, a_count, b, b_count, before + count) - a_first, b_here = count - a_here;
  a += a_first, b += before - a_first;
  for (int i = t; i < count; i += threads) tile[i] = i < a_here ? a[i] : b[i - a_here];
  __syncthreads();  // both pieces are there
  const K *mine_a = tile, *mine_b = tile + a_here;
  const int start = min(t * E, count);
  int i = split(mine_a, a_here, mine_b, b_here, start), j = start - i;
  K key[E];
#pragma unroll
  for (int e = 0; e < E; e++) {
    const bool from_a = j >= b_here || (i < a_here && !(mine_b[j] < mine_a[i]));
    const int at = from_a ? i++ : a_here + j++;
    key[e] = start + e < count ? tile[at] : Keys<T, kIndexed>::last();
  }
  __syncthreads();  // the pieces have been read
#pragma unroll
  for (int e = 0; e < E; e++) tile[skewed(t * E + e)] = key[e];
  __syncthreads();  // the tile is merged
#pragma unroll
  for (int e = 0; e < E; e++) {
    const int at = e * threads + t;
    if (at < count) out[at] = tile[skewed(at)];
  }
}

int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

template <int E, class T, bool kIndexed>
const char* sort_by(int64_t threads, const Rows<T, kIndexed>& rows, void* stream) {
  const int64_t tile = threads * E, tiles_x = divide_up(rows.x.n, tile), tiles_y = divide_up(rows.y.n, tile);
  const int64_t blocks = rows.count * (tiles_x + tiles_y);
  if (too_many(blocks)) return kTooManyBlocks;
  VG_LAUNCH((sort_tiles<T, kIndexed, E>), dim3(unsigned(blocks)), dim3(unsigned(threads)),
            size_t(tile + tile / 32) * sizeof(Key<T, kIndexed>), stream, rows, int(tiles_x), int(tiles_y));
  return launch_error();
}

}  // namespace

template <class T, bool kIndexed>
const char* sort_rows(Rows<T, kIndexed>* rows, void* stream) {
  constexpr int kMost = 64 / sizeof(Key<T, kIndexed>);  // 16 words of keys a thread
  constexpr int kMerged = kMost < 8 ? kMost : 8;
  constexpr int64_t kSmall = 256;  // samples of a row that 4 keys a thread sort with less latency; not measured
  const int64_t most = std::max(rows->x.n, rows->y.n);
  int64_t run = sorted_by_a_block<T, kIndexed>();
  const auto threads = [&](int keys) {
    return std::min<int64_t>(policy.sort_threads, std::max<int64_t>(32, power_of_two_from(most) / keys));
  };
  const char* error = most <= std::min(kSmall, run / kMost * 4) ? sort_by<4>(threads(4), *rows, stream)
                                                                : sort_by<kMost>(threads(kMost), *rows, stream);
  for (; run < most && !error; run *= 2) {
    const int64_t merge_threads = std::min<int64_t>(kMergeThreads, 2 * run / kMerged), tile = merge_threads * kMerged;
    const int64_t tiles_x = divide_up(rows->x.n, tile), tiles_y = divide_up(rows->y.n, tile);
    const int64_t blocks = rows->count * (tiles_x + tiles_y);
    if (too_many(blocks)) return kTooManyBlocks;
    VG_LAUNCH((merge_runs<T, kIndexed, kMerged>), dim3(unsigned(blocks)), dim3(unsigned(merge_threads)),
              size_t(tile + tile / 32) * sizeof(Key<T, kIndexed>), stream, *rows, int(tiles_x), int(tiles_y), run);
    error = launch_error();
    std::swap(rows->x.keys, rows->x.room), std::swap(rows->y.keys, rows->y.room);
  }
  return error;
}

template const char* sort_rows<float, false>(Rows<float, false>*, void*);
template const char* sort_rows<float, true>(Rows<float, true>*, void*);
template const char* sort_rows<double, false>(Rows<double, false>*, void*);
template const char* sort_rows<double, true>(Rows<double, true>*, void*);

}  // namespace swd_cuda
}  // namespace vgkernels
