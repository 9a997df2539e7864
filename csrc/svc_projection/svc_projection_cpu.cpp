// Picks the copy of the kernels that was compiled for this processor. The order of the work is in
// svc_projection_phases.h, what a Gram matrix says in svc_projection_clip.h, the arithmetic in the headers below those.
#include "svc_projection/svc_projection_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/scratch.h"

#define VG_ISA_FILE "svc_projection/svc_projection_isa.h"
#include "common/foreach_isa.h"

namespace vgkernels {

bool svc_projection_cpu(const SvcMatrix* matrices, int64_t count, DType dtype, bool skip_nonfinite,
                        const Parallel& parallel, SvcReport* report) {
  return with_type(dtype, [&](auto zero) {
    return VG_FOR_ISA(project<decltype(zero)>(matrices, count, dtype, skip_nonfinite, parallel, report));
  });
}

}  // namespace vgkernels
