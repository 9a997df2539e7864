// Decides how numpy arrays and dtype names become the arguments of torch-free launchers: names, heap blocks of exact
// sizes. Checks nothing: sizes and dtypes are what the test says they are.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/dtype.h"

namespace vgkernels {

inline DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::float64;
  if (name == "float32") return DType::float32;
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  throw pybind11::value_error("unknown dtype " + name);
}

// Heap blocks of exact sizes for the time of one call: ASan sees one byte too far.
class Blocks {
 public:
  void* block(int64_t bytes, int fill = 0xA5) {
    blocks_.emplace_back(std::malloc(bytes), std::free);
    if (bytes) std::memset(blocks_.back().get(), fill, bytes);
    return blocks_.back().get();
  }
  void* input(const pybind11::object& array) {  // a copy of it; None is null
    if (array.is_none()) return nullptr;
    const auto values = pybind11::cast<pybind11::array>(array);
    void* copy = block(values.nbytes());
    std::memcpy(copy, values.data(), values.nbytes());
    return copy;
  }
  void* output(const pybind11::object& array) {  // a copy of it, that give_back() copies to the array
    void* copy = input(array);
    if (copy) outputs_.emplace_back(pybind11::reinterpret_borrow<pybind11::array>(array), copy);
    return copy;
  }
  void give_back() {
    for (auto& [array, copy] : outputs_) std::memcpy(array.mutable_data(), copy, array.nbytes());
  }

 private:
  std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
  std::vector<std::pair<pybind11::array, void*>> outputs_;
};

}  // namespace vgkernels
