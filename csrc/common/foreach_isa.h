// Decides which instruction sets a CPU kernel is compiled for: includes VG_ISA_FILE once for each, in a namespace of
// its own. VG_FOR_ISA(f(args)) then calls the copy that this processor runs (cpu_isa.h). Headers that VG_ISA_FILE needs
// and that are not meant to be compiled per instruction set must be included before this one.
#pragma once

#include "common/cpu_isa.h"

#if VG_HAS_ISA_CLONES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 on its own header: the operand that a mask would keep
#include <immintrin.h>
#pragma GCC diagnostic pop
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define VG_ISA_BYTES 64
namespace vgkernels::avx512 {
#include VG_ISA_FILE
}
#undef VG_ISA_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define VG_ISA_BYTES 32
namespace vgkernels::avx2 {
#include VG_ISA_FILE
}
#undef VG_ISA_BYTES
#pragma GCC pop_options
#endif

#define VG_ISA_BYTES 16
namespace vgkernels::baseline {
#include VG_ISA_FILE
}
#undef VG_ISA_BYTES

#if VG_HAS_ISA_CLONES
#define VG_FOR_ISA(call) \
  (cpu_isa() == CpuIsa::avx512 ? avx512::call : cpu_isa() == CpuIsa::avx2 ? avx2::call : baseline::call)
#else
#define VG_FOR_ISA(call) (baseline::call)
#endif
