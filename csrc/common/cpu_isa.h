// Decides which instruction set the CPU kernels use in this process: the best one that the processor has,
// or the one that the environment variable VGKERNELS_CPU_ISA (baseline, avx2, avx512) asks for, never more.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define VG_HAS_ISA_CLONES 1
#else
#define VG_HAS_ISA_CLONES 0
#endif

namespace vgkernels {

enum class CpuIsa : int { baseline, avx2, avx512 };

CpuIsa cpu_isa();  // chosen once, at the first call
const char* cpu_isa_name();

}  // namespace vgkernels
