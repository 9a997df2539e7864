// Decides how tests/test_conv_gru_cpu_native.py calls the CPU kernels of conv_gru on numpy arrays, without torch: in
// which ranges of units, and on heap blocks of exactly their size. Checks nothing.
#include <pybind11/stl.h>

#include <array>

#include "common/cpu_isa.h"
#include "conv_gru/conv_gru_cpu.h"
#include "numpy_arguments.h"
#include "pieces.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

struct Split {
  int64_t pieces;
  bool reversed;
  Parallel parallel() const {
    return [*this](int64_t units, int64_t, const Range& run) { in_pieces(units, pieces, reversed, run); };
  }
};

// sizes: T, B, Cin, C, D, H, W, k. inputs: x, h0, weight_ih, weight_hh, bias, lengths. options: volumes, tanh, reverse.
ConvGruForward forward_of(Blocks& blocks, const std::array<int64_t, 8>& sizes, const std::array<py::object, 6>& inputs,
                          const std::array<bool, 3>& options, int algorithm) {
  const auto [steps, batch, input_channels, channels, depth, height, width, kernel] = sizes;
  ConvGruForward p{};
  p.shape = {steps, batch, input_channels, channels, depth, height, width, kernel, options[0]};
  p.x = blocks.input(inputs[0]), p.h0 = blocks.input(inputs[1]);
  p.weight_ih = blocks.input(inputs[2]), p.weight_hh = blocks.input(inputs[3]);
  p.bias = blocks.input(inputs[4]), p.lengths = static_cast<const int64_t*>(blocks.input(inputs[5]));
  p.activation = options[1] ? Activation::tanh : Activation::relu;
  p.reverse = options[2], p.algorithm = ConvAlgorithm(algorithm);
  return p;
}

void require(bool complete) {
  if (!complete) throw std::runtime_error("out of memory");
}

// outputs: output, h_T, gates (None: not kept)
void forward(const std::string& dtype, const std::array<int64_t, 8>& sizes, const std::array<py::object, 6>& inputs,
             const std::array<bool, 3>& options, int algorithm, const std::array<py::object, 3>& outputs, bool packed,
             int64_t pieces, bool reversed) {
  Blocks blocks;
  ConvGruForward p = forward_of(blocks, sizes, inputs, options, algorithm);
  const DType type = dtype_named(dtype);
  const Split split{pieces, reversed};
  void* weights = nullptr;
  if (packed) {
    weights = blocks.block(conv_gru_packed_bytes(p, type), 0xFF);
    require(conv_gru_pack_cpu(p, type, split.parallel(), weights));
  }
  p.output = blocks.output(outputs[0]), p.h_T = blocks.output(outputs[1]), p.gates = blocks.output(outputs[2]);
  require(conv_gru_forward_cpu(p, type, weights, split.parallel()));
  blocks.give_back();
}

// given: output, gates (None: again), grad_output, grad_h_T. gradients: of x, h0, weight_ih, weight_hh, bias.
void backward(const std::string& dtype, const std::array<int64_t, 8>& sizes, const std::array<py::object, 6>& inputs,
              const std::array<bool, 3>& options, int algorithm, const std::array<py::object, 4>& given,
              const std::array<py::object, 5>& gradients, int64_t pieces, bool reversed) {
  Blocks blocks;
  ConvGruBackward b{};
  b.forward = forward_of(blocks, sizes, inputs, options, algorithm);
  b.forward.output = blocks.input(given[0]), b.forward.gates = blocks.input(given[1]);
  b.grad_output = blocks.input(given[2]), b.grad_h_T = blocks.input(given[3]);
  b.grad_x = blocks.output(gradients[0]), b.grad_h0 = blocks.output(gradients[1]);
  b.grad_weight_ih = blocks.output(gradients[2]), b.grad_weight_hh = blocks.output(gradients[3]);
  b.grad_bias = blocks.output(gradients[4]);
  require(conv_gru_backward_cpu(b, dtype_named(dtype), Split{pieces, reversed}.parallel()));
  blocks.give_back();
}

uint64_t fingerprint(const py::array& values, uint64_t seed) {
  return conv_gru_fingerprint(values.data(), values.nbytes(), seed);
}

}  // namespace

PYBIND11_MODULE(conv_gru_cpu_native, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("fingerprint", &fingerprint);
  m.def("isa", &cpu_isa_name);
}
