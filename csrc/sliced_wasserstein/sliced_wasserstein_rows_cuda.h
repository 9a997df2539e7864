// What the CUDA files of this room share: rows of projected samples, their sort keys, launches; products of matrices
// are in sliced_wasserstein_product_cuda.h. Decides how a value becomes a key that sorts as an integer; leaves the
// order of launches to sliced_wasserstein_cuda.cu.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/dtype.h"
#include "common/launch.h"

namespace vgkernels {
namespace swd_cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Tests lower these to reach every path on small data.
struct Policy {
  int64_t chunk_bytes = 32 << 20;  // of projected values that wait for their sort: they should stay in the L2 cache
  int sort_threads = 512;          // at most, of a block that sorts; a power of two
  bool tensor_cores = true;        // for float32 products
  int64_t wanted_blocks = 128;     // a product of one entry with fewer tiles cuts its sum into pieces
  int64_t piece = 512;             // at least, of a sum; a multiple of 32. None of these was measured on a GPU
};
inline Policy policy;

// ---- keys: unsigned integers in the order of the values; -0 counts as +0, NaN lies beyond the infinities ----

VG_HOST_DEVICE uint32_t ordered(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
VG_HOST_DEVICE float unordered(uint32_t key) { return bit_cast<float>(key >> 31 ? key ^ 0x80000000u : ~key); }

constexpr uint64_t kTopBit = uint64_t(1) << 63;
VG_HOST_DEVICE uint64_t ordered(double value) {
  const uint64_t bits = bit_cast<uint64_t>(value + 0.0);
  return bits >> 63 ? ~bits : bits | kTopBit;
}
VG_HOST_DEVICE double unordered(uint64_t key) { return bit_cast<double>(key >> 63 ? key ^ kTopBit : ~key); }

struct WideKey {
  uint64_t value;
  uint32_t index;
};
VG_HOST_DEVICE bool operator<(const WideKey& a, const WideKey& b) {
  return a.value < b.value || (a.value == b.value && a.index < b.index);
}

// What is sorted: values alone, or values with the sample's index below them, which makes the order stable and total.
template <class T, bool kIndexed>
struct Keys;
template <>
struct Keys<float, false> {
  using Key = uint32_t;
  static VG_HOST_DEVICE Key make(float value, uint32_t) { return ordered(value); }
  static VG_HOST_DEVICE Key last() { return ~Key(0); }
  static VG_HOST_DEVICE float value(Key key) { return unordered(key); }
  static VG_HOST_DEVICE uint32_t index(Key) { return 0; }
};
template <>
struct Keys<float, true> {
  using Key = uint64_t;
  static VG_HOST_DEVICE Key make(float value, uint32_t index) { return uint64_t(ordered(value)) << 32 | index; }
  static VG_HOST_DEVICE Key last() { return ~Key(0); }
  static VG_HOST_DEVICE float value(Key key) { return unordered(uint32_t(key >> 32)); }
  static VG_HOST_DEVICE uint32_t index(Key key) { return uint32_t(key); }
};
template <>
struct Keys<double, false> {
  using Key = uint64_t;
  static VG_HOST_DEVICE Key make(double value, uint32_t) { return ordered(value); }
  static VG_HOST_DEVICE Key last() { return ~Key(0); }
  static VG_HOST_DEVICE double value(Key key) { return unordered(key); }
  static VG_HOST_DEVICE uint32_t index(Key) { return 0; }
};
template <>
struct Keys<double, true> {
  using Key = WideKey;
  static VG_HOST_DEVICE Key make(double value, uint32_t index) { return {ordered(value), index}; }
  static VG_HOST_DEVICE Key last() { return {~uint64_t(0), ~uint32_t(0)}; }
  static VG_HOST_DEVICE double value(const Key& key) { return unordered(key.value); }
  static VG_HOST_DEVICE uint32_t index(const Key& key) { return key.index; }
};
template <class T, bool kIndexed>
using Key = typename Keys<T, kIndexed>::Key;

// ---- rows: one side (x or y) of a chunk; row r is entry r / directions, direction r % directions of the chunk ----

template <class T, bool kIndexed>
struct Side {
  T* values;               // (rows, pitch): projected samples; once they are sorted, d value / d projected sample
  Key<T, kIndexed>* keys;  // (rows, pitch)
  Key<T, kIndexed>* room;  // (rows, pitch), or null where one block sorts a whole row
  int n;                   // samples
  int64_t pitch;           // a multiple of 4
};

template <class T, bool kIndexed>
struct Rows {
  Side<T, kIndexed> x, y;
  int64_t count;
};

// Samples of a row that one block sorts.
template <class T, bool kIndexed>
int64_t sorted_by_a_block() {
  return int64_t(policy.sort_threads) * (64 / sizeof(Key<T, kIndexed>));
}

// ---- launches, by file: each returns null or what went wrong ----

// sliced_wasserstein_sort_cuda.cu: `keys` of both sides become sorted rows.
template <class T, bool kIndexed>
const char* sort_rows(Rows<T, kIndexed>* rows, void* stream);

// sliced_wasserstein_couple_cuda.cu: distances[entry * stride + direction] of each row, and if indexed the `values` of
// the sides that are wanted; value(b) = the mean of L distances.
struct Coupling {
  double p;
  int64_t total_directions, directions;  // L, and those of the chunk
  bool want_x, want_y;
};
template <class T, bool kIndexed>
const char* couple_rows(const Rows<T, kIndexed>& rows, const Coupling& coupling, double* distances, void* stream);
template <class T>
const char* mean_distances(const double* distances, int64_t entries, int64_t directions, T* value, void* stream);

// ---- host ----

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline bool too_many(int64_t blocks) { return blocks > (int64_t(1) << 31) - 1; }
constexpr const char* kTooManyBlocks = "sliced_wasserstein: too much for one CUDA launch";
inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace swd_cuda
}  // namespace vgkernels
