// Decides how tests/test_flow_warp_emulated.py calls the CUDA launchers of flow_warp on numpy arrays, where they lie.
// 16-bit arrays come as any 2-byte dtype. Checks nothing: sizes and dtypes are what the test says they are.
#include <pybind11/stl.h>

#include <array>

#include "emulator_bindings.h"
#include "flow_warp/flow_warp_cuda.h"
#include "flow_warp/flow_warp_sort.h"
#include "numpy_arguments.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// sizes: B, C, H, W, Ho, Wo
FlowWarpBackwardParams params_of(std::array<int64_t, 6> sizes, bool channels_last, const std::string& mode,
                                 const std::string& padding, const py::object& image, const py::object& flow,
                                 const py::object& mask, const py::object& painted) {
  FlowWarpBackwardParams p{};
  p.B = sizes[0], p.C = sizes[1], p.H = sizes[2], p.W = sizes[3], p.Ho = sizes[4], p.Wo = sizes[5];
  p.channels_last = channels_last;
  p.mode = mode == "nearest" ? Interpolation::nearest : Interpolation::bilinear;
  p.padding = padding == "zeros" ? Padding::zeros : padding == "border" ? Padding::border : Padding::reflection;
  p.image = input(image), p.flow = input(flow), p.mask = input(mask), p.painted = input(painted);
  return p;
}

void forward(const std::string& dtype, std::array<int64_t, 6> sizes, bool channels_last, const std::string& mode,
             const std::string& padding, const py::object& image, const py::object& flow, const py::object& mask,
             const py::object& painted, const py::object& out) {
  FlowWarpParams p = params_of(sizes, channels_last, mode, padding, image, flow, mask, painted);
  p.out = output(out);
  throw_if(flow_warp_forward_cuda(p, dtype_named(dtype), nullptr));
}

// Returns the bytes of workspace; the workspace is filled with `poison` before.
int64_t backward(const std::string& dtype, std::array<int64_t, 6> sizes, bool channels_last, const std::string& mode,
                 const std::string& padding, const py::object& image, const py::object& flow, const py::object& mask,
                 const py::object& painted, const py::object& grad_out, const py::object& grad_image,
                 const py::object& grad_flow, const py::object& grad_mask, const py::object& grad_painted,
                 bool deterministic, int poison) {
  FlowWarpBackwardParams p = params_of(sizes, channels_last, mode, padding, image, flow, mask, painted);
  p.grad_out = input(grad_out), p.grad_image = output(grad_image), p.grad_flow = output(grad_flow);
  p.grad_mask = output(grad_mask), p.grad_painted = output(grad_painted);
  const int64_t bytes = flow_warp_backward_workspace_cuda(p, dtype_named(dtype), deterministic);
  const std::unique_ptr<char, void (*)(void*)> workspace(static_cast<char*>(malloc(bytes)), free);  // ASan's red zones
  std::fill_n(workspace.get(), bytes, char(poison));
  throw_if(flow_warp_backward_cuda(p, dtype_named(dtype), deterministic, workspace.get(), nullptr));
  return bytes;
}

// The pixels of each image in sorted order, and the range of each cell. flow: (B, 2, Ho, Wo) float32.
py::tuple cell_lists(std::array<int64_t, 6> sizes, const std::string& padding, const py::object& flow, int poison) {
  const auto p = params_of(sizes, false, "bilinear", padding, py::none(), flow, py::none(), py::none());
  const int64_t bytes = flow_warp_cuda::cell_lists_bytes<float>(p, p.B), pixels = p.Ho * p.Wo;
  const std::unique_ptr<char, void (*)(void*)> workspace(static_cast<char*>(malloc(bytes)), free);
  std::fill_n(workspace.get(), bytes, char(poison));
  flow_warp_cuda::CellLists<float> lists;
  throw_if(flow_warp_cuda::build_cell_lists(p, static_cast<const float*>(p.flow), static_cast<const float*>(nullptr),
                                            p.B, workspace.get(), nullptr, &lists));
  py::array_t<int64_t> order({p.B, pixels}), ranges({p.B, flow_warp_cuda::cell_count(p), int64_t(2)});
  for (int64_t i = 0; i < p.B * pixels; i++) order.mutable_data()[i] = lists.entries[i].pixel;
  for (int64_t i = 0; i < ranges.size() / 2; i++) {
    ranges.mutable_data()[2 * i] = lists.ranges[i].x;
    ranges.mutable_data()[2 * i + 1] = lists.ranges[i].y;
  }
  return py::make_tuple(order, ranges);
}

FlowWarpBackwardParams of_sizes(std::array<int64_t, 6> sizes) {
  return params_of(sizes, false, "bilinear", "border", py::none(), py::none(), py::none(), py::none());
}

// Why a deterministic backward of these sizes is refused. It gets no memory: that it needs some must not come first.
const char* refusal(std::array<int64_t, 6> sizes) {
  FlowWarpBackwardParams p = of_sizes(sizes);
  p.grad_image = &p;
  return flow_warp_backward_cuda(p, DType::float32, true, nullptr, nullptr);
}

// Of the index that kernels of these sizes count elements with.
int64_t index_bytes(std::array<int64_t, 6> sizes) {
  int64_t bytes = 0;
  flow_warp_cuda::with_types(of_sizes(sizes), DType::float32, [&](auto, auto index) -> const char* {
    bytes = sizeof(index);
    return nullptr;
  });
  return bytes;
}

void set_policy(int64_t int_elements, int64_t scratch_bytes, int64_t wanted_blocks, int64_t atomics_below_channels) {
  flow_warp_cuda::policy = {int_elements, scratch_bytes, wanted_blocks, atomics_below_channels, atomics_below_channels};
}

}  // namespace

PYBIND11_MODULE(flow_warp_emulated, m) {
  add_emulator(m);
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("cell_lists", &cell_lists);
  m.def("refusal", &refusal);
  m.def("index_bytes", &index_bytes);
  m.def("set_policy", &set_policy);
}
