// Decides how tests/conv_gru_persistent_emulation.py calls conv_gru's persistent kernels, on copies of numpy arrays.
// Checks nothing: sizes and dtypes are what the test says they are.
#include <pybind11/stl.h>

#include <array>

#include "conv_gru/conv_gru_persistent_cuda.h"
#include "emulator_bindings.h"
#include "numpy_arguments.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

using Sizes = std::array<int64_t, 6>;  // steps, batch, channels, height, width, kernel
using Cut = std::array<int, 3>;        // more clip_blocks than planned; warps, tiles; 0: as planned

ConvGruShape shape_of(const Sizes& sizes) {
  const auto [steps, batch, channels, height, width, kernel] = sizes;
  return {steps, batch, 1, channels, 1, height, width, kernel, false};
}

ConvGruPersistentPlan plan_of(const ConvGruShape& shape, DType dtype, const Cut& cut = {}) {
  ConvGruPersistentPlan plan;
  throw_if(conv_gru_persistent_plan(shape, dtype, &plan));
  plan.clip_blocks += cut[0];
  if (cut[1]) plan.warps = cut[1], plan.tiles = cut[2];
  return plan;
}

// inputs: xg, weight_hh, lengths; outputs: h, output, gates.
void forward(const std::string& dtype, const Sizes& sizes, const std::array<py::object, 3>& inputs,
             const std::array<py::object, 3>& outputs, bool tanh, bool reverse, const Cut& cut, int poison) {
  Blocks blocks;
  const DType type = dtype_named(dtype);
  ConvGruPersistent call{};
  call.shape = shape_of(sizes);
  call.xg = blocks.input(inputs[0]), call.weight = blocks.input(inputs[1]);
  call.lengths = static_cast<const int64_t*>(blocks.input(inputs[2]));
  call.activation = tanh ? Activation::tanh : Activation::relu, call.reverse = reverse;
  call.h = static_cast<float*>(blocks.output(outputs[0])), call.output = blocks.output(outputs[1]);
  call.gates = blocks.output(outputs[2]);
  void* workspace = blocks.block(conv_gru_persistent_workspace(call.shape), poison);
  throw_if(conv_gru_persistent_cuda(call, plan_of(call.shape, type, cut), type, workspace, nullptr));
  blocks.give_back();
}

// inputs: grad_output, past, gates, weight_hh, lengths; outputs: grad_h, grad_rz, grad_n.
void backward(const std::string& dtype, const Sizes& sizes, const std::array<py::object, 5>& inputs,
              const std::array<py::object, 3>& outputs, bool tanh, bool reverse, const Cut& cut, int poison) {
  Blocks blocks;
  const DType type = dtype_named(dtype);
  ConvGruPersistentBackward call{};
  call.shape = shape_of(sizes);
  call.grad_output = blocks.input(inputs[0]), call.past = blocks.input(inputs[1]);
  call.gates = blocks.input(inputs[2]), call.weight = blocks.input(inputs[3]);
  call.lengths = static_cast<const int64_t*>(blocks.input(inputs[4]));
  call.activation = tanh ? Activation::tanh : Activation::relu, call.reverse = reverse;
  call.grad_h = static_cast<float*>(blocks.output(outputs[0]));
  call.grad_rz = blocks.output(outputs[1]), call.grad_n = blocks.output(outputs[2]);
  void* workspace = blocks.block(conv_gru_persistent_workspace(call.shape), poison);
  throw_if(conv_gru_persistent_cuda(call, plan_of(call.shape, type, cut), type, workspace, nullptr));
  blocks.give_back();
}

std::array<int64_t, 5> plan(const std::string& dtype, const Sizes& sizes) {
  const ConvGruPersistentPlan p = plan_of(shape_of(sizes), dtype_named(dtype));
  return {p.clips, p.clip_blocks, p.warps, p.tiles, p.shared_bytes};
}

}  // namespace

PYBIND11_MODULE(conv_gru_persistent_emulated, m) {
  add_emulator(m);
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("plan", &plan);
  m.def(
      "set_device",
      [](int multiprocessors, unsigned resident) {
        emu::config.multiprocessors = multiprocessors, emu::config.resident = resident;
      },
      py::arg("multiprocessors") = 8, py::arg("resident") = 8);
}
