// What the CUDA files of this room share: who works on which pixel and channels, vector loads, the taps of a pixel.
// Leaves the arithmetic of a tap to flow_warp.h, the sums to the kernels.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/launch.h"
#include "flow_warp/flow_warp.h"

namespace vgkernels {
namespace flow_warp_cuda {

// Model numbers (byte counts for an H100), not measured on a GPU. Tests lower them to reach every path on small data.
struct Policy {
  int64_t int_elements = (int64_t(1) << 31) - (1 << 20);  // a tensor with more gets 64-bit indices
  int64_t scratch_bytes = 64 << 20;                       // images are worked on in groups with scratch below this
  int64_t wanted_blocks = 528;               // 4 a multiprocessor; below, planes are cut into channel slices
  int64_t atomics_below_channels = 32;       // fewer channels: scatter by atomics moves fewer bytes
  int64_t atomics_below_channels_16bit = 8;  // 16-bit gradients scatter through float scratch
};
inline Policy policy;

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

// The tensors of one launch, typed; the pointers a direction has no use for are null.
template <class T_, class Index_>
struct Problem {
  using T = T_;
  using A = Acc<T_>;
  using Index = Index_;
  const T* image;     // (B, C, H, W)
  const A* flow;      // (B, 2, Ho, Wo)
  const A* mask;      // (B, 1, Ho, Wo)
  const T* painted;   // (B, C, Ho, Wo)
  T* out;             // (B, C, Ho, Wo)
  const T* grad_out;  // (B, C, Ho, Wo)
  T* grad_image;      // (B, C, H, W)
  A* grad_flow;       // (B, 2, Ho, Wo)
  A* grad_mask;       // (B, 1, Ho, Wo)
  T* grad_painted;    // (B, C, Ho, Wo)
  int C, H, W, Ho, Wo;
  Interpolation mode;
  Padding padding;

  explicit Problem(const FlowWarpParams& p)
      : image(static_cast<const T*>(p.image)),
        flow(static_cast<const A*>(p.flow)),
        mask(static_cast<const A*>(p.mask)),
        painted(static_cast<const T*>(p.painted)),
        out(static_cast<T*>(p.out)),
        grad_out(nullptr),
        grad_image(nullptr),
        grad_flow(nullptr),
        grad_mask(nullptr),
        grad_painted(nullptr),
        C(int(p.C)),
        H(int(p.H)),
        W(int(p.W)),
        Ho(int(p.Ho)),
        Wo(int(p.Wo)),
        mode(p.mode),
        padding(p.padding) {}
  explicit Problem(const FlowWarpBackwardParams& p) : Problem(static_cast<const FlowWarpParams&>(p)) {
    grad_out = static_cast<const T*>(p.grad_out);
    grad_image = static_cast<T*>(p.grad_image);
    grad_flow = static_cast<A*>(p.grad_flow);
    grad_mask = static_cast<A*>(p.grad_mask);
    grad_painted = static_cast<T*>(p.grad_painted);
  }
};

// Doubles and 64-bit offsets take more registers.
template <class P>
constexpr bool kWide = sizeof(typename P::A) == 8 || sizeof(typename P::Index) == 8;

// A block covers a tile of pixels of one image: 2^lanes lanes a pixel, 2^columns pixels a row.
struct Tiling {
  int lanes, columns;  // log2
  int tiles_x, tiles_y, slices;
  int height, width;
  int slice_channels;  // a multiple of 4, or all of them
};

inline int log2_up(int64_t n) {
  int log2 = 0;
  while ((int64_t(1) << log2) < n) log2++;
  return log2;
}

// lane_items: channels of one lane in channels_last; 0: planes, a lane is a pixel and walks the channels of its slice.
inline Tiling tile(int64_t batch, int64_t C, int64_t height, int64_t width, int lane_items, int64_t* blocks) {
  Tiling t{};
  t.lanes = lane_items ? std::min(5, log2_up((C + lane_items - 1) / lane_items)) : 0;
  const int pixels = 8 - t.lanes;  // log2; a near square in channels_last, whole warps of a row in planes
  t.columns = std::min(lane_items ? (pixels + 1) / 2 : 5, log2_up(width));
  t.columns = std::max(t.columns, pixels - log2_up(height));
  t.height = int(height);
  t.width = int(width);
  t.tiles_x = int(((width - 1) >> t.columns) + 1);
  t.tiles_y = int(((height - 1) >> (pixels - t.columns)) + 1);
  const int64_t one_slice = batch * t.tiles_y * t.tiles_x;
  const int64_t cut = lane_items ? 1 : std::min((C + 3) / 4, (policy.wanted_blocks + one_slice - 1) / one_slice);
  t.slice_channels = int(cut == 1 ? C : ((C + cut - 1) / cut + 3) / 4 * 4);
  t.slices = int((C + t.slice_channels - 1) / t.slice_channels);
  *blocks = one_slice * t.slices;
  return t;
}

struct Spot {
  int b, slice, y, x, lane;
  bool inside;
};

__device__ __forceinline__ Spot spot_of(const Tiling& t) {
  const unsigned pixel = threadIdx.x >> t.lanes, rows = 8 - t.lanes - t.columns;
  unsigned rest = blockIdx.x;
  Spot s;
  s.x = int(((rest % t.tiles_x) << t.columns) + (pixel & ((1u << t.columns) - 1)));
  rest /= t.tiles_x;
  s.y = int(((rest % t.tiles_y) << rows) + (pixel >> t.columns));
  rest /= t.tiles_y;
  s.slice = int(rest % t.slices);
  s.b = int(rest / t.slices);
  s.lane = threadIdx.x & ((1u << t.lanes) - 1);
  s.inside = s.x < t.width && s.y < t.height;
  return s;
}

// ---- vectors of kVector elements, moved as one word ----

template <size_t bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = unsigned long long;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class T, int kVector>
struct Items {
  T item[kVector];
};

// Kept as a word, unpacked on use: a conditional load of separate 16-bit items takes a register for each.
template <class T, int kVector>
struct Pack {
  typename Word<sizeof(T) * kVector>::type word;
  __device__ __forceinline__ Acc<T> operator[](int i) const { return widen(bit_cast<Items<T, kVector>>(word).item[i]); }
};

template <int kVector, class T>
__device__ __forceinline__ Pack<T, kVector> load(const T* from) {
  // reinterpret_cast: the vector travels as one word; vectors_fit() has checked the address.
  return {__ldg(reinterpret_cast<const typename Word<sizeof(T) * kVector>::type*>(from))};
}

template <class T, int kVector>
__device__ __forceinline__ void store(T* to, const Acc<T> (&value)[kVector]) {
  using W = typename Word<sizeof(T) * kVector>::type;
  Items<T, kVector> items;
#pragma unroll
  for (int i = 0; i < kVector; i++) items.item[i] = narrow<T>(value[i]);
  *reinterpret_cast<W*>(to) = bit_cast<W>(items);  // reinterpret_cast: as in load()
}

// Whether every pixel of these channels_last tensors starts at a multiple of `bytes`. Null pointers do.
template <class... Pointers>
bool vectors_fit(int64_t C, size_t item_bytes, size_t bytes, const Pointers*... pointers) {
  return C * item_bytes % bytes == 0 && ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

// ---- the taps of one output pixel ----

template <class P>
struct Taps {
  typename P::Index at[4];  // pixel of the image, tap q = 2 * row + column
  typename P::A weight[4];  // 0 outside the image
  bool inside[4];
  AxisTap<typename P::A> x, y;
};

template <class P>
__device__ __forceinline__ Taps<P> taps_of(const P& p, int b, int y, int x) {
  using A = typename P::A;
  using Index = typename P::Index;
  const Index pixels = Index(p.Ho) * p.Wo;
  const A* flow = p.flow + 2 * b * pixels + Index(y) * p.Wo + x;  // (2, pixels)
  Taps<P> taps;
  taps.x = locate(A(x) + __ldg(flow), p.W, p.mode, p.padding);
  taps.y = locate(A(y) + __ldg(flow + pixels), p.H, p.mode, p.padding);
#pragma unroll
  for (int q = 0; q < 4; q++) {
    const int row = taps.y.cell + (q >> 1), column = taps.x.cell + (q & 1);
    taps.inside[q] = row >= 0 && row < p.H && column >= 0 && column < p.W;
    taps.at[q] = Index(row) * p.W + column;
    const A wy = q >> 1 ? taps.y.fraction : 1 - taps.y.fraction, wx = q & 1 ? taps.x.fraction : 1 - taps.x.fraction;
    taps.weight[q] = taps.inside[q] ? wy * wx : A(0);
  }
  return taps;
}

// Distances in elements from one channel to the next and from one pixel to the next.
template <bool kPlanes, class Index>
struct Pitch {
  Index channel, pixel;
  __device__ __forceinline__ Pitch(int C, int height, int width)
      : channel(kPlanes ? Index(height) * width : 1), pixel(kPlanes ? 1 : C) {}
};

// ---- host: from run-time values to template arguments, and launch errors ----

template <class Run>
const char* with_bool(bool value, const Run& run) {
  return value ? run(std::true_type()) : run(std::false_type());
}

// run(element, index) with values of the element and index types of this call.
template <class Params, class Run>
const char* with_types(const Params& p, DType dtype, const Run& run) {
  const int64_t most = p.B * std::max<int64_t>(p.C, 2) * std::max(p.H * p.W, p.Ho * p.Wo);
  const auto with_index = [&](auto element) {
    return most <= policy.int_elements ? run(element, int()) : run(element, int64_t());
  };
  switch (dtype) {
    case DType::float64:
      return with_index(double());
    case DType::float32:
      return with_index(float());
    case DType::float16:
      return with_index(float16());
    default:
      return with_index(bfloat16());
  }
}

inline const char* sizes_error(const FlowWarpParams& p) {
  const int64_t limit = (int64_t(1) << 31) - 512;
  const bool fits = p.B <= limit && p.C <= limit && p.H <= limit && p.W <= limit && p.Ho <= limit && p.Wo <= limit;
  return fits ? nullptr : "flow_warp: CUDA kernels need every size below 2^31";
}

inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

inline bool too_many(int64_t blocks) { return blocks > (int64_t(1) << 31) - 1; }
constexpr const char* kTooManyBlocks = "flow_warp: too many pixels for one CUDA launch";

}  // namespace flow_warp_cuda
}  // namespace vgkernels
