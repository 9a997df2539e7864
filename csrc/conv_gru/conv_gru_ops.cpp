// The torch door of conv_gru: schema, memory-safety checks and allocation. No arithmetic. Compiled into _C; on CUDA the
// op is put together in vgkernels/conv_gru_cuda.py, out of library convolutions and kernels with doors of their own.
#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#include "conv_gru/conv_gru.h"
#include "conv_gru/conv_gru_cpu.h"

namespace vgkernels {
#if !defined(VG_CUDA)
namespace {

using OptionalTensor = std::optional<Tensor>;

Parallel parallel_for(const char* op) {
  return [op](int64_t units, int64_t work, const Range& run) { parallel_units(op, units, work, run); };
}

void* data_of(const OptionalTensor& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// Checked arguments, packed tensors to hold them, and what the kernels see.
struct Call {
  DType dtype;
  Tensor x, weight_ih, weight_hh;
  OptionalTensor h0, bias, lengths;
  std::vector<int64_t> state_shape, output_shape, gates_shape;
  ConvGruForward params{};

  Call(const char* op, const Tensor& x_, const Tensor& weight_ih_, const Tensor& weight_hh_, int64_t algorithm)
      : dtype(dtype_of(op, "x", x_)), x(x_), weight_ih(weight_ih_), weight_hh(weight_hh_) {
    const bool volumes = x.dim() == 6;
    STD_TORCH_CHECK(x.dim() == 5 || volumes, op, ": expected x with 5 or 6 dimensions, got shape ",
                    shape_text(shape_of(x)));
    check_rank(op, "weight_hh", weight_hh, x.dim() - 1);
    ConvGruShape& s = params.shape;
    const int64_t first = volumes ? 4 : 3;
    s = {x.size(0),         x.size(1),         x.size(2), weight_hh.size(1), volumes ? x.size(3) : 1, x.size(first),
         x.size(first + 1), weight_hh.size(2), volumes};
    STD_TORCH_CHECK(s.channels > 0 && s.input_channels > 0 && s.pixels() > 0, op,
                    ": expected x and weight_hh with elements in every dimension but T and B, got shapes ",
                    shape_text(shape_of(x)), " and ", shape_text(shape_of(weight_hh)));
    STD_TORCH_CHECK(s.kernel % 2 == 1, op, ": expected a kernel of odd size, got ", s.kernel);
    STD_TORCH_CHECK(algorithm >= 0 && algorithm <= 2, op, ": expected algorithm 0, 1 or 2, got ", algorithm);
    STD_TORCH_CHECK(algorithm != 2 || (s.kernel == 3 && dtype != DType::float64), op,
                    ": expected a kernel of size 3 and no float64 for algorithm 2 (winograd)");
    params.algorithm = ConvAlgorithm(algorithm);
    const std::vector<int64_t> sizes = shape_of(x), map(sizes.begin() + 3, sizes.end()), filter(x.dim() - 3, s.kernel);
    const auto shape = [](std::vector<int64_t> start, const std::vector<int64_t>& rest) {
      start.insert(start.end(), rest.begin(), rest.end());
      return start;
    };
    check_tensor(op, "weight_ih", weight_ih, shape({3 * s.channels, s.input_channels}, filter), x.scalar_type(), x);
    check_tensor(op, "weight_hh", weight_hh, shape({3 * s.channels, s.channels}, filter), x.scalar_type(), x);
    state_shape = shape({s.batch, s.channels}, map);
    output_shape = shape({s.steps, s.batch, s.channels}, map);
    gates_shape = {s.steps, 3, s.batch, s.pixels(), kept_channels(s.channels)};
    x = torch::stable::contiguous(x);
    weight_ih = torch::stable::contiguous(weight_ih);
    weight_hh = torch::stable::contiguous(weight_hh);
    params.x = x.mutable_data_ptr();
    params.weight_ih = weight_ih.mutable_data_ptr();
    params.weight_hh = weight_hh.mutable_data_ptr();
  }

  void take(const char* op, const OptionalTensor& h0_, const OptionalTensor& bias_, const OptionalTensor& lengths_,
            bool tanh, bool reverse) {
    if (h0_) check_tensor(op, "h0", *h0_, state_shape, accumulate_type(dtype), x), h0 = torch::stable::contiguous(*h0_);
    if (bias_)
      check_tensor(op, "bias", *bias_, {3 * params.shape.channels}, x.scalar_type(), x),
          bias = torch::stable::contiguous(*bias_);
    if (lengths_)
      check_tensor(op, "lengths", *lengths_, {params.shape.batch}, ScalarType::Long, x),
          lengths = torch::stable::contiguous(*lengths_);
    params.h0 = data_of(h0), params.bias = data_of(bias);
    params.lengths = static_cast<const int64_t*>(data_of(lengths));
    params.activation = activation_of(tanh);
    params.reverse = reverse;
  }
};

Tensor conv_gru_pack(const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, int64_t algorithm) {
  const char* op = "conv_gru_pack";
  const Call call(op, x, weight_ih, weight_hh, algorithm);
  const Tensor packed =
      advise_huge_pages(empty({conv_gru_packed_bytes(call.params, call.dtype)}, ScalarType::Byte, call.x));
  STD_TORCH_CHECK(conv_gru_pack_cpu(call.params, call.dtype, parallel_for(op), packed.mutable_data_ptr()), op,
                  ": out of memory");
  return packed;
}

int64_t fingerprint(const Tensor& weight_ih, const Tensor& weight_hh) {
  uint64_t bits = 1;
  for (const Tensor* weight : {&weight_ih, &weight_hh}) {
    const Tensor packed = torch::stable::contiguous(*weight);
    bits = conv_gru_fingerprint(packed.mutable_data_ptr(), packed.numel() * packed.element_size(), bits);
  }
  return int64_t(bits);
}

std::tuple<Tensor, Tensor, Tensor> conv_gru(const Tensor& x, OptionalTensor h0, const Tensor& weight_ih,
                                            const Tensor& weight_hh, OptionalTensor bias, OptionalTensor lengths,
                                            OptionalTensor packed, bool tanh, bool reverse, bool keep_gates,
                                            int64_t algorithm) {
  const char* op = "conv_gru";
  Call call(op, x, weight_ih, weight_hh, algorithm);
  call.take(op, h0, bias, lengths, tanh, reverse);
  if (packed) {
    check_tensor(op, "packed", *packed, {conv_gru_packed_bytes(call.params, call.dtype)}, ScalarType::Byte, call.x);
    STD_TORCH_CHECK(packed->is_contiguous(), op, ": expected packed to be contiguous");
  }
  const ScalarType type = x.scalar_type();
  const Tensor output = advise_huge_pages(empty(call.output_shape, type, x));
  const Tensor h_T = empty(call.state_shape, accumulate_type(call.dtype), x);
  const Tensor gates = keep_gates ? advise_huge_pages(empty(call.gates_shape, type, x)) : empty({0}, type, x);
  call.params.output = output.mutable_data_ptr();
  call.params.h_T = h_T.mutable_data_ptr();
  call.params.gates = keep_gates ? gates.mutable_data_ptr() : nullptr;
  STD_TORCH_CHECK(conv_gru_forward_cpu(call.params, call.dtype, data_of(packed), parallel_for(op)), op,
                  ": out of memory");
  return {output, h_T, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_gru_backward(
    const Tensor& grad_output, const Tensor& grad_h_T, const Tensor& x, OptionalTensor h0, const Tensor& weight_ih,
    const Tensor& weight_hh, OptionalTensor bias, OptionalTensor lengths, const Tensor& output, OptionalTensor gates,
    bool tanh, bool reverse, int64_t algorithm, bool need_x, bool need_h0, bool need_weight_ih, bool need_weight_hh,
    bool need_bias) {
  const char* op = "conv_gru_backward";
  Call call(op, x, weight_ih, weight_hh, algorithm);
  call.take(op, h0, bias, lengths, tanh, reverse);
  const ScalarType type = x.scalar_type(), wide = accumulate_type(call.dtype);
  check_tensor(op, "grad_output", grad_output, call.output_shape, type, x);
  check_tensor(op, "grad_h_T", grad_h_T, call.state_shape, wide, x);
  check_tensor(op, "output", output, call.output_shape, type, x);
  if (gates) check_tensor(op, "gates", *gates, call.gates_shape, type, x);
  const Tensor packed_grad = torch::stable::contiguous(grad_output), packed_last = torch::stable::contiguous(grad_h_T),
               packed_output = torch::stable::contiguous(output);
  if (gates) gates = torch::stable::contiguous(*gates);
  const auto gradient = [&](bool need, const std::vector<int64_t>& shape, ScalarType dtype, void*& data) {
    if (!need) return empty({0}, dtype, x);
    const Tensor tensor = advise_huge_pages(empty(shape, dtype, x));
    data = tensor.mutable_data_ptr();
    return tensor;
  };
  ConvGruBackward params{};
  const Tensor grad_x = gradient(need_x, shape_of(x), type, params.grad_x);
  const Tensor grad_h0 = gradient(need_h0, call.state_shape, wide, params.grad_h0);
  const Tensor grad_weight_ih = gradient(need_weight_ih, shape_of(weight_ih), type, params.grad_weight_ih);
  const Tensor grad_weight_hh = gradient(need_weight_hh, shape_of(weight_hh), type, params.grad_weight_hh);
  const Tensor grad_bias = gradient(need_bias, {3 * call.params.shape.channels}, type, params.grad_bias);
  call.params.output = packed_output.mutable_data_ptr();
  call.params.gates = data_of(gates);
  params.forward = call.params;
  params.grad_output = packed_grad.mutable_data_ptr();
  params.grad_h_T = packed_last.mutable_data_ptr();
  STD_TORCH_CHECK(conv_gru_backward_cpu(params, call.dtype, parallel_for(op)), op, ": out of memory");
  return {grad_x, grad_h0, grad_weight_ih, grad_weight_hh, grad_bias};
}

}  // namespace

VG_LIBRARY_KERNELS(m) {
  m.impl("conv_gru", TORCH_BOX(&conv_gru));
  m.impl("conv_gru_backward", TORCH_BOX(&conv_gru_backward));
  m.impl("conv_gru_pack", TORCH_BOX(&conv_gru_pack));
  m.impl("conv_gru_fingerprint", TORCH_BOX(&fingerprint));
}
#endif

#if defined(VG_SCHEMAS)
VG_LIBRARY_SCHEMAS(m) {
  m.def(
      "conv_gru(Tensor x, Tensor? h0, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor? lengths, Tensor? "
      "packed, bool tanh, bool reverse, bool keep_gates, int algorithm) -> (Tensor, Tensor, Tensor)");
  m.def(
      "conv_gru_backward(Tensor grad_output, Tensor grad_h_T, Tensor x, Tensor? h0, Tensor weight_ih, Tensor "
      "weight_hh, Tensor? bias, Tensor? lengths, Tensor output, Tensor? gates, bool tanh, bool reverse, int algorithm, "
      "bool need_x, bool need_h0, bool need_weight_ih, bool need_weight_hh, bool need_bias) -> (Tensor, Tensor, "
      "Tensor, "
      "Tensor, Tensor)");
  m.def("conv_gru_pack(Tensor x, Tensor weight_ih, Tensor weight_hh, int algorithm) -> Tensor");
  m.def("conv_gru_fingerprint(Tensor weight_ih, Tensor weight_hh) -> int");
}
#endif

}  // namespace vgkernels
