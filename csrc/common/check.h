// Decides the wording of the checks that keep kernels inside memory: "<op>: expected <what>, got <what came>".
// Python checks the same things first, with argument types; these guard direct calls through torch.ops.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>
#include <vector>

namespace vgkernels {

using torch::stable::Tensor;

inline std::string shape_text(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> sizes(tensor.dim());
  for (int64_t i = 0; i < tensor.dim(); ++i) sizes[i] = tensor.size(i);
  return sizes;
}

inline void check_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, op, ": expected ", name, " with ", rank, " dimensions, got shape ",
                  shape_text(shape_of(tensor)));
}

// The shape, dtype and device that an argument must have to fit the op's first argument.
inline void check_tensor(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
                         torch::headeronly::ScalarType dtype, const Tensor& first) {
  STD_TORCH_CHECK(shape_of(tensor) == shape, op, ": expected ", name, " of shape ", shape_text(shape), ", got ",
                  shape_text(shape_of(tensor)));
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": expected ", name, " of dtype ",
                  torch::headeronly::toString(dtype), ", got ", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.device() == first.device(), op, ": expected ", name,
                  " on the same device as the first argument");
}

}  // namespace vgkernels
