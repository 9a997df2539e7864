// The torch door of conv_gru's persistent CUDA kernels: schemas, memory-safety checks, the workspace. Compiled into _C
// (schemas) and, with VG_CUDA, into _C_cuda. They are called by vgkernels/conv_gru_persistent.py alone; the public op's
// door is conv_gru_ops.cpp.
#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#if defined(VG_CUDA)
#include "conv_gru/conv_gru_persistent_cuda.h"
#endif

namespace vgkernels {

#if defined(VG_CUDA)
namespace {

using Maybe = std::optional<Tensor>;

// A call's arrays, all packed: `output` (T, B, H, W, C) says what it is like.
struct Video {
  const char* op;
  const Tensor& output;
  DType dtype;
  std::vector<int64_t> map;  // (B, H, W, C)
  ConvGruShape shape{};
  ConvGruPersistentPlan plan{};

  Video(const char* op, const Tensor& output, const Tensor& weight_hh)
      : op(op), output(output), dtype(dtype_of(op, "arrays", output)) {
    check_rank(op, "output", output, 5);
    const std::vector<int64_t> sizes = shape_of(output);
    map.assign(sizes.begin() + 1, sizes.end());
    check_rank(op, "weight_hh", weight_hh, 4);
    shape.steps = sizes[0], shape.batch = sizes[1], shape.depth = 1, shape.height = sizes[2], shape.width = sizes[3];
    shape.channels = sizes[4], shape.kernel = weight_hh.size(3);
    STD_TORCH_CHECK(shape.kernel % 2 == 1 && shape.channels > 0 && shape.height > 0 && shape.width > 0, op,
                    ": expected an odd kernel and maps of 1 or more, got ", shape_text(shape_of(weight_hh)), " and ",
                    shape_text(sizes));
    const char* why_not = conv_gru_persistent_plan(shape, dtype, &plan);
    STD_TORCH_CHECK(!why_not, op, ": ", why_not);
  }

  // Arrays must begin at a multiple of 16 bytes, which copies to shared memory ask for.
  void* data(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected, ScalarType type) const {
    check_tensor(op, name, tensor, expected, type, output);
    STD_TORCH_CHECK(tensor.is_contiguous(), op, ": expected ", name, " contiguous");
    void* begin = tensor.mutable_data_ptr();
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(begin) % 16 == 0, op, ": expected ", name,
                    " at a multiple of 16 bytes");
    return begin;
  }
  void* steps(const char* name, const Tensor& tensor, int64_t maps = 1) const {
    return data(name, tensor, {shape.steps, map[0], map[1], map[2], maps * map[3]}, output.scalar_type());
  }
  void* gates(const Tensor& tensor) const {
    return data("gates", tensor, {shape.steps, 3, map[0], map[1], map[2], map[3]}, output.scalar_type());
  }
  float* state(const char* name, const Tensor& tensor) const {
    return static_cast<float*>(data(name, tensor, map, ScalarType::Float));
  }
  void* weight(const Tensor& tensor) const {
    return data("weight_hh", tensor, {3 * map[3], map[3], shape.kernel, shape.kernel}, output.scalar_type());
  }
  const int64_t* lengths(const Maybe& tensor) const {
    if (!tensor) return nullptr;
    check_tensor(op, "lengths", *tensor, {map[0]}, ScalarType::Long, output);
    STD_TORCH_CHECK(tensor->is_contiguous(), op, ": expected lengths contiguous");
    return static_cast<const int64_t*>(tensor->const_data_ptr());
  }

  template <class Call>
  void run(const Call& call) const {
    const Tensor workspace = empty({conv_gru_persistent_workspace(shape)}, ScalarType::Byte, output);
    const char* error =
        conv_gru_persistent_cuda(call, plan, dtype, workspace.mutable_data_ptr(), current_stream(output));
    STD_TORCH_CHECK(!error, op, ": CUDA error: ", error);
  }
};

void persistent(const Tensor& xg, Tensor h, const Tensor& weight_hh, Maybe lengths, Tensor output, Maybe gates,
                bool tanh, bool reverse) {
  const OnDevice on_device(output);  // which the plan is for
  const Video video("conv_gru_persistent_", output, weight_hh);
  ConvGruPersistent p{};
  p.shape = video.shape, p.activation = activation_of(tanh), p.reverse = reverse;
  p.xg = video.steps("xg", xg, 3), p.weight = video.weight(weight_hh), p.lengths = video.lengths(lengths);
  p.h = video.state("h", h), p.output = video.steps("output", output);
  p.gates = gates ? video.gates(*gates) : nullptr;
  video.run(p);
}

void persistent_backward(const Tensor& grad_output, const Tensor& past, const Tensor& gates, const Tensor& weight_hh,
                         Maybe lengths, Tensor grad_h, Tensor grad_rz, Tensor grad_n, bool tanh, bool reverse) {
  const OnDevice on_device(grad_n);
  const Video video("conv_gru_persistent_backward_", grad_n, weight_hh);
  ConvGruPersistentBackward p{};
  p.shape = video.shape, p.activation = activation_of(tanh), p.reverse = reverse;
  p.grad_output = video.steps("grad_output", grad_output), p.past = video.steps("past", past);
  p.gates = video.gates(gates), p.weight = video.weight(weight_hh), p.lengths = video.lengths(lengths);
  p.grad_h = video.state("grad_h", grad_h);
  p.grad_rz = video.steps("grad_rz", grad_rz, 2), p.grad_n = video.steps("grad_n", grad_n);
  video.run(p);
}

}  // namespace

VG_LIBRARY_KERNELS(m) {
  m.impl("conv_gru_persistent_", TORCH_BOX(&persistent));
  m.impl("conv_gru_persistent_backward_", TORCH_BOX(&persistent_backward));
}
#endif

#if defined(VG_SCHEMAS)
VG_LIBRARY_SCHEMAS(m) {
  m.def(
      "conv_gru_persistent_(Tensor xg, Tensor(a!) h, Tensor weight_hh, Tensor? lengths, Tensor(b!) output, "
      "Tensor(c!)? gates, bool tanh, bool reverse) -> ()");
  m.def(
      "conv_gru_persistent_backward_(Tensor grad_output, Tensor past, Tensor gates, Tensor weight_hh, Tensor? lengths, "
      "Tensor(a!) grad_h, Tensor(b!) grad_rz, Tensor(c!) grad_n, bool tanh, bool reverse) -> ()");
}
#endif

}  // namespace vgkernels
