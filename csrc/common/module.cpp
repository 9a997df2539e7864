// Decides the library's own namespace and its one op without a room: build_info, what this binary is and runs on.
// Each op registers itself in its <op>_ops.cpp by a fragment; nothing here grows with them.
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/cpu_isa.h"

#define VG_TEXT_(x) #x
#define VG_TEXT(x) VG_TEXT_(x)

namespace {

std::string build_info() {
  return std::string("cpu kernels: ") + vgkernels::cpu_isa_name() +
         "; compiler: " __VERSION__ "; C++ " VG_TEXT(__cplusplus) +
         "; stable ABI target: " VG_TEXT(TORCH_TARGET_VERSION);
}

}  // namespace

STABLE_TORCH_LIBRARY(vgkernels, m) { m.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(vgkernels, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }
