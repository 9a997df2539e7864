// Decides how tests/conv_gru_emulation.py calls the CUDA launchers of conv_gru, on numpy arrays where they lie. Checks
// nothing: sizes and dtypes are what the test says they are.
#include <pybind11/stl.h>

#include <array>
#include <string>

#include "conv_gru/conv_gru_cuda.h"
#include "emulator_bindings.h"
#include "numpy_arguments.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// batch, inputs of the operand, channels, depth, height, width, kernel, volumes
using Sizes = std::array<int64_t, 8>;

ConvGruProduct product_of(const Sizes& sizes, const py::object& operand, const py::object& weight) {
  const auto [batch, inputs, channels, depth, height, width, kernel, volumes] = sizes;
  return {{1, batch, inputs, channels, depth, height, width, kernel, volumes != 0}, input(operand), input(weight)};
}
const int64_t* lengths_of(const py::object& lengths) { return static_cast<const int64_t*>(input(lengths)); }
void reset_update(const std::string& dtype, const Sizes& sizes, const py::object& operand, const py::object& weight,
                  const py::object& xg, const py::object& h, const py::object& rh, const py::object& r,
                  const py::object& z) {
  const ConvGruResetUpdate p{input(xg), input(h), output(rh), output(r), output(z)};
  throw_if(conv_gru_cuda(product_of(sizes, operand, weight), p, dtype_named(dtype), nullptr));
}

void candidate(const std::string& dtype, const Sizes& sizes, const py::object& operand, const py::object& weight,
               const py::object& xg, const py::object& z, const py::object& h, const py::object& out,
               const py::object& n, const py::object& lengths, int64_t step, bool tanh) {
  const ConvGruCandidate p{input(xg),           input(z), output(h),          output(out), output(n),
                           lengths_of(lengths), step,     activation_of(tanh)};
  throw_if(conv_gru_cuda(product_of(sizes, operand, weight), p, dtype_named(dtype), nullptr));
}

void candidate_backward(const std::string& dtype, const Sizes& sizes, const py::object& operand,
                        const py::object& weight, const py::object& grad_output, const py::object& h,
                        const py::object& z, const py::object& n, const py::object& grad_h, const py::object& grad_rz,
                        const py::object& grad_n, const py::object& lengths, int64_t step, bool tanh) {
  const ConvGruCandidateBackward p{
      input(grad_output),  input(h), input(z),           input(n), output(grad_h), output(grad_rz), output(grad_n),
      lengths_of(lengths), step,     activation_of(tanh)};
  throw_if(conv_gru_cuda(product_of(sizes, operand, weight), p, dtype_named(dtype), nullptr));
}

void reset_backward(const std::string& dtype, const Sizes& sizes, const py::object& operand, const py::object& weight,
                    const py::object& h, const py::object& r, const py::object& grad_h, const py::object& grad_rz) {
  const ConvGruResetBackward p{input(h), input(r), output(grad_h), output(grad_rz)};
  throw_if(conv_gru_cuda(product_of(sizes, operand, weight), p, dtype_named(dtype), nullptr));
}

}  // namespace

PYBIND11_MODULE(conv_gru_emulated, m) {
  add_emulator(m);
  m.def("reset_update", &reset_update);
  m.def("candidate", &candidate);
  m.def("candidate_backward", &candidate_backward);
  m.def("reset_backward", &reset_backward);
}
