// Decides what every pybind11 module of emulated kernels shares: configure(), and how numpy arrays become pointers.
// The functions themselves are bound by each module, planted_faults_bindings.cpp or <op>_bindings.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emu_config.h"

namespace vgkernels {

// The memory of a numpy array of any dtype, where it starts; None is null. The array must be writable for `output`.
inline const void* input(const pybind11::object& array) {
  return array.is_none() ? nullptr : pybind11::cast<pybind11::array>(array).data();
}
inline void* output(const pybind11::object& array) {
  if (array.is_none()) return nullptr;
  if (!pybind11::isinstance<pybind11::array>(array)) throw pybind11::type_error("expected a numpy array or None");
  return pybind11::reinterpret_borrow<pybind11::array>(array).mutable_data();
}

// A launcher returns null, or what went wrong.
inline void throw_if(const char* problem) {
  if (problem) throw std::runtime_error(problem);
}

inline void add_emulator(pybind11::module_& m) {
  using pybind11::arg;
  m.def("configure", &emu::configure, arg("schedule") = "forward", arg("poison") = 0xFF, arg("cp_async") = "late");
  m.def("launches", [] { return emu::config.launches; });
}

}  // namespace vgkernels
