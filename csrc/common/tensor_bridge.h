// Decides how torch tensors become the raw pointers, layouts and threads that the torch-free kernels take, through the
// LibTorch stable ABI. Leaves shapes and meaning to each op's _ops.cpp.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>

#include "common/check.h"
#include "common/dtype.h"
#include "common/forked.h"
#include "common/huge_pages.h"

namespace vgkernels {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// A string argument of an op: torch 2.13 copies a std::string to memory that it never frees, at every call.
struct Text : std::string {
  using std::string::string;
};

inline DType dtype_of(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      STD_TORCH_CHECK(false, op, ": expected ", name, " of dtype float64, float32, float16 or bfloat16, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
  return DType::float32;
}

inline ScalarType accumulate_type(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

// torch's rule: channels innermost, strides of sizes 1 free; a tensor that is both counts as contiguous.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (int d : {1, 3, 2, 0}) {
    if (tensor.size(d) == 1) continue;
    if (tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype, const Tensor& beside,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(shape, dtype, std::nullopt, beside.device(), std::nullopt, format);
}

inline Tensor advise_huge_pages(Tensor tensor) {
  if (tensor.is_cpu()) advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

#if defined(VG_EMULATED)
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
};
inline void* current_stream(const Tensor&) { return nullptr; }
#elif defined(VG_CUDA)
// Makes the tensor's device the current one, as launches and allocations ask for.
struct OnDevice {
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {}
  torch::stable::accelerator::DeviceGuard guard;
};
inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}
#else
// run(begin, end) over torch's threads, in a forked child all at once; units of about `work` elements each. Raises if a
// run returns false (no memory).
template <class Run>
void parallel_units(const char* op, int64_t units, int64_t work, const Run& run) {
  constexpr int64_t per_thread = 16384;  // elements below which another thread does not pay
  std::atomic<bool> complete{true};      // a thread must not throw: the stable ABI would lose what it says
  if (in_forked_child) {
    complete = units <= 0 || run(0, units);
  } else {
    torch::stable::parallel_for(0, units, std::max<int64_t>(1, per_thread / std::max<int64_t>(1, work)),
                                [&](int64_t begin, int64_t end) {
                                  if (!run(begin, end)) complete = false;
                                });
  }
  STD_TORCH_CHECK(complete, op, ": out of memory");
}
#endif

}  // namespace vgkernels

template <>
struct torch::stable::detail::ToImpl<vgkernels::Text> {
  static vgkernels::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length;
    const char* data;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    const vgkernels::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
