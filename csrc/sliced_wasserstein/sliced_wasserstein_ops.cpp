// The torch door of sliced_wasserstein: schema, memory-safety checks, allocation and choice of device. No arithmetic.
// Compiled into _C (schema, CPU) and, with VG_CUDA, into _C_cuda.
#include <tuple>

#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#include "sliced_wasserstein/sliced_wasserstein.h"
#include "sliced_wasserstein/sliced_wasserstein_cpu.h"
#if defined(VG_CUDA)
#include "sliced_wasserstein/sliced_wasserstein_cuda.h"
#endif

namespace vgkernels {
namespace {

// The tensors of a call, packed, and what they say about its sizes.
struct Arguments {
  Tensor x, y;
  std::optional<Tensor> projections, x_weights, y_weights;
  DType dtype;
  SlicedWassersteinParams params;
};

Arguments checked(const char* op, const Tensor& x, const Tensor& y, const std::optional<Tensor>& projections,
                  const std::optional<Tensor>& x_weights, const std::optional<Tensor>& y_weights, double p) {
  check_rank(op, "x", x, 3);
  check_rank(op, "y", y, 3);
  const DType dtype = dtype_of(op, "x", x);
  STD_TORCH_CHECK(dtype == DType::float64 || dtype == DType::float32, op,
                  ": expected x of dtype float64 or float32, got ", torch::headeronly::toString(x.scalar_type()));
  const int64_t B = x.size(0), N = x.size(1), M = y.size(1), D = x.size(2);
  check_tensor(op, "y", y, {B, M, D}, x.scalar_type(), x);
  for (const Tensor* side : {&x, &y})
    STD_TORCH_CHECK(side->size(1) > 0 && side->size(1) <= kSlicedWassersteinLargest && D > 0, op, ": expected 1 to ",
                    kSlicedWassersteinLargest, " samples of 1 coordinate or more, got shape ",
                    shape_text(shape_of(*side)));
  STD_TORCH_CHECK(p >= 1 && p <= 1e30, op, ": expected a finite p >= 1, got ", p);
  int64_t G = 1, L = D;
  if (projections) {
    check_rank(op, "projections", *projections, 3);
    G = projections->size(0), L = projections->size(1);
    check_tensor(op, "projections", *projections, {G, L, D}, x.scalar_type(), x);
    STD_TORCH_CHECK(L > 0 && (B == 0 || (G > 0 && B % G == 0)), op,
                    ": expected projections for groups of the batch of ", B, ", got shape ",
                    shape_text(shape_of(*projections)));
  }
  STD_TORCH_CHECK(x_weights.has_value() == y_weights.has_value(), op,
                  ": expected weights of both sides or of neither, got one");
  if (x_weights) {
    check_tensor(op, "x_weights", *x_weights, {B, N}, ScalarType::Double, x);
    check_tensor(op, "y_weights", *y_weights, {B, M}, ScalarType::Double, x);
  }
  const auto packed = [](const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
  };
  Arguments a{torch::stable::contiguous(x),
              torch::stable::contiguous(y),
              packed(projections),
              packed(x_weights),
              packed(y_weights),
              dtype,
              {}};
  const auto data = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; };
  a.params.x = a.x.const_data_ptr(), a.params.y = a.y.const_data_ptr();
  a.params.projections = data(a.projections);
  a.params.x_weights = static_cast<const double*>(data(a.x_weights));
  a.params.y_weights = static_cast<const double*>(data(a.y_weights));
  a.params.batch = B, a.params.n = N, a.params.m = M, a.params.dim = D, a.params.directions = L, a.params.groups = G;
  a.params.p = p;
  return a;
}

// Fills the value, and whichever gradients `a.params` points to.
Tensor compute(const char* op, Arguments& a) {
  Tensor value = empty({a.params.batch}, a.x.scalar_type(), a.x);
  if (a.params.batch == 0) return value;
  a.params.value = value.mutable_data_ptr();
#if defined(VG_CUDA)
  STD_TORCH_CHECK(!a.params.x_weights, op, ": expected no weights on CUDA");
  const OnDevice on_device(a.x);
  const Tensor workspace = empty({sliced_wasserstein_workspace_cuda(a.params, a.dtype)}, ScalarType::Byte, a.x);
  const char* error = sliced_wasserstein_cuda(a.params, a.dtype, workspace.mutable_data_ptr(), current_stream(a.x));
  STD_TORCH_CHECK(!error, op, ": CUDA error: ", error);
#else
  const Parallel parallel = [op](int64_t units, int64_t work, const Range& run) {
    parallel_units(op, units, work, run);
  };
  STD_TORCH_CHECK(sliced_wasserstein_cpu(a.params, a.dtype, parallel), op, ": out of memory");
#endif
  return value;
}

Tensor sliced_wasserstein(const Tensor& x, const Tensor& y, std::optional<Tensor> projections,
                          std::optional<Tensor> x_weights, std::optional<Tensor> y_weights, double p) {
  const char* op = "sliced_wasserstein";
  Arguments a = checked(op, x, y, projections, x_weights, y_weights, p);
  return compute(op, a);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sliced_wasserstein_gradients(
    const Tensor& x, const Tensor& y, std::optional<Tensor> projections, std::optional<Tensor> x_weights,
    std::optional<Tensor> y_weights, double p, bool need_x, bool need_y, bool need_projections) {
  const char* op = "sliced_wasserstein_gradients";
  Arguments a = checked(op, x, y, projections, x_weights, y_weights, p);
  STD_TORCH_CHECK(projections || !need_projections, op,
                  ": expected projections, whose gradient is asked for, got none");
  const auto gradient = [&](bool need, const std::vector<int64_t>& shape, void*& data) {
    if (!need) return empty({0}, x.scalar_type(), x);
    Tensor tensor = advise_huge_pages(empty(shape, x.scalar_type(), x));
    data = tensor.mutable_data_ptr();
    return tensor;
  };
  const SlicedWassersteinParams& p_ = a.params;
  const Tensor grad_x = gradient(need_x, shape_of(x), a.params.grad_x);
  const Tensor grad_y = gradient(need_y, shape_of(y), a.params.grad_y);
  const Tensor grad_projections =
      gradient(need_projections, {p_.batch, p_.directions, p_.dim}, a.params.grad_projections);
  return {compute(op, a), grad_x, grad_y, grad_projections};
}

}  // namespace

#if defined(VG_SCHEMAS)
VG_LIBRARY_SCHEMAS(m) {
  m.def(
      "sliced_wasserstein(Tensor x, Tensor y, Tensor? projections, Tensor? x_weights, Tensor? y_weights, float p) -> "
      "Tensor");
  m.def(
      "sliced_wasserstein_gradients(Tensor x, Tensor y, Tensor? projections, Tensor? x_weights, Tensor? y_weights, "
      "float p, bool need_x, bool need_y, bool need_projections) -> (Tensor, Tensor, Tensor, Tensor)");
}
#endif
VG_LIBRARY_KERNELS(m) {
  m.impl("sliced_wasserstein", TORCH_BOX(&sliced_wasserstein));
  m.impl("sliced_wasserstein_gradients", TORCH_BOX(&sliced_wasserstein_gradients));
}

}  // namespace vgkernels
