// The torch door of flow_warp: schema, memory-safety checks, allocation and choice of device. No arithmetic.
// Compiled into _C (schema, CPU) and, with VG_CUDA, into _C_cuda.
#include "common/check.h"
#include "common/library.h"
#include "common/tensor_bridge.h"
#include "flow_warp/flow_warp.h"
#include "flow_warp/flow_warp_cpu.h"

namespace vgkernels {
namespace {

using MaybeTensor = std::optional<Tensor>;

// Checked arguments, made packed; they keep the memory behind `params` alive.
struct Inputs {
  Tensor image, flow;
  MaybeTensor mask, painted;
  DType dtype;
  MemoryFormat format;
};

Interpolation interpolation(const std::string& mode) {
  STD_TORCH_CHECK(mode == "bilinear" || mode == "nearest", "flow_warp: expected mode 'bilinear' or 'nearest', got '",
                  mode, "'");
  return mode == "bilinear" ? Interpolation::bilinear : Interpolation::nearest;
}

Padding padding(const std::string& mode) {
  STD_TORCH_CHECK(mode == "border" || mode == "zeros" || mode == "reflection",
                  "flow_warp: expected padding_mode 'border', 'zeros' or 'reflection', got '", mode, "'");
  return mode == "border" ? Padding::border : mode == "zeros" ? Padding::zeros : Padding::reflection;
}

Inputs check_inputs(const Tensor& image, const Tensor& flow, const MaybeTensor& mask, const MaybeTensor& painted,
                    const std::string& mode, const std::string& padding_mode, FlowWarpParams& p) {
  const char* op = "flow_warp";
  constexpr int64_t longest = int64_t(1) << 30;  // cells and their neighbours are counted in 32 bits
  check_rank(op, "image", image, 4);
  check_rank(op, "flow", flow, 4);
  const DType dtype = dtype_of(op, "image", image);
  p.B = image.size(0), p.C = image.size(1), p.H = image.size(2), p.W = image.size(3);
  p.Ho = flow.size(2), p.Wo = flow.size(3);
  check_tensor(op, "flow", flow, {p.B, 2, p.Ho, p.Wo}, accumulate_type(dtype), image);
  STD_TORCH_CHECK(p.H > 0 && p.W > 0, op, ": expected image with height and width of at least 1, got ",
                  shape_text(shape_of(image)));
  STD_TORCH_CHECK(std::max({p.H, p.W, p.Ho, p.Wo}) <= longest, op, ": expected sides of at most ", longest,
                  ", got image ", shape_text(shape_of(image)), " and flow ", shape_text(shape_of(flow)));
  STD_TORCH_CHECK(p.H * p.W <= longest, op, ": expected an image of at most ", longest, " pixels, got ",
                  shape_text(shape_of(image)));
  STD_TORCH_CHECK(mask.has_value() == painted.has_value(), op, ": expected mask and new together, got only ",
                  mask ? "mask" : "new");
  if (mask) {
    check_tensor(op, "mask", *mask, {p.B, 1, p.Ho, p.Wo}, accumulate_type(dtype), image);
    check_tensor(op, "new", *painted, {p.B, p.C, p.Ho, p.Wo}, image.scalar_type(), image);
  }
  p.mode = interpolation(mode);
  p.padding = padding(padding_mode);
  p.channels_last = is_channels_last(image);

  const MemoryFormat format = memory_format(p.channels_last);
  Inputs in{torch::stable::contiguous(image, format), torch::stable::contiguous(flow), {}, {}, dtype, format};
  if (mask) {
    in.mask = torch::stable::contiguous(*mask);
    in.painted = torch::stable::contiguous(*painted, format);
  }
  p.image = in.image.const_data_ptr();
  p.flow = in.flow.const_data_ptr();
  p.mask = mask ? in.mask->const_data_ptr() : nullptr;
  p.painted = mask ? in.painted->const_data_ptr() : nullptr;
  p.out = nullptr;
  return in;
}

#if !defined(VG_CUDA)
Tensor row_spans(const FlowWarpParams& p, const Inputs& in) {  // (B, Ho) RowSpan
  Tensor spans = empty({p.B * p.Ho * int64_t(sizeof(RowSpan))}, ScalarType::Byte, in.flow);
  RowSpan* rows = static_cast<RowSpan*>(spans.mutable_data_ptr());
  parallel_units("flow_warp", p.B * p.Ho, p.Wo, [&](int64_t begin, int64_t end) {
    flow_warp_spans_cpu(p, in.dtype, rows, begin, end);
    return true;
  });
  return spans;
}
#endif

Tensor flow_warp(const Tensor& image, const Tensor& flow, const MaybeTensor& mask, const MaybeTensor& painted,
                 Text mode, Text padding_mode) {
  FlowWarpParams p;
  const Inputs in = check_inputs(image, flow, mask, painted, mode, padding_mode, p);
  Tensor out = advise_huge_pages(empty({p.B, p.C, p.Ho, p.Wo}, image.scalar_type(), image, in.format));
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
#if defined(VG_CUDA)
  const OnDevice on_device(image);
  const char* error = flow_warp_forward_cuda(p, in.dtype, current_stream(image));
  STD_TORCH_CHECK(!error, "flow_warp: CUDA error: ", error);
#else
  const Tensor spans = row_spans(p, in);
  const RowSpan* rows = static_cast<const RowSpan*>(spans.const_data_ptr());
  const int64_t units = flow_warp_forward_units_cpu(p, in.dtype);
  parallel_units("flow_warp", units, out.numel() / units,
                 [&](int64_t begin, int64_t end) { return flow_warp_forward_cpu(p, in.dtype, rows, begin, end); });
#endif
  return out;
}

// A gradient that is not needed comes back as an empty tensor of shape (0,).
std::tuple<Tensor, Tensor, Tensor, Tensor> flow_warp_backward(const Tensor& grad_out, const Tensor& image,
                                                              const Tensor& flow, const MaybeTensor& mask,
                                                              const MaybeTensor& painted, Text mode, Text padding_mode,
                                                              bool need_image, bool need_flow, bool need_mask,
                                                              bool need_painted, bool deterministic) {
  const char* op = "flow_warp_backward";
  FlowWarpBackwardParams p;
  const Inputs in = check_inputs(image, flow, mask, painted, mode, padding_mode, p);
  check_tensor(op, "grad_out", grad_out, {p.B, p.C, p.Ho, p.Wo}, image.scalar_type(), image);
  STD_TORCH_CHECK(mask || !(need_mask || need_painted), op,
                  ": expected a mask and new where their gradients are needed");
  const Tensor grad = torch::stable::contiguous(grad_out, in.format);
  p.grad_out = grad.const_data_ptr();

  const ScalarType dtype = image.scalar_type(), wide = accumulate_type(in.dtype);
  const auto result = [&](bool needed, std::vector<int64_t> shape, ScalarType type, MemoryFormat format) {
    return needed ? advise_huge_pages(empty(shape, type, image, format)) : empty({0}, type, image);
  };
  Tensor grad_image = result(need_image, {p.B, p.C, p.H, p.W}, dtype, in.format);
  Tensor grad_flow = result(need_flow, {p.B, 2, p.Ho, p.Wo}, wide, MemoryFormat::Contiguous);
  Tensor grad_mask = result(need_mask, {p.B, 1, p.Ho, p.Wo}, wide, MemoryFormat::Contiguous);
  Tensor grad_painted = result(need_painted, {p.B, p.C, p.Ho, p.Wo}, dtype, in.format);
  if (grad_out.numel() == 0) {  // nothing was warped: whatever gradients have elements are zero
    for (Tensor* gradient : {&grad_image, &grad_flow, &grad_mask, &grad_painted}) torch::stable::zero_(*gradient);
    return {grad_image, grad_flow, grad_mask, grad_painted};
  }
  p.grad_image = need_image ? grad_image.mutable_data_ptr() : nullptr;
  p.grad_flow = need_flow ? grad_flow.mutable_data_ptr() : nullptr;
  p.grad_mask = need_mask ? grad_mask.mutable_data_ptr() : nullptr;
  p.grad_painted = need_painted ? grad_painted.mutable_data_ptr() : nullptr;
#if defined(VG_CUDA)
  const OnDevice on_device(image);
  const Tensor workspace =
      empty({flow_warp_backward_workspace_cuda(p, in.dtype, deterministic)}, ScalarType::Byte, image);
  const char* error =
      flow_warp_backward_cuda(p, in.dtype, deterministic, workspace.mutable_data_ptr(), current_stream(image));
  STD_TORCH_CHECK(!error, op, ": CUDA error: ", error);
#else
  (void)deterministic;  // always, on the CPU
  const Tensor spans = row_spans(p, in),
               scratch = empty({flow_warp_backward_scratch_cpu(p, in.dtype)}, ScalarType::Byte, image);
  const RowSpan* rows = static_cast<const RowSpan*>(spans.const_data_ptr());
  void* shared = scratch.mutable_data_ptr();
  parallel_units(op, p.B * p.H, image.numel() / (p.B * p.H), [&](int64_t begin, int64_t end) {
    return flow_warp_backward_cpu(p, in.dtype, rows, shared, begin, end);
  });
#endif
  return {grad_image, grad_flow, grad_mask, grad_painted};
}

}  // namespace

#if defined(VG_SCHEMAS)
VG_LIBRARY_SCHEMAS(m) {
  m.def("flow_warp(Tensor image, Tensor flow, Tensor? mask, Tensor? new, str mode, str padding_mode) -> Tensor");
  m.def(
      "flow_warp_backward(Tensor grad_out, Tensor image, Tensor flow, Tensor? mask, Tensor? new, str mode, "
      "str padding_mode, bool need_image, bool need_flow, bool need_mask, bool need_new, bool deterministic) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
#endif
VG_LIBRARY_KERNELS(m) {
  m.impl("flow_warp", TORCH_BOX(&flow_warp));
  m.impl("flow_warp_backward", TORCH_BOX(&flow_warp_backward));
}

}  // namespace vgkernels
