// Asks the processor and the environment, once.
#include "common/cpu_isa.h"

#include <cstdlib>
#include <cstring>

namespace vgkernels {
namespace {

const char* const names[] = {"baseline", "avx2", "avx512"};

CpuIsa choose() {
  int best = 0;
#if VG_HAS_ISA_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = 2;
#endif
  if (const char* asked = std::getenv("VGKERNELS_CPU_ISA"))
    for (int i = 0; i < best; ++i)
      if (std::strcmp(asked, names[i]) == 0) best = i;
  return CpuIsa(best);
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa chosen = choose();
  return chosen;
}

const char* cpu_isa_name() { return names[int(cpu_isa())]; }

}  // namespace vgkernels
