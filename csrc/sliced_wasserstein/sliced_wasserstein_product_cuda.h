// Products of matrices: what is multiplied, and which block computes what. Long sums of small products are cut into
// pieces, by the shape of one entry alone, so that an entry's bits do not depend on the others.
#pragma once

#include "sliced_wasserstein/sliced_wasserstein_rows_cuda.h"

namespace vgkernels {
namespace swd_cuda {

constexpr int kTile = 64;  // rows and columns of a block

template <class T>
struct Operand {
  const T* data;
  int64_t entry, row, k;  // distances in elements; row or k is 1
  int64_t first, shared;  // entry e of the chunk takes (first + e) / shared

  __device__ __forceinline__ const T* of(int64_t e) const { return data + (first + e) / shared * entry; }
};

// out(i, j) = sum over k of a(i, k) b(j, k), for every entry of a chunk.
template <class T>
struct Product {
  Operand<T> a, b;
  T* out;
  int64_t out_entry, out_row;
  int rows, columns, depth;
  bool add;  // to what is there
};

// Up to two products in one launch, whose operands lie alike.
template <class T>
struct Products {
  Product<T> first, second;
  int64_t entries, first_blocks, blocks;
  int pieces;  // of each sum
  T* parts;    // (blocks, kTile, kTile), where there are several pieces
};

inline int64_t tiles_of(int64_t rows, int64_t columns) { return divide_up(rows, kTile) * divide_up(columns, kTile); }

// Into how many pieces a sum is cut, if one entry has so many tiles.
inline int pieces_of(int64_t tiles, int64_t depth) {
  return int(std::max<int64_t>(1, std::min(policy.wanted_blocks / tiles, depth / policy.piece)));
}

template <class T>
Products<T> together(const Product<T>* products, int count, int64_t entries, int pieces, T* parts) {
  const auto blocks = [&](const Product<T>& p) { return entries * tiles_of(p.rows, p.columns) * pieces; };
  const int64_t first = blocks(products[0]), second = count == 2 ? blocks(products[1]) : 0;
  return {products[0], products[count - 1], entries, first, first + second, pieces, parts};
}

// What one block computes: a tile, over one piece of k.
template <class T>
struct Work {
  const Product<T>& product;
  int64_t entry;
  int top, left, begin, end;
  T* part;  // (kTile, kTile); null: the sum is whole

  __device__ __forceinline__ void put(int row, int column, T value) const {
    if (part) {
      part[row * kTile + column] = value;
    } else if (top + row < product.rows && left + column < product.columns) {
      T* out = product.out + entry * product.out_entry + (top + row) * product.out_row + left + column;
      *out = product.add ? *out + value : value;
    }
  }
};

// `block` counts tiles of entries, and of each its pieces.
template <class T>
__device__ __forceinline__ Work<T> work_of(const Products<T>& all, int64_t block) {
  const bool is_second = block >= all.first_blocks;
  const Product<T>& p = is_second ? all.second : all.first;
  T* part = all.pieces > 1 ? all.parts + block * (kTile * kTile) : nullptr;
  if (is_second) block -= all.first_blocks;
  const int piece = int(block % all.pieces), size = ((p.depth - 1) / all.pieces / 32 + 1) * 32;
  const int across = (p.columns - 1) / kTile + 1, down = (p.rows - 1) / kTile + 1;
  const int64_t tile = block / all.pieces;
  const int64_t begin = int64_t(piece) * size, end = begin + size;
  return {p,
          tile / across / down,
          int(tile / across % down) * kTile,
          int(tile % across) * kTile,
          int(begin < p.depth ? begin : p.depth),
          int(end < p.depth ? end : p.depth),
          part};
}

// total + lost += value, without a rounding error but that of lost, which a compiler must not simplify away: no
// -ffast-math. What is not finite leaves NaN in lost.
template <class T>
__device__ __forceinline__ void add_exactly(T* total, T* lost, T value) {
  const T sum = *total + value, of_value = sum - *total, of_total = sum - of_value;
  *lost += (*total - of_total) + (value - of_value);
  *total = sum;
}

// ---- launches, by file: each returns null or what went wrong ----

// sliced_wasserstein_product_cuda.cu: on whatever cores. transpose: out(j, i) = in(i, j), (rows, columns).
template <class T>
const char* multiply(const Products<T>& products, void* stream);
template <class T>
const char* transpose(const T* in, int64_t in_entry, int64_t in_row, T* out, int64_t out_entry, int64_t out_row,
                      int rows, int columns, int64_t entries, void* stream);

// sliced_wasserstein_tensor_cuda.cu: the tiles, or pieces of them, of float32 products.
void multiply_on_tensor_cores(const Products<float>& products, void* stream);

}  // namespace swd_cuda
}  // namespace vgkernels
