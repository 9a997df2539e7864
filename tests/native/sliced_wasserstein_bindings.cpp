// Decides how tests/sliced_wasserstein_emulation.py calls the CUDA launchers of sliced_wasserstein, on copies of numpy
// arrays. Checks nothing: sizes and dtypes are what the test says they are.
#include <pybind11/stl.h>

#include <array>

#include "emulator_bindings.h"
#include "numpy_arguments.h"
#include "sliced_wasserstein/sliced_wasserstein_cuda.h"
#include "sliced_wasserstein/sliced_wasserstein_rows_cuda.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// A copy of the array's bytes that begins `shift` bytes into its block.
const void* shifted(Blocks* blocks, const py::object& array, int64_t shift) {
  if (array.is_none()) return nullptr;
  const auto values = py::cast<py::array>(array);
  char* copy = static_cast<char*>(blocks->block(values.nbytes() + shift)) + shift;
  std::memcpy(copy, values.data(), size_t(values.nbytes()));
  return copy;
}

// sizes: batch, n, m, dim, directions, groups. outputs: value, grad_x, grad_y, grad_projections; None: not asked for.
// The workspace is filled with `poison` before; the samples begin `shift` bytes into their blocks.
void distance(const std::string& dtype, const py::object& x, const py::object& y, const py::object& projections,
              const std::array<int64_t, 6>& sizes, double p, const std::array<py::object, 4>& outputs, int poison,
              int64_t shift) {
  Blocks blocks;
  const auto [batch, n, m, dim, directions, groups] = sizes;
  SlicedWassersteinParams params{};
  params.x = shifted(&blocks, x, shift), params.y = shifted(&blocks, y, shift);
  params.projections = blocks.input(projections);
  params.batch = batch, params.n = n, params.m = m, params.dim = dim;
  params.directions = directions, params.groups = groups, params.p = p;
  params.value = blocks.output(outputs[0]), params.grad_x = blocks.output(outputs[1]);
  params.grad_y = blocks.output(outputs[2]), params.grad_projections = blocks.output(outputs[3]);
  const DType type = dtype_named(dtype);
  void* workspace = blocks.block(sliced_wasserstein_workspace_cuda(params, type), poison);
  throw_if(sliced_wasserstein_cuda(params, type, workspace, nullptr));
  blocks.give_back();
}

int64_t workspace(const std::string& dtype, const std::array<int64_t, 6>& sizes, bool gradients) {
  const auto [batch, n, m, dim, directions, groups] = sizes;
  SlicedWassersteinParams params{};
  params.batch = batch, params.n = n, params.m = m, params.dim = dim;
  params.directions = directions, params.groups = groups;
  params.projections = &params;  // only whether it is null matters
  params.grad_x = params.grad_projections = gradients ? &params : nullptr;
  return sliced_wasserstein_workspace_cuda(params, dtype_named(dtype));
}

const char* refusal(const std::array<int64_t, 6>& sizes, bool weights) {
  const auto [batch, n, m, dim, directions, groups] = sizes;
  const double weight = 1;
  SlicedWassersteinParams params{};
  params.batch = batch, params.n = n, params.m = m, params.dim = dim;
  params.directions = directions, params.groups = groups;
  if (weights) params.x_weights = params.y_weights = &weight;
  return sliced_wasserstein_cuda(params, DType::float32, nullptr, nullptr);
}

}  // namespace

PYBIND11_MODULE(sliced_wasserstein_emulated, m) {
  add_emulator(m);
  m.def("distance", &distance);
  m.def("workspace", &workspace);
  m.def("refusal", &refusal);
  m.def(
      "set_policy",
      [](int64_t chunk_bytes, int sort_threads, bool tensor_cores, int64_t wanted_blocks, int64_t piece) {
        swd_cuda::policy = {chunk_bytes, sort_threads, tensor_cores, wanted_blocks, piece};
      },
      py::arg("chunk_bytes") = 32 << 20, py::arg("sort_threads") = 512, py::arg("tensor_cores") = true,
      py::arg("wanted_blocks") = 128, py::arg("piece") = 512);
}
