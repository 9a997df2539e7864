// Decides how tests/test_svc_projection_cpu_native.py calls the CPU kernels of svc_projection on numpy arrays, without
// torch: in which ranges of units, and on heap blocks of exactly their size. Checks nothing.
#include <pybind11/stl.h>

#include <tuple>

#include "common/cpu_isa.h"
#include "numpy_arguments.h"
#include "pieces.h"
#include "svc_projection/svc_projection_cpu.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// array, rows, columns, row stride, column stride, bound
using Matrix = std::tuple<py::object, int64_t, int64_t, int64_t, int64_t, double>;

// Clips the arrays in place; returns the report, (count, 4), filled with `poison` before.
py::array_t<double> project(const std::string& dtype, const std::vector<Matrix>& arrays, bool skip_nonfinite,
                            int poison, int64_t pieces, bool reversed) {
  Blocks blocks;
  std::vector<SvcMatrix> matrices;
  for (const auto& [array, rows, columns, row_stride, column_stride, bound] : arrays)
    matrices.push_back({blocks.output(array), rows, columns, row_stride, column_stride, bound});
  const int64_t count = int64_t(matrices.size());
  auto* report = static_cast<SvcReport*>(blocks.block(count * int64_t(sizeof(SvcReport)), poison));
  const Parallel parallel = [&](int64_t units, int64_t, const Range& run) { in_pieces(units, pieces, reversed, run); };
  if (!svc_projection_cpu(matrices.data(), count, dtype_named(dtype), skip_nonfinite, parallel, report))
    throw std::runtime_error("out of memory");
  blocks.give_back();
  py::array_t<double> result({count, int64_t(4)});
  std::memcpy(result.mutable_data(), report, size_t(count) * sizeof(SvcReport));
  return result;
}

}  // namespace

PYBIND11_MODULE(svc_projection_cpu_native, m) {
  m.def("project", &project, py::arg("dtype"), py::arg("arrays"), py::arg("skip"), py::arg("poison"),
        py::arg("pieces") = 1, py::arg("reversed") = false);
  m.def("tolerance", [](const std::string& dtype, int64_t rows) { return svc_tolerance(dtype_named(dtype), rows); });
  m.def("isa", &cpu_isa_name);
}
