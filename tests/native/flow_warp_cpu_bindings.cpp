// Decides how tests/test_flow_warp_cpu_native.py calls the CPU kernels of flow_warp on numpy arrays, without torch, in
// which ranges of units, and on which memory: every array is copied to a heap block of exactly its size and back, so
// that ASan sees one byte too far. Checks nothing: sizes and dtypes are what the test says they are.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "common/cpu_isa.h"
#include "flow_warp/flow_warp_cpu.h"
#include "numpy_arguments.h"
#include "pieces.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// sizes: B, C, H, W, Ho, Wo
FlowWarpBackwardParams params_of(Blocks& blocks, std::array<int64_t, 6> sizes, bool channels_last,
                                 const std::string& mode, const std::string& padding, const py::object& image,
                                 const py::object& flow, const py::object& mask, const py::object& painted) {
  FlowWarpBackwardParams p{};
  p.B = sizes[0], p.C = sizes[1], p.H = sizes[2], p.W = sizes[3], p.Ho = sizes[4], p.Wo = sizes[5];
  p.channels_last = channels_last;
  p.mode = mode == "nearest" ? Interpolation::nearest : Interpolation::bilinear;
  p.padding = padding == "zeros" ? Padding::zeros : padding == "border" ? Padding::border : Padding::reflection;
  p.image = blocks.input(image), p.flow = blocks.input(flow);
  p.mask = blocks.input(mask), p.painted = blocks.input(painted);
  return p;
}

const RowSpan* spans_of(Blocks& blocks, const FlowWarpParams& p, DType dtype, int64_t pieces, bool reversed) {
  RowSpan* spans = static_cast<RowSpan*>(blocks.block(p.B * p.Ho * int64_t(sizeof(RowSpan))));
  in_pieces(p.B * p.Ho, pieces, reversed, [&](int64_t begin, int64_t end) {
    flow_warp_spans_cpu(p, dtype, spans, begin, end);
    return true;
  });
  return spans;
}

void forward(const std::string& dtype, std::array<int64_t, 6> sizes, bool channels_last, const std::string& mode,
             const std::string& padding, const py::object& image, const py::object& flow, const py::object& mask,
             const py::object& painted, const py::object& out, int64_t pieces, bool reversed) {
  Blocks blocks;
  FlowWarpParams p = params_of(blocks, sizes, channels_last, mode, padding, image, flow, mask, painted);
  p.out = blocks.output(out);
  const DType type = dtype_named(dtype);
  const RowSpan* spans = spans_of(blocks, p, type, pieces, reversed);
  in_pieces(flow_warp_forward_units_cpu(p, type), pieces, reversed,
            [&](int64_t begin, int64_t end) { return flow_warp_forward_cpu(p, type, spans, begin, end); });
  blocks.give_back();
}

void backward(const std::string& dtype, std::array<int64_t, 6> sizes, bool channels_last, const std::string& mode,
              const std::string& padding, const py::object& image, const py::object& flow, const py::object& mask,
              const py::object& painted, const py::object& grad_out, const py::object& grad_image,
              const py::object& grad_flow, const py::object& grad_mask, const py::object& grad_painted, int64_t pieces,
              bool reversed) {
  Blocks blocks;
  FlowWarpBackwardParams p = params_of(blocks, sizes, channels_last, mode, padding, image, flow, mask, painted);
  p.grad_out = blocks.input(grad_out), p.grad_image = blocks.output(grad_image);
  p.grad_flow = blocks.output(grad_flow), p.grad_mask = blocks.output(grad_mask);
  p.grad_painted = blocks.output(grad_painted);
  const DType type = dtype_named(dtype);
  const RowSpan* spans = spans_of(blocks, p, type, pieces, reversed);
  void* scratch = blocks.block(flow_warp_backward_scratch_cpu(p, type), 0xFF);  // NaN
  in_pieces(p.B * p.H, pieces, reversed,
            [&](int64_t begin, int64_t end) { return flow_warp_backward_cpu(p, type, spans, scratch, begin, end); });
  blocks.give_back();
}

}  // namespace

PYBIND11_MODULE(flow_warp_cpu_native, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("isa", &cpu_isa_name);
}
