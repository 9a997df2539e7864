// conv_gru's backward on CUDA, all steps in one launch: decides what the blocks do between two barriers of the grid.
// Gradients to x, weights and bias are products over all steps at once, which the caller makes of grad_rz and grad_n.
#include "conv_gru/conv_gru_gates_cuda.h"
#include "conv_gru/conv_gru_persistent_cuda.h"
#include "conv_gru/conv_gru_persistent_maps_cuda.h"

namespace vgkernels {
namespace conv_gru_persistent {
namespace {

// Blocks as in the forward. g is the gradient to the state, complete where a step begins.
template <class T, int kTiles>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    conv_gru_backward(ConvGruPersistentBackward p, int clips, Workspace<T> workspace) {
  VG_DYNAMIC_SHARED(T, shared);
  const Maps<T, kTiles> maps(p.shape, clips, p.lengths, workspace.weights, shared);
  const int C = maps.channels, channel = maps.channel;
  const int64_t map = maps.all_pixels * C;
  float* grad_h = maps.own(p.grad_h, C);
  float g[1][kTiles][4] = {};
  maps.each([&](int tile, int i, int pixel) {
    const float2 last = load_pair(grad_h + pixel * C + channel);
    g[0][tile][2 * i] = last.x, g[0][tile][2 * i + 1] = last.y;
  });
  unsigned barriers = 0;
  for (int64_t left = p.shape.steps - 1; left >= 0; left--) {  // steps before this one
    const int64_t step = p.reverse ? p.shape.steps - 1 - left : left;
    const T* given = maps.own(static_cast<const T*>(p.grad_output) + step * map, C);
    const T* past = maps.own(static_cast<const T*>(p.past) + step * map, C);
    const T* kept = maps.own(static_cast<const T*>(p.gates) + step * 3 * map, C);
    T* all_grad_rz = static_cast<T*>(p.grad_rz) + step * 2 * map;
    T* all_grad_n = static_cast<T*>(p.grad_n) + step * map;
    T *grad_rz = maps.own(all_grad_rz, 2 * C), *grad_n = maps.own(all_grad_n, C);

    maps.each([&](int tile, int i, int pixel) {
      const int at = pixel * C + channel;
      const float2 more = load_pair(given + at);
      float &g0 = g[0][tile][2 * i], &g1 = g[0][tile][2 * i + 1];
      g0 += more.x, g1 += more.y;
      float2 to_z = make_float2(0, 0), to_n = make_float2(0, 0);
      if (maps.has_step(tile, i, step)) {
        const float2 h = load_pair(past + at), z = load_pair(kept + map + at), n = load_pair(kept + 2 * map + at);
        to_z = make_float2(g0 * (h.x - n.x) * z.x * (1 - z.x), g1 * (h.y - n.y) * z.y * (1 - z.y));
        to_n.x = g0 * (1 - z.x) * conv_gru_gates::slope(p.activation, n.x);
        to_n.y = g1 * (1 - z.y) * conv_gru_gates::slope(p.activation, n.y);
        g0 *= z.x, g1 *= z.y;
      }
      store_pair(grad_rz + 2 * pixel * C + C + channel, to_z.x, to_z.y);
      store_pair(grad_n + at, to_n.x, to_n.y);
    });

    prim::grid_sync(workspace.counter, &barriers);  // grad_n of all channels is there
    float sum[1][kTiles][4] = {};                   // to r . h
    maps.add_products(all_grad_n, C, 2, sum);
    maps.each([&](int tile, int i, int pixel) {
      const int at = pixel * C + channel;
      float2 to_r = make_float2(0, 0);
      if (maps.has_step(tile, i, step)) {
        const float2 h = load_pair(past + at), r = load_pair(kept + at);
        const float sum0 = sum[0][tile][2 * i], sum1 = sum[0][tile][2 * i + 1];
        to_r = make_float2(sum0 * h.x * r.x * (1 - r.x), sum1 * h.y * r.y * (1 - r.y));
        g[0][tile][2 * i] += sum0 * r.x, g[0][tile][2 * i + 1] += sum1 * r.y;
      }
      store_pair(grad_rz + 2 * pixel * C + channel, to_r.x, to_r.y);
    });

    prim::grid_sync(workspace.counter, &barriers);  // grad_rz of all channels is there
    maps.add_products(all_grad_rz, 2 * C, 0, g);
    maps.add_products(all_grad_rz + C, 2 * C, 1, g);
  }
  maps.each([&](int tile, int i, int pixel) {
    store_pair(grad_h + pixel * C + channel, g[0][tile][2 * i], g[0][tile][2 * i + 1]);
  });
}

}  // namespace
}  // namespace conv_gru_persistent

const char* conv_gru_persistent_cuda(const ConvGruPersistentBackward& call, const ConvGruPersistentPlan& plan,
                                     DType dtype, void* workspace, void* stream) {
  using namespace conv_gru_persistent;
  if (call.shape.batch == 0) return nullptr;
  return with_half_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Workspace<T> space(call.shape, workspace);
    if (const char* error = prepare(call.shape, call.weight, true, space, stream)) return error;
    return run(call, plan, space, stream, [](auto tiles) { return &conv_gru_backward<T, tiles()>; });
  });
}

}  // namespace vgkernels
