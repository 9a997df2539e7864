// The two kernels of svc_projection that touch W on CUDA: partial sums of W W^T, and W + E W in place.
// Which layers they run for, and what E is, was decided in svc_projection_sign_cuda.cu.
#include "svc_projection/svc_projection_layers_cuda.h"

namespace vgkernels {
namespace svc_cuda {
namespace {

constexpr int kChunk = 16;  // columns of W, or of E, that are in shared memory at a time
constexpr int kFlush = 64;  // a chain of float additions is at most this long: equal terms round one way each time
constexpr int kSide = 16;   // the threads are 16 x 16
constexpr int kMost = kGramTile / kSide;

// One thread: rows y + 16 i, columns x + 16 j of a tile, i, j < 4, over the columns of W of one split.
template <class T, class A>
__device__ __forceinline__ void gram_tile(const Layer& layer, int index) {
  VG_SHARED(A, rows, [kChunk][kGramTile + 1]);
  VG_SHARED(A, columns, [kChunk][kGramTile + 1]);
  const SvcMatrix& w = layer.matrix;
  const T* data = static_cast<const T*>(w.data);  // (m, n)
  const int m = layer.m(), tiles = tiles_of(layer.side(kGramTile)), edge = layer.edge();
  const Tile tile = tile_of(index % tiles);
  const int64_t begin = int64_t(index / tiles) * layer.split_columns;
  const int64_t end = begin + layer.split_columns < w.columns ? begin + layer.split_columns : w.columns;
  const int x = int(threadIdx.x) % kSide, y = int(threadIdx.x) / kSide;
  const bool along_columns = w.column_stride == 1;
  A sum[kMost][kMost] = {}, total[kMost][kMost] = {};

  for (int64_t from = begin; from < end; from += kChunk) {
    __syncthreads();  // the chunk before has been read
#pragma unroll
    for (int item = int(threadIdx.x); item < kChunk * kGramTile; item += kThreads) {  // neighbours read neighbours
      const int k = along_columns ? item % kChunk : item / kGramTile;
      const int i = along_columns ? item / kChunk : item % kGramTile;
      const int row = tile.row * kGramTile + i, column = tile.column * kGramTile + i;
      const T* at = data + (from + k) * w.column_stride;
      rows[k][i] = row < m && from + k < end ? A(widen(at[row * w.row_stride])) : A(0);
      columns[k][i] = column < m && from + k < end ? A(widen(at[column * w.row_stride])) : A(0);
    }
    __syncthreads();  // the chunk is there
#pragma unroll 4
    for (int k = 0; k < kChunk; k++) {
      A a[kMost], b[kMost];
#pragma unroll
      for (int i = 0; i < kMost; i++) a[i] = rows[k][y + kSide * i], b[i] = columns[k][x + kSide * i];
#pragma unroll
      for (int i = 0; i < kMost; i++)
#pragma unroll
        for (int j = 0; j < kMost; j++) sum[i][j] += a[i] * b[j];
    }
    if (sizeof(A) == sizeof(float) && (from - begin) % kFlush == kFlush - kChunk)
#pragma unroll
      for (int i = 0; i < kMost; i++)
#pragma unroll
        for (int j = 0; j < kMost; j++) total[i][j] += sum[i][j], sum[i][j] = 0;
  }
  A* part = layer.parts<A>() + size_t(index) * edge * edge;  // (edge, edge)
#pragma unroll
  for (int i = 0; i < kMost; i++)
#pragma unroll
    for (int j = 0; j < kMost; j++) {
      const int row = y + kSide * i, column = x + kSide * j;
      if (tile.row * kGramTile + row < m && tile.column * kGramTile + column < m)
        part[row * edge + column] = total[i][j] + sum[i][j];
    }
}

// Block: one tile of one split of one layer. Grid: all tiles of all splits of all layers.
template <class T, class A>
__global__ void __launch_bounds__(kThreads, 2) gram(Problem p) {
  const Place place = place_of(p, &Layer::first_item);
  const Layer& layer = p.layers[place.layer];
  const Control& control = p.controls[place.layer];
  if (control.phase == Phase::measuring && control.in_double == (sizeof(A) == sizeof(double)))
    gram_tile<T, A>(layer, place.index);
}

// The block's columns of W, all rows, are in shared memory; the result overwrites W tile of rows by tile of rows.
// Neighbouring threads are neighbours in memory: in a row of W where those are contiguous, else in a column.
template <class T, class A>
__device__ __forceinline__ void apply_strip(const Layer& layer, const A* change, int index, T* strip) {
  VG_SHARED(A, factor, [kChunk][kGramTile + 1]);
  constexpr int kColumns = kStrip / kSide;
  const SvcMatrix& w = layer.matrix;
  const int m = layer.m(), width = layer.strip_columns;
  const int64_t first = int64_t(index) * width;
  T* data = static_cast<T*>(w.data) + first * w.column_stride;  // (m, used)
  const int used = int(w.columns - first < width ? w.columns - first : width);
  const bool along_columns = w.column_stride == 1;
  for (int64_t item = threadIdx.x; item < int64_t(m) * used; item += kThreads) {
    const int row = int(along_columns ? item / used : item % m), column = int(along_columns ? item % used : item / m);
    strip[size_t(row) * width + column] = data[row * w.row_stride + column * w.column_stride];
  }
  const int across = int(threadIdx.x) % kSide, along = int(threadIdx.x) / kSide;
  const int y = along_columns ? along : across, x = along_columns ? across : along;
  for (int top = 0; top < m; top += kGramTile) {
    A sum[kMost][kColumns] = {};
    for (int from = 0; from < m; from += kChunk) {
      __syncthreads();  // the strip is there; the chunk before has been read
#pragma unroll
      for (int item = int(threadIdx.x); item < kChunk * kGramTile; item += kThreads) {
        const int k = item / kGramTile, i = item % kGramTile;
        const bool inside = from + k < m && top + i < m;
        factor[k][i] = inside ? change[size_t(from + k) * m + top + i] : A(0);  // E is symmetric
      }
      __syncthreads();  // the chunk is there
      const int chunk = m - from < kChunk ? m - from : kChunk;
#pragma unroll 4
      for (int k = 0; k < chunk; k++) {
        A a[kMost], b[kColumns];
#pragma unroll
        for (int i = 0; i < kMost; i++) a[i] = factor[k][y + kSide * i];
#pragma unroll
        for (int j = 0; j < kColumns; j++)
          b[j] = x + kSide * j < used ? A(widen(strip[size_t(from + k) * width + x + kSide * j])) : A(0);
#pragma unroll
        for (int i = 0; i < kMost; i++)
#pragma unroll
          for (int j = 0; j < kColumns; j++) sum[i][j] += a[i] * b[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kMost; i++)
#pragma unroll
      for (int j = 0; j < kColumns; j++) {
        const int row = top + y + kSide * i, column = x + kSide * j;
        if (row >= m || column >= used) continue;
        const A before = A(widen(strip[size_t(row) * width + column]));
        data[row * w.row_stride + column * w.column_stride] = narrow<T>(Acc<T>(before + sum[i][j]));
      }
  }
}

// Block: a strip of columns of one layer. Grid: all strips of all layers. Dynamic shared memory: the widest strip.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) apply_change(Problem p) {
  VG_DYNAMIC_SHARED(T, strip);  // (m, strip_columns)
  const Place place = place_of(p, &Layer::first_strip);
  const Layer& layer = p.layers[place.layer];
  Control& control = p.controls[place.layer];
  if (control.phase != Phase::changing) return;
  if (sizeof(T) == sizeof(double) || control.in_double)
    apply_strip<T, double>(layer, layer.buffer<double>(control.change), place.index, strip);
  else
    apply_strip<T, Acc<T>>(layer, layer.buffer<Acc<T>>(control.change), place.index, strip);
  const int strips = int((layer.matrix.columns - 1) / layer.strip_columns + 1);
  if (is_last(p, place, 0, strips, make_double2(0, 0), nullptr) && threadIdx.x == 0) {
    control.rounds++;
    control.in_double = layer.always_double;
    control.phase = Phase::measuring;
  }
}

}  // namespace

const char* gram_parts(const Problem& p, DType dtype, bool in_double, void* stream) {
  const dim3 grid(unsigned(p.items)), block(kThreads);
  return with_type(dtype, [&](auto element) {
    using T = decltype(element);
    if (in_double)
      VG_LAUNCH((gram<T, double>), grid, block, 0, stream, p);
    else
      VG_LAUNCH((gram<T, Acc<T>>), grid, block, 0, stream, p);
    return launch_error();
  });
}

const char* apply(const Problem& p, DType dtype, size_t shared_bytes, void* stream) {
  return with_type(dtype, [&](auto element) {
    using T = decltype(element);
    if (cudaFuncSetAttribute(apply_change<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)))
      return "svc_projection: no shared memory for a strip of the matrix";
    VG_LAUNCH((apply_change<T>), dim3(unsigned(p.strips)), dim3(kThreads), shared_bytes, stream, p);
    return launch_error();
  });
}

}  // namespace svc_cuda
}  // namespace vgkernels
