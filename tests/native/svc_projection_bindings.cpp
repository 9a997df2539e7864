// Decides how tests/svc_projection_emulation.py calls the CUDA launchers of svc_projection, on copies of numpy arrays.
// 16-bit arrays come as any 2-byte dtype. Checks nothing: sizes and dtypes are what the test says they are.
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "emulator_bindings.h"
#include "numpy_arguments.h"
#include "svc_projection/svc_projection_cuda.h"
#include "svc_projection/svc_projection_layers_cuda.h"

namespace py = pybind11;
using namespace vgkernels;

namespace {

// array, rows, columns, row stride, column stride, bound
using Matrix = std::tuple<py::object, int64_t, int64_t, int64_t, int64_t, double>;

// Clips the arrays in place; returns the report, (count, 4). Workspace and report are filled with `poison` before.
py::array_t<double> project(const std::string& dtype, const std::vector<Matrix>& arrays, bool skip_nonfinite,
                            int poison) {
  Blocks blocks;
  std::vector<SvcMatrix> matrices;
  for (const auto& [array, rows, columns, row_stride, column_stride, bound] : arrays)
    matrices.push_back({blocks.output(array), rows, columns, row_stride, column_stride, bound});
  const DType type = dtype_named(dtype);
  const int64_t count = int64_t(matrices.size());
  void* workspace = blocks.block(svc_projection_workspace_cuda(matrices.data(), count, type), poison);
  auto* report = static_cast<SvcReport*>(blocks.block(count * int64_t(sizeof(SvcReport)), poison));
  throw_if(svc_projection_cuda(matrices.data(), count, type, skip_nonfinite, report, workspace, nullptr));
  blocks.give_back();
  py::array_t<double> result({count, int64_t(4)});
  if (count) std::memcpy(result.mutable_data(), report, size_t(count) * sizeof(SvcReport));
  return result;
}

// Rows of (a, b, c, t), rows of (b, c, u), and the numbers that are not in a table.
py::tuple coefficients() {
  std::vector<std::array<double, 4>> sign;
  std::vector<std::array<double, 3>> root;
  for (const SvcSignRow& row : kSvcSignRows) sign.push_back({row.a, row.b, row.c, row.t});
  for (const SvcRootRow& row : kSvcRootRows) root.push_back({row.b, row.c, row.u});
  return py::make_tuple(
      sign, root,
      std::vector<double>{kSvcSignWide, kSvcLeastBound, kSvcLargestBound, kSvcLargestTrace, kSvcRounds, kSvcSignSteps,
                          kSvcSignStepsFloat, kSvcSignStepsWide, kSvcResolution, kSvcSquarings, kSvcSquaringsFloat64});
}

}  // namespace

PYBIND11_MODULE(svc_projection_emulated, m) {
  add_emulator(m);
  m.def("project", &project);
  m.def("coefficients", &coefficients);
  m.def("set_policy", [](int64_t split_columns, int64_t shared_bytes, int rounds) {
    svc_cuda::policy = {split_columns, shared_bytes, rounds};
  });
  m.def("tolerance", [](const std::string& dtype, int64_t rows) { return svc_tolerance(dtype_named(dtype), rows); });
}
