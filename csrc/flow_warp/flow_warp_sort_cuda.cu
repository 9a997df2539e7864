// A stable radix sort of source pixels by the image cell they read: 8 bits a pass, all images of a group side by side.
// Decides keys, passes and scratch; leaves what is summed over the lists to flow_warp_backward_cuda.cu.
#include "common/workspace.h"
#include "flow_warp/flow_warp_cuda.h"
#include "flow_warp/flow_warp_sort.h"

namespace vgkernels {
namespace flow_warp_cuda {
namespace {

constexpr int kDigits = 256, kWarps = kThreads / 32, kRounds = 8, kTile = kThreads * kRounds;

// One pass of one group; every pointer is that of image 0.
struct Pass {
  const uint32_t* keys;    // (images, n)
  const uint32_t* pixels;  // (images, n); null in the first pass: item i is pixel i
  uint32_t* next_keys;     // (images, n)
  uint32_t* next_pixels;   // (images, n)
  uint32_t* counts;        // (images, 256, tiles)
  uint32_t* totals;        // (images, 256)
  uint32_t n, tiles;
  int shift;
  __device__ __forceinline__ uint32_t digit(uint32_t key) const { return (key >> shift) & (kDigits - 1); }
};

template <class A>
struct Source {
  const A* flow;  // (images, 2, n)
  const A* mask;  // (images, n) or null
  uint32_t n, cells, blocks;
  int H, W, Wo;
  Interpolation mode;
  Padding padding;
  __device__ __forceinline__ AxisTap<A> x(size_t image, uint32_t pixel) const {
    return locate(A(int(pixel % Wo)) + flow[2 * image * n + pixel], W, mode, padding);
  }
  __device__ __forceinline__ AxisTap<A> y(size_t image, uint32_t pixel) const {
    return locate(A(int(pixel / Wo)) + flow[(2 * image + 1) * n + pixel], H, mode, padding);
  }
};

// One thread = one source pixel, and one cell whose range it empties. Grid: `blocks` blocks an image.
template <class A>
__global__ void __launch_bounds__(kThreads, 4) write_keys(Source<A> source, uint32_t* keys, uint2* ranges) {
  const size_t image = blockIdx.x / source.blocks;
  const uint32_t i = blockIdx.x % source.blocks * kThreads + threadIdx.x;
  if (i < source.cells) ranges[image * source.cells + i] = make_uint2(0, 0);
  if (i >= source.n) return;
  const int row = source.y(image, i).cell, column = source.x(image, i).cell;
  const bool reads = row >= -1 && row < source.H && column >= -1 && column < source.W;
  keys[image * source.n + i] = reads ? uint32_t(row + 1) * (source.W + 1) + (column + 1) : source.cells;
}

// One block = the 2048 items of a tile of an image; thread d writes the count of digit d. Grid: `tiles` blocks an
// image.
__global__ void __launch_bounds__(kThreads, 6) count_digits(Pass pass) {
  VG_SHARED(uint32_t, count, [kDigits]);
  const size_t image = blockIdx.x / pass.tiles;
  const uint32_t tile = blockIdx.x % pass.tiles;
  count[threadIdx.x] = 0;
  __syncthreads();  // all counters are zero
  for (int round = 0; round < kRounds; round++) {
    const uint32_t i = tile * kTile + round * kThreads + threadIdx.x;
    // Atomic: threads of the block meet the same digit; integer sums do not depend on the order.
    if (i < pass.n) atomicAdd(&count[pass.digit(pass.keys[image * pass.n + i])], 1u);
  }
  __syncthreads();  // all items are counted
  pass.counts[(image * kDigits + threadIdx.x) * pass.tiles + tile] = count[threadIdx.x];
}

__device__ __forceinline__ uint32_t warp_prefix_sum(uint32_t value, int lane) {  // inclusive
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

// One warp = one (image, digit): its counts become the sums over earlier tiles. Grid: 8 warps a block, 32 blocks an
// image.
__global__ void __launch_bounds__(kThreads, 6) scan_tiles(Pass pass) {
  const int lane = threadIdx.x & 31;
  const size_t row = size_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  uint32_t* counts = pass.counts + row * pass.tiles;  // (tiles)
  uint32_t before = 0;
  for (uint32_t first = 0; first < pass.tiles; first += 32) {
    const uint32_t i = first + lane, count = i < pass.tiles ? counts[i] : 0;
    const uint32_t through = before + warp_prefix_sum(count, lane);
    if (i < pass.tiles) counts[i] = through - count;
    before = __shfl_sync(kAllLanes, through, 31);
  }
  if (lane == 0) pass.totals[row] = before;
}

// One block = the 2048 items of a tile, warp w = its items [256 w, 256 w + 256), 32 at a time, in order: stable.
// Grid: `tiles` blocks an image.
__global__ void __launch_bounds__(kThreads, 6) move_items(Pass pass) {
  VG_SHARED(uint32_t, seen, [kWarps][kDigits]);  // items of a digit met so far by a warp; at the end their place
  VG_SHARED(uint32_t, warp_total, [kWarps]);
  VG_SHARED(uint32_t,
            ranked, [kRounds][kThreads]);  // each thread's own: digit << 16 | rank in the warp (registers spill)
  const size_t image = blockIdx.x / pass.tiles;
  const uint32_t* keys = pass.keys + image * pass.n;  // (n)
  const uint32_t tile = blockIdx.x % pass.tiles;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int w = 0; w < kWarps; w++) seen[w][threadIdx.x] = 0;

  // Thread d: where digit d of this tile starts = items of smaller digits + items of digit d in earlier tiles.
  const uint32_t total = pass.totals[image * kDigits + threadIdx.x];
  const uint32_t through = warp_prefix_sum(total, lane);
  if (lane == 31) warp_total[warp] = through;
  __syncthreads();  // the totals of all warps are written, all counters are zero
  uint32_t start = through - total + pass.counts[(image * kDigits + threadIdx.x) * pass.tiles + tile];
  for (int w = 0; w < warp; w++) start += warp_total[w];

#pragma unroll 2
  for (int round = 0; round < kRounds; round++) {
    const uint32_t i = tile * kTile + warp * (kTile / kWarps) + round * 32 + lane;
    const bool in = i < pass.n;
    const uint32_t digit = in ? pass.digit(keys[i]) : 0;
    unsigned same = __ballot_sync(kAllLanes, in);  // lanes with an item of my digit
#pragma unroll
    for (int bit = 0; bit < 8; bit++) {
      const bool set = digit >> bit & 1;
      const unsigned with = __ballot_sync(kAllLanes, set);
      same &= set ? with : ~with;
    }
    const uint32_t before = seen[warp][digit];
    __syncwarp();  // every lane has read the counter of its digit before its first lane raises it
    ranked[round][threadIdx.x] = digit << 16 | (before + __popc(same & ((1u << lane) - 1)));
    if (in && lane == __ffs(same) - 1) seen[warp][digit] = before + __popc(same);
    __syncwarp();  // the next round reads raised counters
  }
  __syncthreads();  // the counters of all warps are final
  for (int w = 0; w < kWarps; w++) {
    const uint32_t count = seen[w][threadIdx.x];
    seen[w][threadIdx.x] = start;
    start += count;
  }
  __syncthreads();  // every warp's places are known
#pragma unroll 4
  for (int round = 0; round < kRounds; round++) {
    const uint32_t i = tile * kTile + warp * (kTile / kWarps) + round * 32 + lane;
    if (i >= pass.n) continue;
    const uint32_t mine = ranked[round][threadIdx.x], place = seen[warp][mine >> 16] + (mine & 0xffff);
    pass.next_keys[image * pass.n + place] = keys[i];
    pass.next_pixels[image * pass.n + place] = pass.pixels ? pass.pixels[image * pass.n + i] : i;
  }
}

// One thread = one place in sorted order. Grid: `blocks` blocks an image.
template <class A>
__global__ void __launch_bounds__(kThreads, 4)
    write_entries(Source<A> source, const uint32_t* keys, const uint32_t* pixels, CellEntry<A>* entries,
                  uint2* ranges) {
  const size_t image = blockIdx.x / source.blocks, base = image * source.n;
  const uint32_t i = blockIdx.x % source.blocks * kThreads + threadIdx.x;
  if (i >= source.n) return;
  const uint32_t key = keys[base + i], pixel = pixels[base + i];
  if (key == source.cells) return;
  uint2* range = ranges + image * source.cells + key;
  if (i == 0 || keys[base + i - 1] != key) range->x = i;
  if (i + 1 == source.n || keys[base + i + 1] != key) range->y = i + 1;
  const A keep = source.mask ? 1 - source.mask[base + pixel] : A(1);
  entries[base + i] = {source.x(image, pixel).fraction, source.y(image, pixel).fraction, keep, pixel};
}

template <class A>
struct Scratch {
  CellEntry<A>* entries;
  uint2* ranges;
  uint32_t *keys[2], *pixels[2], *counts, *totals;
  int64_t tiles, bytes;
  Scratch(const FlowWarpParams& p, int64_t images, void* workspace) {
    Pieces pieces{static_cast<char*>(workspace)};
    const int64_t n = p.Ho * p.Wo;
    tiles = (n + kTile - 1) / kTile;
    entries = pieces.take<CellEntry<A>>(images * n);
    ranges = pieces.take<uint2>(images * cell_count(p));
    for (int side = 0; side < 2; side++) keys[side] = pieces.take<uint32_t>(images * n);
    for (int side = 0; side < 2; side++) pixels[side] = pieces.take<uint32_t>(images * n);
    counts = pieces.take<uint32_t>(images * kDigits * tiles);
    totals = pieces.take<uint32_t>(images * kDigits);
    bytes = pieces.used;
  }
};

}  // namespace

template <class A>
int64_t cell_lists_bytes(const FlowWarpParams& p, int64_t images) {
  return Scratch<A>(p, images, nullptr).bytes;
}

template <class A>
const char* build_cell_lists(const FlowWarpParams& p, const A* flow, const A* mask, int64_t images, void* workspace,
                             void* stream, CellLists<A>* lists) {
  const Scratch<A> scratch(p, images, workspace);
  const int64_t n = p.Ho * p.Wo, cells = cell_count(p), blocks = (std::max(n, cells) + kThreads - 1) / kThreads;
  if (too_many(images * blocks) || too_many(images * kDigits)) return kTooManyBlocks;
  const Source<A> source{flow,     mask,     uint32_t(n), uint32_t(cells), uint32_t(blocks),
                         int(p.H), int(p.W), int(p.Wo),   p.mode,          p.padding};
  const dim3 by_pixel(unsigned(images * blocks)), by_tile(unsigned(images * scratch.tiles));
  const dim3 by_digit(unsigned(images * kDigits / kWarps)), threads(kThreads);
  VG_LAUNCH((write_keys<A>), by_pixel, threads, 0, stream, source, scratch.keys[0], scratch.ranges);
  int side = 0;
  for (int shift = 0; cells >> shift; shift += 8, side ^= 1) {  // the largest key is `cells`
    const Pass pass{scratch.keys[side],
                    shift ? scratch.pixels[side] : nullptr,
                    scratch.keys[side ^ 1],
                    scratch.pixels[side ^ 1],
                    scratch.counts,
                    scratch.totals,
                    uint32_t(n),
                    uint32_t(scratch.tiles),
                    shift};
    VG_LAUNCH(count_digits, by_tile, threads, 0, stream, pass);
    VG_LAUNCH(scan_tiles, by_digit, threads, 0, stream, pass);
    VG_LAUNCH(move_items, by_tile, threads, 0, stream, pass);
  }
  VG_LAUNCH((write_entries<A>), by_pixel, threads, 0, stream, source, scratch.keys[side], scratch.pixels[side],
            scratch.entries, scratch.ranges);
  *lists = {scratch.entries, scratch.ranges};
  return launch_error();
}

template int64_t cell_lists_bytes<float>(const FlowWarpParams&, int64_t);
template int64_t cell_lists_bytes<double>(const FlowWarpParams&, int64_t);
template const char* build_cell_lists<float>(const FlowWarpParams&, const float*, const float*, int64_t, void*, void*,
                                             CellLists<float>*);
template const char* build_cell_lists<double>(const FlowWarpParams&, const double*, const double*, int64_t, void*,
                                              void*, CellLists<double>*);

}  // namespace flow_warp_cuda
}  // namespace vgkernels
