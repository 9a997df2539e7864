// conv_gru on CUDA, all steps in one launch: decides what the blocks do between two barriers of the grid, which calls
// they can do, and how the recurrent weights are packed for them. The product is in conv_gru_persistent_maps_cuda.h.
#include "conv_gru/conv_gru_persistent_cuda.h"

#include <algorithm>

#include "common/workspace.h"
#include "conv_gru/conv_gru_gates_cuda.h"
#include "conv_gru/conv_gru_persistent_maps_cuda.h"

namespace vgkernels {
namespace conv_gru_persistent {
namespace {

// Block x: channels 8 x to 8 x + 7. Block y: some clips. A block without clips still comes to every barrier.
template <class T, int kTiles>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    conv_gru_forward(ConvGruPersistent p, int clips, Workspace<T> workspace) {
  VG_DYNAMIC_SHARED(T, shared);
  const Maps<T, kTiles> maps(p.shape, clips, p.lengths, workspace.weights, shared);
  const int C = maps.channels, channel = maps.channel;
  const int64_t map = maps.all_pixels * C;
  float* state = maps.own(p.h, C);
  T *start = maps.own(workspace.start, C), *rh = maps.own(workspace.rh, C);
  float h[kTiles][4] = {}, z[kTiles][4];
  maps.each([&](int tile, int i, int pixel) {
    const int at = pixel * C + channel;
    const float2 first = load_pair(state + at);
    h[tile][2 * i] = first.x, h[tile][2 * i + 1] = first.y;
    store_pair(start + at, first.x, first.y);
  });
  const T* before = workspace.start;
  unsigned barriers = 0;
  for (int64_t done = 0; done < p.shape.steps; done++) {
    const int64_t step = p.reverse ? p.shape.steps - 1 - done : done;
    const T* xg = maps.own(static_cast<const T*>(p.xg) + step * 3 * map, 3 * C);
    T* kept = p.gates ? maps.own(static_cast<T*>(p.gates) + step * 3 * map, C) : nullptr;
    const auto keep = [&](int gate, int at, float first, float second) {
      if (kept) store_pair(kept + gate * map + at, first, second);
    };

    float sums[2][kTiles][4] = {};
    maps.each([&](int tile, int i, int pixel) {
#pragma unroll
      for (int gate = 0; gate < 2; gate++) {
        const float2 x = load_pair(xg + (pixel * 3 + gate) * C + channel);
        sums[gate][tile][2 * i] = x.x, sums[gate][tile][2 * i + 1] = x.y;
      }
    });
    prim::grid_sync(workspace.counter, &barriers);  // h of all channels is there
    maps.add_products(before, C, 0, sums);
    maps.each([&](int tile, int i, int pixel) {
      const int at = pixel * C + channel;
      float r[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        r[j] = conv_gru_gates::sigmoid(sums[0][tile][2 * i + j]);
        z[tile][2 * i + j] = conv_gru_gates::sigmoid(sums[1][tile][2 * i + j]);
      }
      store_pair(rh + at, r[0] * h[tile][2 * i], r[1] * h[tile][2 * i + 1]);
      keep(0, at, r[0], r[1]);
      keep(1, at, z[tile][2 * i], z[tile][2 * i + 1]);
    });

    float sum[1][kTiles][4] = {};
    maps.each([&](int tile, int i, int pixel) {
      const float2 x = load_pair(xg + (pixel * 3 + 2) * C + channel);
      sum[0][tile][2 * i] = x.x, sum[0][tile][2 * i + 1] = x.y;
    });
    prim::grid_sync(workspace.counter, &barriers);  // r . h of all channels is there
    maps.add_products(workspace.rh, C, 2, sum);
    T* all_output = static_cast<T*>(p.output) + step * map;
    T* output = maps.own(all_output, C);
    maps.each([&](int tile, int i, int pixel) {
      const int at = pixel * C + channel;
      const bool has_step = maps.has_step(tile, i, step);
      float n[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float& now = h[tile][2 * i + j];
        n[j] = conv_gru_gates::act(p.activation, sum[0][tile][2 * i + j]);
        if (has_step) now = n[j] + z[tile][2 * i + j] * (now - n[j]);
      }
      store_pair(output + at, h[tile][2 * i], h[tile][2 * i + 1]);
      keep(2, at, n[0], n[1]);
    });
    before = all_output;
  }
  maps.each(
      [&](int tile, int i, int pixel) { store_pair(state + pixel * C + channel, h[tile][2 * i], h[tile][2 * i + 1]); });
}

// A thread is the 8 numbers that a lane loads at once: column `lane / 4`, rows 8 (lane % 4) to 8 (lane % 4) + 7.
template <class T>
__global__ void __launch_bounds__(256) pack_weights(const T* weight, T* packed, int C, int taps, bool backward) {
  const int64_t item = int64_t(blockIdx.x) * 256 + threadIdx.x;
  int64_t rest = item;
  const int lane = int(rest % 32), gate = int((rest /= 32) % 3), tap = int((rest /= 3) % taps);
  const int chunk = int((rest /= taps) % (C / kChunk)), column = int(rest / (C / kChunk)) * kBlockChannels + lane / 4;
  if (column >= C) return;
#pragma unroll
  for (int j = 0; j < kLane; j++) {
    const int row = chunk * kChunk + lane % 4 * kLane + j;
    const int64_t out = gate * C + (backward ? row : column), in = backward ? column : row;
    packed[item * kLane + j] = weight[(out * C + in) * taps + (backward ? taps - 1 - tap : tap)];
  }
}

int64_t device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  const bool told =
      cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  return told ? value : 0;
}

}  // namespace

template <class T>
Workspace<T>::Workspace(const ConvGruShape& shape, void* memory) {
  Pieces pieces{static_cast<char*>(memory)};
  const int64_t map = shape.batch * shape.pixels() * shape.channels;
  counter = pieces.take<unsigned>(1);
  weights = pieces.take<T>(3 * shape.channels * shape.channels * shape.taps());
  start = pieces.take<T>(map);
  rh = pieces.take<T>(map);
  bytes = pieces.used;
}

template <class T>
const char* prepare(const ConvGruShape& shape, const void* weight_hh, bool backward, const Workspace<T>& workspace,
                    void* stream) {
  const int64_t lanes = 3 * shape.channels * shape.channels * shape.taps() / kLane;
  VG_LAUNCH(pack_weights<T>, dim3(unsigned((lanes + 255) / 256)), 256, 0, stream, static_cast<const T*>(weight_hh),
            workspace.weights, int(shape.channels), int(shape.taps()), backward);
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess)
    error = cudaMemsetAsync(workspace.counter, 0, sizeof(unsigned), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template struct Workspace<bfloat16>;
template struct Workspace<float16>;
template const char* prepare(const ConvGruShape&, const void*, bool, const Workspace<bfloat16>&, void*);
template const char* prepare(const ConvGruShape&, const void*, bool, const Workspace<float16>&, void*);

}  // namespace conv_gru_persistent

int64_t conv_gru_persistent_workspace(const ConvGruShape& shape) {
  return conv_gru_persistent::Workspace<bfloat16>(shape, nullptr).bytes;
}

const char* conv_gru_persistent_plan(const ConvGruShape& shape, DType dtype, ConvGruPersistentPlan* plan) {
  using namespace conv_gru_persistent;
  if (dtype != DType::bfloat16 && dtype != DType::float16) return "the persistent kernels are for 16-bit dtypes";
  if (shape.volumes || shape.depth != 1) return "the persistent kernels are for 2-D maps";
  if (shape.channels % kChunk) return "the persistent kernels need channels that are a multiple of 32";
  if (!device_attribute(cudaDevAttrCooperativeLaunch)) return "the device has no cooperative launch";
  const int64_t channel_blocks = shape.channels / kBlockChannels;
  const int64_t clip_blocks = device_attribute(cudaDevAttrMultiProcessorCount) / channel_blocks;
  if (clip_blocks == 0) return "the device has fewer multiprocessors than 1 for 8 channels";
  const int64_t clips = std::max<int64_t>(1, (shape.batch + clip_blocks - 1) / clip_blocks);
  const int64_t pixels = clips * shape.pixels(), tiles = (pixels + kTile - 1) / kTile;
  if (tiles > kMostWarps * kMostTiles) return "a block of the persistent kernels has room for 512 pixels";
  const int64_t shared = 2 * (slice_numbers(shape.channels, shape.taps()) + 2 * pixels * kChunk);
  if (shared > device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return "a multiprocessor's shared memory has no room for its weights and pixels";
  plan->clips = int(clips);
  plan->clip_blocks = int((shape.batch + clips - 1) / clips);
  plan->warps = kMostWarps;
  plan->tiles = tiles <= kMostWarps ? 1 : tiles <= 2 * kMostWarps ? 2 : 4;
  plan->shared_bytes = shared;
  return nullptr;
}

const char* conv_gru_persistent_cuda(const ConvGruPersistent& call, const ConvGruPersistentPlan& plan, DType dtype,
                                     void* workspace, void* stream) {
  using namespace conv_gru_persistent;
  if (call.shape.batch == 0) return nullptr;
  return with_half_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Workspace<T> space(call.shape, workspace);
    if (const char* error = prepare(call.shape, call.weight, false, space, stream)) return error;
    return run(call, plan, space, stream, [](auto tiles) { return &conv_gru_forward<T, tiles()>; });
  });
}

}  // namespace vgkernels
