// Decides how a test speaks to the emulator behind the torch ops: schedule and poison, and what has been launched. The
// ops themselves are those of csrc/*/*_ops.cpp, under the namespace vgkernels_emulated (csrc/common/library.h).
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "cuda_emu_config.h"

namespace {

void configure(std::string schedule, int64_t poison, std::string cp_async) {
  emu::configure(schedule, int(poison), cp_async);
}

int64_t launches() { return int64_t(emu::config.launches); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vgkernels_emulated, m) {
  m.def("configure(str schedule, int poison, str cp_async) -> ()");
  m.def("launches() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(vgkernels_emulated, CompositeExplicitAutograd, m) {
  m.impl("configure", TORCH_BOX(&configure));
  m.impl("launches", TORCH_BOX(&launches));
}
