// The torch door of conv_gru's CUDA kernels: schemas and memory-safety checks, nothing is allocated. Compiled into _C
// (schemas) and, with VG_CUDA, into _C_cuda. They are called by vgkernels/conv_gru_cuda.py alone; the public op's door
// is conv_gru_ops.cpp.
#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#if defined(VG_CUDA)
#include "conv_gru/conv_gru_cuda.h"
#endif

namespace vgkernels {

#if defined(VG_CUDA)
namespace {

using Maybe = std::optional<Tensor>;

// Arrays of one step, (B, [D,] H, W, channels), of which `beside` is one with `maps` times C channels.
struct Step {
  const char* op;
  const Tensor& beside;
  ScalarType type;  // the call's; `beside` may be of the accumulation dtype
  DType dtype;
  std::vector<int64_t> shape;  // of a map: (B, [D,] H, W, C)

  Step(const char* op, const Tensor& beside, int64_t maps, const Tensor& typed)
      : op(op), beside(beside), type(typed.scalar_type()), dtype(dtype_of(op, "arrays", typed)) {
    shape = shape_of(beside);
    STD_TORCH_CHECK((shape.size() == 4 || shape.size() == 5) && shape.back() % maps == 0, op,
                    ": expected a step of shape (B, [D,] H, W, channels), got ", shape_text(shape));
    shape.back() /= maps;
  }
  int64_t channels() const { return shape.back(); }

  void* data(const char* name, const Tensor& tensor, ScalarType dtype, int64_t last) const {
    std::vector<int64_t> expected = shape;
    expected.back() = last;
    check_tensor(op, name, tensor, expected, dtype, beside);
    STD_TORCH_CHECK(tensor.is_contiguous(), op, ": expected ", name, " contiguous");
    return tensor.mutable_data_ptr();
  }
  void* maps(const char* name, const Tensor& tensor, int64_t count = 1) const {
    return data(name, tensor, type, count * channels());
  }
  void* state(const char* name, const Tensor& tensor) const {
    return data(name, tensor, accumulate_type(dtype), channels());
  }
  void* kept(const char* name, const Tensor& tensor) const {
    return data(name, tensor, type, kept_channels(channels()));
  }
  const int64_t* lengths(const Maybe& tensor) const {
    if (!tensor) return nullptr;
    check_tensor(op, "lengths", *tensor, {shape[0]}, ScalarType::Long, beside);
    STD_TORCH_CHECK(tensor->is_contiguous(), op, ": expected lengths contiguous");
    return static_cast<const int64_t*>(tensor->const_data_ptr());
  }

  ConvGruProduct product(const Maybe& operand, const Maybe& weight, int64_t columns) const {
    const bool volumes = shape.size() == 5;
    ConvGruProduct p{};
    p.shape.batch = shape[0], p.shape.channels = channels(), p.shape.volumes = volumes;
    p.shape.depth = volumes ? shape[1] : 1;
    p.shape.height = shape[shape.size() - 3], p.shape.width = shape[shape.size() - 2];
    if (!operand) return p;
    p.operand = operand->const_data_ptr();
    if (!weight) {
      maps("product", *operand, columns);
      return p;
    }
    const std::vector<int64_t> sizes = shape_of(*weight);  // (packed columns, [k,] k, k, Cin)
    STD_TORCH_CHECK(sizes.size() == shape.size() && weight->is_contiguous(), op, ": expected a packed weight, got ",
                    shape_text(sizes));
    p.shape.input_channels = sizes.back(), p.shape.kernel = sizes[1];
    const int64_t needed = kept_channels(channels()) * columns;
    STD_TORCH_CHECK(sizes[0] % kPackedColumns == 0 && sizes[0] >= needed && sizes[1] % 2 == 1, op,
                    ": expected a packed weight of ", needed, " columns, got ", shape_text(sizes));
    std::vector<int64_t> cube(sizes.size(), sizes[1]);
    cube.front() = sizes[0], cube.back() = sizes.back();
    check_tensor(op, "weight", *weight, cube, type, beside);
    data("operand", *operand, type, sizes.back());
    p.weight = weight->const_data_ptr();
    return p;
  }

  template <class Gates>
  void run(const ConvGruProduct& product, const Gates& gates) const {
    const OnDevice on_device(beside);
    const char* error = conv_gru_cuda(product, gates, dtype, current_stream(beside));
    STD_TORCH_CHECK(!error, op, ": CUDA error: ", error);
  }
};

void reset_update(const Tensor& product, Maybe weight, const Tensor& xg, const Tensor& h, Tensor rh, Maybe r,
                  Tensor z) {
  const Step step("conv_gru_reset_update_", xg, 3, xg);
  ConvGruResetUpdate p{};
  p.xg = step.maps("xg", xg, 3), p.h = step.maps("h", h), p.rh = step.maps("rh", rh);
  p.r = r ? step.kept("r", *r) : nullptr, p.z = step.kept("z", z);
  step.run(step.product(product, weight, 2), p);
}

void candidate(const Tensor& product, Maybe weight, const Tensor& xg, Maybe z, Maybe h, Maybe output, Maybe n,
               Maybe lengths, int64_t t, bool tanh) {
  const Step step("conv_gru_candidate_", xg, 3, xg);
  STD_TORCH_CHECK(!h || (z && output), step.op, ": expected z and output with h");
  ConvGruCandidate p{};
  p.xg = step.maps("xg", xg, 3), p.n = n ? step.kept("n", *n) : nullptr;
  if (h) p.h = step.state("h", *h), p.z = step.kept("z", *z), p.output = step.maps("output", *output);
  p.lengths = step.lengths(lengths), p.step = t, p.activation = activation_of(tanh);
  step.run(step.product(product, weight, 1), p);
}

void candidate_backward(Maybe product, Maybe weight, Maybe grad_output, Maybe h, Maybe z, Maybe n, Tensor grad_h,
                        Maybe grad_rz, Maybe grad_n, Maybe lengths, int64_t t, bool tanh) {
  const Tensor& typed = product ? *product : grad_output ? *grad_output : grad_h;
  const Step step("conv_gru_candidate_backward_", grad_h, 1, typed);
  STD_TORCH_CHECK(!z || (grad_output && h && n && grad_rz && grad_n), step.op, ": expected all arrays with z");
  ConvGruCandidateBackward p{};
  p.grad_h = step.state("grad_h", grad_h);
  if (z) {
    p.grad_output = step.maps("grad_output", *grad_output), p.h = step.maps("h", *h);
    p.z = step.kept("z", *z), p.n = step.kept("n", *n);
    p.grad_rz = step.maps("grad_rz", *grad_rz, 2), p.grad_n = step.maps("grad_n", *grad_n);
  }
  p.lengths = step.lengths(lengths), p.step = t, p.activation = activation_of(tanh);
  step.run(step.product(product, weight, 1), p);
}

void reset_backward(const Tensor& product, Maybe weight, const Tensor& h, const Tensor& r, Tensor grad_h,
                    Tensor grad_rz) {
  const Step step("conv_gru_reset_backward_", grad_h, 1, h);
  ConvGruResetBackward p{};
  p.h = step.maps("h", h), p.r = step.kept("r", r);
  p.grad_h = step.state("grad_h", grad_h), p.grad_rz = step.maps("grad_rz", grad_rz, 2);
  step.run(step.product(product, weight, 1), p);
}

}  // namespace

VG_LIBRARY_KERNELS(m) {
  m.impl("conv_gru_reset_update_", TORCH_BOX(&reset_update));
  m.impl("conv_gru_candidate_", TORCH_BOX(&candidate));
  m.impl("conv_gru_candidate_backward_", TORCH_BOX(&candidate_backward));
  m.impl("conv_gru_reset_backward_", TORCH_BOX(&reset_backward));
}
#endif

#if defined(VG_SCHEMAS)
// Where a weight is given, the product is yet to be made: of that array and the weight, packed as conv_gru_cuda.h says.
VG_LIBRARY_SCHEMAS(m) {
  m.def(
      "conv_gru_reset_update_(Tensor product, Tensor? weight, Tensor xg, Tensor h, Tensor(a!) rh, Tensor(b!)? r, "
      "Tensor(c!) z) -> ()");
  m.def(
      "conv_gru_candidate_(Tensor product, Tensor? weight, Tensor xg, Tensor? z, Tensor(a!)? h, Tensor(b!)? output, "
      "Tensor(c!)? n, Tensor? lengths, int step, bool tanh) -> ()");
  m.def(
      "conv_gru_candidate_backward_(Tensor? product, Tensor? weight, Tensor? grad_output, Tensor? h, Tensor? z, "
      "Tensor? n, Tensor(a!) grad_h, Tensor(b!)? grad_rz, Tensor(c!)? grad_n, Tensor? lengths, int step, bool tanh) "
      "-> ()");
  m.def(
      "conv_gru_reset_backward_(Tensor product, Tensor? weight, Tensor h, Tensor r, Tensor(a!) grad_h, "
      "Tensor(b!) grad_rz) -> ()");
}
#endif

}  // namespace vgkernels
