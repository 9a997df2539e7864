// Couples sorted rows: the distance of every direction, and its derivative at every projected sample.
// Decides who sums what in which order: the pieces of the coupling are exact in integers, N M of them being the whole.
#include <cmath>

#include "sliced_wasserstein/sliced_wasserstein_rows_cuda.h"

namespace vgkernels {
namespace swd_cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChain = 16;  // terms in one chain of floats; then double

template <class T>
__device__ __forceinline__ T power(T size, double p) {
  return p == 1 ? size : p == 2 ? size * size : pow(size, T(p));
}

// The derivative of |d|^p; at 0 it is 0, also for p = 1.
template <class T>
__device__ __forceinline__ T power_slope(T d, double p) {
  const T size = d < 0 ? -d : d;
  const T slope = p == 1 ? T(d != 0) : p == 2 ? 2 * size : d != 0 ? T(p) * pow(size, T(p - 1)) : T(0);
  return d < 0 ? -slope : slope;
}

// Sample i of `own` has the share [i other_n, (i + 1) other_n) of the whole, sample j of `other` [j own_n, (j + 1)
// own_n); the first j that i shares with, and how much.
struct Share {
  int64_t begin, end, own_n, first;
  __device__ __forceinline__ Share(int64_t i, int64_t own_n, int64_t other_n)
      : begin(i * other_n), end(begin + other_n), own_n(own_n), first(own_n == other_n ? i : begin / own_n) {}
  __device__ __forceinline__ int64_t with(int64_t j) const { return min(end, (j + 1) * own_n) - max(begin, j * own_n); }
};

// The sum over the block, in one order, for thread 0.
__device__ __forceinline__ double block_sum(double value) {
  VG_SHARED(double, partial, [kWarps]);
  for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();  // every warp's sum is written
  double total = partial[0];
  for (int warp = 1; warp < kWarps; warp++) total += partial[warp];
  return total;
}

template <class T, bool kIndexed>
__device__ __forceinline__ bool ends_are_finite(const Key<T, kIndexed>* keys, int n) {  // of a sorted row
  const T first = Keys<T, kIndexed>::value(keys[0]), last = Keys<T, kIndexed>::value(keys[n - 1]);
  return first - first == 0 && last - last == 0;
}

// One row's sides: `own` is the one whose samples the threads take, `other` their partners.
template <class T, bool kIndexed>
struct Coupled {
  const Key<T, kIndexed>*own, *other;
  T* gradients;  // (own_n), in the samples' order; null: not wanted
  int own_n, other_n;
  double p;
  T scale;  // of the gradient to one piece: 1 / (N M L)

  __device__ __forceinline__ T value(const Key<T, kIndexed>* keys, int64_t i) const {
    return Keys<T, kIndexed>::value(keys[i]);
  }

  // own_n >= other_n: one or two partners each, which a thread sums itself. This thread's part of the distance.
  __device__ __forceinline__ double more_samples() const {
    double total = 0;
    T sum = 0;
    int in_chain = 0;
    for (int i = int(threadIdx.x); i < own_n; i += kThreads) {
      const Share share(i, own_n, other_n);
      const T mine = value(own, i);
      T slope = 0;
      for (int64_t j = share.first; j * own_n < share.end; j++) {
        const T d = mine - value(other, j), part = T(share.with(j));
        sum += part / T(other_n) * power(d < 0 ? -d : d, p);
        if (kIndexed && gradients) slope += part * power_slope(d, p);
      }
      if (kIndexed && gradients) gradients[Keys<T, kIndexed>::index(own[i])] = slope * scale;
      if (++in_chain == kChain) total += double(sum), sum = 0, in_chain = 0;
    }
    return total + double(sum);
  }

  // own_n < other_n: many partners each, which `lanes` neighbouring threads share. A power of two up to 32.
  __device__ __forceinline__ void fewer_samples() const {
    int lanes = 1;
    while (lanes < 32 && int64_t(lanes) * 4 * own_n < other_n) lanes *= 2;
    const int lane = int(threadIdx.x) % lanes, together = kThreads / lanes;
    for (int first = 0; first < own_n; first += together) {
      const int i = first + int(threadIdx.x) / lanes;
      double total = 0;
      if (i < own_n) {
        const Share share(i, own_n, other_n);
        const T mine = value(own, i);
        T sum = 0;
        int in_chain = 0;
        for (int64_t j = share.first + lane; j * own_n < share.end; j += lanes) {
          sum += T(share.with(j)) * power_slope(mine - value(other, j), p);
          if (++in_chain == kChain) total += double(sum), sum = 0, in_chain = 0;
        }
        total += double(sum);
      }
      for (int apart = lanes / 2; apart; apart /= 2) total += __shfl_xor_sync(kAllLanes, total, apart);
      if (i < own_n && lane == 0) gradients[Keys<T, kIndexed>::index(own[i])] = T(total * double(scale));
    }
  }

  __device__ __forceinline__ void not_finite() const {
    for (int i = int(threadIdx.x); gradients && i < own_n; i += kThreads) gradients[i] = T(NAN);
  }
};

// Block: one row. Grid: all rows of the chunk.
template <class T, bool kIndexed>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    couple(Rows<T, kIndexed> rows, Coupling c, double* distances) {
  const int64_t row = blockIdx.x;
  const Key<T, kIndexed>*x = rows.x.keys + row * rows.x.pitch, *y = rows.y.keys + row * rows.y.pitch;
  const int n = rows.x.n, m = rows.y.n;
  T* grad_x = kIndexed && c.want_x ? rows.x.values + row * rows.x.pitch : nullptr;  // (N)
  T* grad_y = kIndexed && c.want_y ? rows.y.values + row * rows.y.pitch : nullptr;  // (M)
  const T scale = T(1 / (double(n) * m * double(c.total_directions)));
  const bool x_has_more = n >= m;
  const Coupled<T, kIndexed> more{x_has_more ? x : y,
                                  x_has_more ? y : x,
                                  x_has_more ? grad_x : grad_y,
                                  x_has_more ? n : m,
                                  x_has_more ? m : n,
                                  c.p,
                                  scale};
  const Coupled<T, kIndexed> fewer{more.other, more.own, x_has_more ? grad_y : grad_x, more.other_n, more.own_n,
                                   c.p,        scale};
  double* distance = distances + row / c.directions * c.total_directions + row % c.directions;
  if (!ends_are_finite<T, kIndexed>(x, n) || !ends_are_finite<T, kIndexed>(y, m)) {
    if (kIndexed) more.not_finite(), fewer.not_finite();
    if (threadIdx.x == 0) *distance = NAN;
    return;
  }
  const double sum = block_sum(more.more_samples());
  if (threadIdx.x == 0) *distance = sum / more.own_n;
  if (!kIndexed || !fewer.gradients) return;
  if (n == m)
    (void)fewer.more_samples();
  else
    fewer.fewer_samples();
}

// Block: one entry.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) mean(const double* distances, int64_t directions, T* value) {
  const double* mine = distances + blockIdx.x * directions;  // (L)
  double sum = 0;
  for (int64_t i = threadIdx.x; i < directions; i += kThreads) sum += mine[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) value[blockIdx.x] = T(sum / double(directions));
}

}  // namespace

template <class T, bool kIndexed>
const char* couple_rows(const Rows<T, kIndexed>& rows, const Coupling& coupling, double* distances, void* stream) {
  VG_LAUNCH((couple<T, kIndexed>), dim3(unsigned(rows.count)), dim3(kThreads), 0, stream, rows, coupling, distances);
  return launch_error();
}

template <class T>
const char* mean_distances(const double* distances, int64_t entries, int64_t directions, T* value, void* stream) {
  if (too_many(entries)) return kTooManyBlocks;
  VG_LAUNCH((mean<T>), dim3(unsigned(entries)), dim3(kThreads), 0, stream, distances, directions, value);
  return launch_error();
}

template const char* couple_rows<float, false>(const Rows<float, false>&, const Coupling&, double*, void*);
template const char* couple_rows<float, true>(const Rows<float, true>&, const Coupling&, double*, void*);
template const char* couple_rows<double, false>(const Rows<double, false>&, const Coupling&, double*, void*);
template const char* couple_rows<double, true>(const Rows<double, true>&, const Coupling&, double*, void*);
template const char* mean_distances<float>(const double*, int64_t, int64_t, float*, void*);
template const char* mean_distances<double>(const double*, int64_t, int64_t, double*, void*);

}  // namespace swd_cuda
}  // namespace vgkernels
