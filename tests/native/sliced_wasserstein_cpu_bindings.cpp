// Decides how tests/test_sliced_wasserstein_cpu_native.py calls the CPU kernels of sliced_wasserstein on numpy arrays,
// without torch: in which ranges of units, and on heap blocks of exactly their size. Checks nothing.
#include <pybind11/stl.h>

#include <array>

#include "common/cpu_isa.h"
#include "numpy_arguments.h"
#include "pieces.h"
#include "sliced_wasserstein/sliced_wasserstein_cpu.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// sizes: batch, n, m, dim, directions, groups. outputs: value, grad_x, grad_y, grad_projections; None: not asked for.
void distance(const std::string& dtype, const py::object& x, const py::object& y, const py::object& projections,
              const std::array<int64_t, 6>& sizes, double p, const std::array<py::object, 4>& outputs,
              const std::array<py::object, 2>& weights, int64_t pieces, bool reversed) {
  Blocks blocks;
  SlicedWassersteinParams params{};
  const auto [batch, n, m, dim, directions, groups] = sizes;
  params.x = blocks.input(x), params.y = blocks.input(y), params.projections = blocks.input(projections);
  params.x_weights = static_cast<const double*>(blocks.input(weights[0]));
  params.y_weights = static_cast<const double*>(blocks.input(weights[1]));
  params.batch = batch, params.n = n, params.m = m, params.dim = dim;
  params.directions = directions, params.groups = groups, params.p = p;
  params.value = blocks.output(outputs[0]), params.grad_x = blocks.output(outputs[1]);
  params.grad_y = blocks.output(outputs[2]), params.grad_projections = blocks.output(outputs[3]);
  const Parallel parallel = [&](int64_t units, int64_t, const Range& run) { in_pieces(units, pieces, reversed, run); };
  if (!sliced_wasserstein_cpu(params, dtype_named(dtype), parallel)) throw std::runtime_error("out of memory");
  blocks.give_back();
}

}  // namespace

PYBIND11_MODULE(sliced_wasserstein_cpu_native, m) {
  m.def("distance", &distance);
  m.def("isa", &cpu_isa_name);
}
