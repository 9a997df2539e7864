// Products of matrices by fused multiply-adds, for doubles and as a second opinion on floats, and transposes. Decides
// how long sums are summed: at most 32 products in one chain of floats, and the chains with the rounding of every
// addition carried along, since equal terms round one way each time. The tensor cores' version is in
// sliced_wasserstein_tensor_cuda.cu.
#include "sliced_wasserstein/sliced_wasserstein_product_cuda.h"

namespace vgkernels {
namespace swd_cuda {
namespace {

constexpr int kThreads = 256, kSide = 16, kMost = kTile / kSide;  // the threads are 16 x 16
constexpr int kChunk = 16;                                        // of k, in shared memory at a time
constexpr int kChain = 32;

// Block: a piece of the sums of one tile. Thread: rows y + 16 i, columns x + 16 j of the tile, i, j < 4.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) multiply_tiles(Products<T> all) {
  VG_SHARED(T, a_chunk, [kChunk][kTile + 1]);
  VG_SHARED(T, b_chunk, [kChunk][kTile + 1]);
  const Work<T> work = work_of(all, blockIdx.x);
  const Product<T>& p = work.product;
  const T *a = p.a.of(work.entry), *b = p.b.of(work.entry);
  const int thread = int(threadIdx.x), x = thread % kSide, y = thread / kSide;
  T sum[kMost][kMost] = {}, total[kMost][kMost] = {}, lost[kMost][kMost] = {};

  for (int from = work.begin; from < work.end; from += kChunk) {
    __syncthreads();  // the chunk before has been read
#pragma unroll
    for (int item = thread; item < kChunk * kTile; item += kThreads) {  // neighbours read neighbours
      const int a_k = p.a.k == 1 ? item % kChunk : item / kTile, a_i = p.a.k == 1 ? item / kChunk : item % kTile;
      const int b_k = p.b.k == 1 ? item % kChunk : item / kTile, b_i = p.b.k == 1 ? item / kChunk : item % kTile;
      const bool a_inside = work.top + a_i < p.rows && from + a_k < work.end;
      const bool b_inside = work.left + b_i < p.columns && from + b_k < work.end;
      a_chunk[a_k][a_i] = a_inside ? a[(work.top + a_i) * p.a.row + (from + a_k) * p.a.k] : T(0);
      b_chunk[b_k][b_i] = b_inside ? b[(work.left + b_i) * p.b.row + (from + b_k) * p.b.k] : T(0);
    }
    __syncthreads();  // the chunk is there
#pragma unroll 4
    for (int k = 0; k < kChunk; k++) {
      T a_here[kMost], b_here[kMost];
#pragma unroll
      for (int i = 0; i < kMost; i++) a_here[i] = a_chunk[k][y + kSide * i], b_here[i] = b_chunk[k][x + kSide * i];
#pragma unroll
      for (int i = 0; i < kMost; i++)
#pragma unroll
        for (int j = 0; j < kMost; j++) sum[i][j] += a_here[i] * b_here[j];
    }
    if (sizeof(T) == sizeof(float) && (from - work.begin) % kChain == kChain - kChunk)
#pragma unroll
      for (int i = 0; i < kMost; i++)
#pragma unroll
        for (int j = 0; j < kMost; j++) add_exactly(&total[i][j], &lost[i][j], sum[i][j]), sum[i][j] = 0;
  }
#pragma unroll
  for (int i = 0; i < kMost; i++)
#pragma unroll
    for (int j = 0; j < kMost; j++) work.put(y + kSide * i, x + kSide * j, total[i][j] + (sum[i][j] + lost[i][j]));
}

// The pieces of a sum, in order. Block: a tile. Grid: the tiles of all entries of both products.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) add_pieces(Products<T> all) {
  const int64_t block = int64_t(blockIdx.x) * all.pieces;
  Work<T> work = work_of(all, block);
  const T* parts = work.part;  // (pieces, kTile, kTile)
  work.part = nullptr;
  for (int i = int(threadIdx.x); i < kTile * kTile; i += kThreads) {
    T total = 0, lost = 0;
    for (int piece = 0; piece < all.pieces; piece++) add_exactly(&total, &lost, parts[piece * kTile * kTile + i]);
    work.put(i / kTile, i % kTile, total + lost);
  }
}

constexpr int kSquare = 32;

// Block: a square of one entry. Thread: a column of 4 elements, 8 apart.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    transpose_squares(const T* in, int64_t in_entry, int64_t in_row, T* out, int64_t out_entry, int64_t out_row,
                      int rows, int columns) {
  VG_SHARED(T, square, [kSquare][kSquare + 1]);
  const int across = (columns - 1) / kSquare + 1, down = (rows - 1) / kSquare + 1;
  const int64_t block = blockIdx.x, entry = block / across / down;
  const int top = int(block / across % down) * kSquare, left = int(block % across) * kSquare;
  const int x = int(threadIdx.x) % kSquare;
  for (int y = int(threadIdx.x) / kSquare; y < kSquare; y += kThreads / kSquare)
    if (top + y < rows && left + x < columns) square[y][x] = in[entry * in_entry + (top + y) * in_row + left + x];
  __syncthreads();  // the square is there
  for (int y = int(threadIdx.x) / kSquare; y < kSquare; y += kThreads / kSquare)
    if (left + y < columns && top + x < rows) out[entry * out_entry + (left + y) * out_row + top + x] = square[x][y];
}

}  // namespace

template <class T>
const char* multiply(const Products<T>& products, void* stream) {
  if (too_many(products.blocks)) return kTooManyBlocks;
  bool done = false;
  if constexpr (sizeof(T) == sizeof(float)) {
    done = policy.tensor_cores;
    if (done) multiply_on_tensor_cores(products, stream);
  }
  if (!done) VG_LAUNCH((multiply_tiles<T>), dim3(unsigned(products.blocks)), dim3(kThreads), 0, stream, products);
  if (products.pieces > 1)
    VG_LAUNCH((add_pieces<T>), dim3(unsigned(products.blocks / products.pieces)), dim3(kThreads), 0, stream, products);
  return launch_error();
}

template <class T>
const char* transpose(const T* in, int64_t in_entry, int64_t in_row, T* out, int64_t out_entry, int64_t out_row,
                      int rows, int columns, int64_t entries, void* stream) {
  const int64_t blocks = entries * divide_up(rows, kSquare) * divide_up(columns, kSquare);
  if (too_many(blocks)) return kTooManyBlocks;
  VG_LAUNCH((transpose_squares<T>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, in, in_entry, in_row, out,
            out_entry, out_row, rows, columns);
  return launch_error();
}

template const char* multiply<float>(const Products<float>&, void*);
template const char* multiply<double>(const Products<double>&, void*);
template const char* transpose<float>(const float*, int64_t, int64_t, float*, int64_t, int64_t, int, int, int64_t,
                                      void*);
template const char* transpose<double>(const double*, int64_t, int64_t, double*, int64_t, int64_t, int, int, int64_t,
                                       void*);

}  // namespace swd_cuda
}  // namespace vgkernels
