// The convolution of a half step as an implicit product on the tensor cores, ending in the gates. Rows are pixels,
// columns the packed outputs, k runs over taps and, inside, channels. Decides how neighbourhoods come to shared memory:
// 16 bytes at a time by cp.async, straight from the map, with zeros beyond its border; no unfolded copy exists.
#include <limits>

#include "common/device_primitives.h"
#include "conv_gru/conv_gru_gates_cuda.h"

namespace vgkernels {
namespace conv_gru_gates {
namespace {

constexpr int kChunk = 8, kChunks = 8;  // numbers in 16 bytes, and such chunks in a shared row: k advances by 64
constexpr int kStep = kChunk * kChunks, kWarpColumns = 32;

template <int rows, int columns, int warp_rows, int stages>
struct Tile {
  static constexpr int kRows = rows, kColumns = columns, kWarpRows = warp_rows, kStages = stages;
  static constexpr int kWarpsAcross = columns / kWarpColumns, kThreads = 32 * kWarpsAcross * (rows / warp_rows);
  static constexpr int kStage = (rows + columns) * kStep;  // numbers: the pixels' rows, then the weight's
  static constexpr int kPass = kThreads / kChunks;         // rows that the threads fetch at once
  static constexpr size_t kShared = size_t(stages) * kStage * 2;
  static_assert(kPackedColumns % columns == 0 && rows % kPass == 0 && columns % kPass == 0, "whole passes");
};
// Of the sizes of the design these are the two ends; none was timed on a GPU.
using LargeTile = Tile<128, 64, 32, 3>;
using SmallTile = Tile<64, 32, 16, 4>;

template <class T>
struct Problem {
  const T* operand;  // (pixels, inputs)
  const T* weight;   // (packed columns, length)
  int pixels, depth, height, width, inputs, kernel;
  bool volumes;
  int length;  // taps * inputs
};

// Chunks lie in a row of shared memory in an order of its own, so that the 8 rows of a matrix are in 8 banks' groups.
template <class T>
__device__ __forceinline__ T* chunk_of(T* rows, int row, int chunk) {
  return rows + row * kStep + (chunk ^ (row & 7)) * kChunk;
}

// The rows whose chunks one thread fetches: where they are in their maps.
template <class T, class Tile>
struct Gather {
  static constexpr int kMine = Tile::kRows / Tile::kPass;
  const Problem<T>& p;
  int chunk, row, first_column;
  int pixel[kMine], z[kMine], y[kMine], x[kMine];

  __device__ __forceinline__ Gather(const Problem<T>& p, int first_pixel, int first_column)
      : p(p), chunk(int(threadIdx.x) % kChunks), row(int(threadIdx.x) / kChunks), first_column(first_column) {
#pragma unroll
    for (int i = 0; i < kMine; i++) {
      const int at = pixel[i] = first_pixel + row + i * Tile::kPass, line = at / p.width;
      x[i] = at - line * p.width;
      y[i] = at < p.pixels ? line % p.height : -(1 << 30);  // no tap of it is inside
      z[i] = p.volumes ? line / p.height % p.depth : 0;
    }
  }

  // What k = `from` .. from + 63 need; zeros beyond the map and beyond the last tap.
  __device__ __forceinline__ void fetch(T* stage, int from) const {
    const int k = from + chunk * kChunk, tap = k / p.inputs, half = p.kernel / 2;
    const int line = tap / p.kernel, dx = tap - line * p.kernel - half;
    const int dy = (p.volumes ? line % p.kernel : line) - half, dz = p.volumes ? line / p.kernel - half : 0;
    const int64_t shift = (int64_t(dz) * p.height + dy) * p.width + dx;
    const T* channels = p.operand + (k - tap * p.inputs);
#pragma unroll
    for (int i = 0; i < kMine; i++) {
      const bool inside = k < p.length && unsigned(x[i] + dx) < unsigned(p.width) &&
                          unsigned(y[i] + dy) < unsigned(p.height) && unsigned(z[i] + dz) < unsigned(p.depth);
      const T* from_here = inside ? channels + (pixel[i] + shift) * p.inputs : p.operand;
      prim::cp_async16(chunk_of(stage, row + i * Tile::kPass, chunk), from_here, inside ? 16 : 0);
    }
    stage += Tile::kRows * kStep;
#pragma unroll
    for (int i = row; i < Tile::kColumns; i += Tile::kPass) {
      const T* from_here = k < p.length ? p.weight + int64_t(first_column + i) * p.length + k : p.weight;
      prim::cp_async16(chunk_of(stage, i, chunk), from_here, k < p.length ? 16 : 0);
    }
  }
};

// Block: a tile of pixels and columns. Warp: kWarpRows x 32 of it, as matrices of 16 x 8.
template <class T, class Tile, class Gates>
__global__ void __launch_bounds__(Tile::kThreads) multiply_gates(Problem<T> p, Gates gates, Place last) {
  constexpr int kMatrices = Tile::kWarpRows / 16, kMaps = kGates<Gates>, kGroups = kWarpColumns / (16 * kMaps);
  VG_DYNAMIC_SHARED(T, stages);  // (kStages, kStage)
  const int first_pixel = int(blockIdx.x) * Tile::kRows, first_column = int(blockIdx.y) * Tile::kColumns;
  const Gather<T, Tile> gather(p, first_pixel, first_column);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpRows;
  const int warp_column = warp % Tile::kWarpsAcross * kWarpColumns;
  float sum[kMatrices][4][4] = {};

  const auto fetch = [&](int step) {
    if (step * kStep < p.length) gather.fetch(stages + step % Tile::kStages * Tile::kStage, step * kStep);
    prim::cp_async_commit();  // an empty group too, so that the count is the same for every step
  };
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; step++) fetch(step);
  for (int step = 0; step * kStep < p.length; step++) {
    prim::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there, and nobody reads the one before any more, which is filled now
    fetch(step + Tile::kStages - 1);
    const T* rows = stages + step % Tile::kStages * Tile::kStage;
    const T* columns = rows + Tile::kRows * kStep;
#pragma unroll
    for (int k = 0; k < kChunks; k += 2) {  // 16 numbers
      uint32_t a[kMatrices][4];
#pragma unroll
      for (int i = 0; i < kMatrices; i++)
        prim::load_matrices(a[i], chunk_of(rows, warp_row + 16 * i + lane % 16, k + lane / 16));
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t b[4];  // of two neighbouring matrices of columns
        prim::load_matrices(b, chunk_of(columns, warp_column + 8 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < kMatrices; i++) {
          prim::multiply_half(sum[i][j], a[i], {b[0], b[1]}, T{});
          prim::multiply_half(sum[i][j + 1], a[i], {b[2], b[3]}, T{});
        }
      }
    }
  }

  const int g = lane / 4, t = lane % 4, first_group = (first_column + warp_column) / (16 * kMaps);
  Place at = last;
#pragma unroll
  for (int i = 0; i < kMatrices; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      at.pixel = first_pixel + warp_row + 16 * i + 8 * half + g;
      if (at.pixel >= p.pixels) continue;
#pragma unroll
      for (int group = 0; group < kGroups; group++) {
        at.channel = (first_group + group) * 16 + 4 * t;
        if (at.channel >= at.channels) continue;
        float sums[kMaps][4];
#pragma unroll
        for (int map = 0; map < kMaps; map++)
#pragma unroll
          for (int c = 0; c < 4; c++) sums[map][c] = sum[i][(group * kMaps + map) * 2 + c / 2][2 * half + c % 2];
        apply<T>(gates, at, sums);
      }
    }
}

template <class T, class Tile, class Gates>
const char* launch(const Problem<T>& p, const Gates& gates, const Place& place, int64_t columns, void* stream) {
  const auto kernel = multiply_gates<T, Tile, Gates>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(Tile::kShared))) {
    cudaGetLastError();  // said here, not after a later launch
    return "this device has too little shared memory";
  }
  const dim3 grid(unsigned(divide_up(p.pixels, Tile::kRows)), unsigned(divide_up(columns, Tile::kColumns)));
  if (grid.y > 65535) return "too many channels";
  VG_LAUNCH(kernel, grid, dim3(Tile::kThreads), Tile::kShared, stream, p, gates, place);
  return launch_error();
}

template <class T, class Gates>
const char* run(const ConvGruProduct& product, const Gates& gates, void* stream) {
  const ConvGruShape& s = product.shape;
  const int64_t pixels = s.batch * s.pixels(), length = s.taps() * s.input_channels;
  constexpr int64_t kLargest = std::numeric_limits<int>::max() - 256;  // a tile's rows beyond it count too
  if (pixels > kLargest || length > kLargest) return "too many elements in a step";
  if (s.channels % kChunk || s.input_channels % kChunk) return "channels must be multiples of 8";
  if (!aligned(gates) || !all_aligned({product.operand, product.weight})) return "arrays must be aligned to 16 bytes";
  const Problem<T> p{static_cast<const T*>(product.operand),
                     static_cast<const T*>(product.weight),
                     int(pixels),
                     int(s.depth),
                     int(s.height),
                     int(s.width),
                     int(s.input_channels),
                     int(s.kernel),
                     s.volumes,
                     int(length)};
  const Place place{0, 0, int(s.channels), int(kept_channels(s.channels)), s.pixels()};
  const int64_t columns = kGates<Gates> * divide_up(s.channels, 16) * 16;
  int device = 0, multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t large = divide_up(pixels, LargeTile::kRows) * divide_up(columns, LargeTile::kColumns);
  if (large >= multiprocessors) return launch<T, LargeTile>(p, gates, place, columns, stream);
  return launch<T, SmallTile>(p, gates, place, columns, stream);
}

}  // namespace

template <class Gates>
const char* multiply_and_apply(const ConvGruProduct& product, const Gates& gates, DType dtype, void* stream) {
  if (dtype == DType::bfloat16) return run<bfloat16>(product, gates, stream);
  if (dtype == DType::float16) return run<float16>(product, gates, stream);
  return "a product by this kernel needs float16 or bfloat16";
}
template const char* multiply_and_apply(const ConvGruProduct&, const ConvGruResetUpdate&, DType, void*);
template const char* multiply_and_apply(const ConvGruProduct&, const ConvGruCandidate&, DType, void*);
template const char* multiply_and_apply(const ConvGruProduct&, const ConvGruCandidateBackward&, DType, void*);
template const char* multiply_and_apply(const ConvGruProduct&, const ConvGruResetBackward&, DType, void*);

}  // namespace conv_gru_gates
}  // namespace vgkernels
