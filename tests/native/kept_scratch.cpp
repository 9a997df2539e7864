// Decides how tests/test_common_scratch.py reaches the blocks that large scratch leaves for the next call. Debug
// builds, which all other native modules are, keep none.
#undef VG_DEBUG
#include "common/scratch.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

using namespace vgkernels;

PYBIND11_MODULE(kept_scratch, m) {
  m.def("fresh", [](int64_t bytes) { return reinterpret_cast<uintptr_t>(std::aligned_alloc(64, bytes)); });
  m.def("give",
        [](uintptr_t block, int64_t bytes) { KeptScratch::instance().give(reinterpret_cast<void*>(block), bytes); });
  m.def("take", [](int64_t bytes) {  // (address or 0, size)
    const auto block = reinterpret_cast<uintptr_t>(KeptScratch::instance().take(bytes));
    return std::pair(block, block ? bytes : 0);
  });
  m.def("scratch", [](int64_t bytes) {  // made and left again
    const Scratch scratch(bytes);
    return reinterpret_cast<uintptr_t>(scratch.data());
  });
}
