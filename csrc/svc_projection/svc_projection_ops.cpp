// The torch door of svc_projection: schema, memory-safety checks, allocation and choice of device. No arithmetic.
// Compiled into _C (schema, CPU) and, with VG_CUDA, into _C_cuda.
#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#include "svc_projection/svc_projection.h"
#include "svc_projection/svc_projection_cpu.h"
#if defined(VG_CUDA)
#include "svc_projection/svc_projection_cuda.h"
#endif

namespace vgkernels {
namespace {

void check_bound(const char* op, double bound) {
  STD_TORCH_CHECK(bound >= 1e-30 && bound <= 1e30, op, ": expected a bound between 1e-30 and 1e30, got ", bound);
}

// The matrix in `weight`, whose elements must be apart and side by side along one of its dims; or its transpose.
SvcMatrix matrix_of(const char* op, const Tensor& weight, double bound) {
  check_rank(op, "a weight", weight, 2);
  const int64_t m = weight.size(0), n = weight.size(1), column = n == 1 ? 1 : weight.stride(1),
                row = m > 1         ? weight.stride(0)
                      : column == 1 ? n
                                    : 1;
  STD_TORCH_CHECK(m > 0 && n > 0, op, ": expected a weight with elements, got shape ", shape_text(shape_of(weight)));
  STD_TORCH_CHECK((column == 1 && row >= n) || (row == 1 && column >= m), op,
                  ": expected a weight with one stride 1 and the other past its elements, got strides (", row, ", ",
                  column, ") of shape ", shape_text(shape_of(weight)));
  void* data = weight.mutable_data_ptr();
  if (m <= n) return {data, m, n, row, column, bound};
  return {data, n, m, column, row, bound};
}

// Clips the matrices, all of one dtype and on the device of `beside`; (count, 4) reports as svc_projection.h has them.
Tensor project_all(const char* op, const std::vector<SvcMatrix>& matrices, DType dtype, const Tensor& beside,
                   bool skip_nonfinite) {
  const int64_t count = int64_t(matrices.size());
  static_assert(sizeof(SvcReport) == 4 * sizeof(double), "a report is a row of four");
  Tensor report = empty({count, 4}, ScalarType::Double, beside);
  if (count == 0) return report;
  SvcReport* reports = static_cast<SvcReport*>(report.mutable_data_ptr());
#if defined(VG_CUDA)
  const OnDevice on_device(beside);
  const Tensor workspace =
      empty({svc_projection_workspace_cuda(matrices.data(), count, dtype)}, ScalarType::Byte, beside);
  const char* error = svc_projection_cuda(matrices.data(), count, dtype, skip_nonfinite, reports,
                                          workspace.mutable_data_ptr(), current_stream(beside));
  STD_TORCH_CHECK(!error, op, ": CUDA error: ", error);
#else
  const Parallel parallel = [op](int64_t units, int64_t work, const Range& run) {
    parallel_units(op, units, work, run);
  };
  const bool complete = svc_projection_cpu(matrices.data(), count, dtype, skip_nonfinite, parallel, reports);
  STD_TORCH_CHECK(complete, op, ": out of memory");
#endif
  return report;
}

Tensor svc_projection_(std::vector<Tensor> weights, std::vector<double> bounds, bool skip_nonfinite) {
  const char* op = "svc_projection_";
  STD_TORCH_CHECK(!weights.empty(), op, ": expected at least one weight, got none");
  STD_TORCH_CHECK(weights.size() == bounds.size(), op, ": expected a bound for each weight, got ", weights.size(),
                  " weights and ", bounds.size(), " bounds");
  const DType dtype = dtype_of(op, "weights", weights[0]);
  std::vector<SvcMatrix> matrices;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_bound(op, bounds[i]);
    check_tensor(op, "every weight", weights[i], shape_of(weights[i]), weights[0].scalar_type(), weights[0]);
    matrices.push_back(matrix_of(op, weights[i], bounds[i]));
  }
  return project_all(op, matrices, dtype, weights[0], skip_nonfinite);
}

Tensor svc_projection(const Tensor& weight, double bound) {
  const char* op = "svc_projection";
  check_rank(op, "weight", weight, 3);
  check_bound(op, bound);
  const DType dtype = dtype_of(op, "weight", weight);
  STD_TORCH_CHECK(weight.size(1) > 0 && weight.size(2) > 0, op, ": expected a weight with elements, got shape ",
                  shape_text(shape_of(weight)));
  Tensor out = advise_huge_pages(empty(shape_of(weight), weight.scalar_type(), weight));
  torch::stable::copy_(out, weight);
  std::vector<SvcMatrix> matrices;
  const int64_t m = weight.size(1), n = weight.size(2);
  char* data = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t b = 0; b < weight.size(0); ++b, data += m * n * int64_t(out.element_size()))
    matrices.push_back(m <= n ? SvcMatrix{data, m, n, n, 1, bound} : SvcMatrix{data, n, m, 1, n, bound});
  const Tensor report = project_all(op, matrices, dtype, out, false);
#if !defined(VG_CUDA)
  const SvcReport* reports = static_cast<const SvcReport*>(report.const_data_ptr());
  for (size_t b = 0; b < matrices.size(); ++b)
    STD_TORCH_CHECK(reports[b].state != double(SvcState::nonfinite), op, ": expected finite weight, got NaN or Inf");
#endif
  return out;
}

}  // namespace

#if defined(VG_SCHEMAS)
VG_LIBRARY_SCHEMAS(m) {
  m.def("svc_projection(Tensor weight, float bound) -> Tensor");
  m.def("svc_projection_(Tensor(a!)[] weights, float[] bounds, bool skip_nonfinite) -> Tensor");
}
#endif
VG_LIBRARY_KERNELS(m) {
  m.impl("svc_projection", TORCH_BOX(&svc_projection));
  m.impl("svc_projection_", TORCH_BOX(&svc_projection_));
}

}  // namespace vgkernels
