// Picks the copy of the kernels that was compiled for this processor. The order of the work is in
// sliced_wasserstein_phases.h; the sort, on which the speed rests, in sliced_wasserstein_sort.h.
#include "sliced_wasserstein/sliced_wasserstein_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/scratch.h"

#define VG_ISA_FILE "sliced_wasserstein/sliced_wasserstein_isa.h"
#include "common/foreach_isa.h"

namespace vgkernels {

bool sliced_wasserstein_cpu(const SlicedWassersteinParams& params, DType dtype, const Parallel& parallel) {
  try {
    if (dtype == DType::float64) return VG_FOR_ISA(sliced_wasserstein<double>(params, parallel));
    return VG_FOR_ISA(sliced_wasserstein<float>(params, parallel));
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace vgkernels
