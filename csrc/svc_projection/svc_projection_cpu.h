// Decides how the CPU work of svc_projection is handed out: the caller runs ranges of units, in phases. Any split of
// the units over threads gives the same bits, and so does any company of other matrices.
#pragma once

#include "common/parallel.h"
#include "svc_projection/svc_projection.h"

namespace vgkernels {

// Clips `count` matrices in place and reports on each. If one is non-finite and skip_nonfinite is false, none is
// written. False: there was no memory; what was begun may be half-clipped.
bool svc_projection_cpu(const SvcMatrix* matrices, int64_t count, DType dtype, bool skip_nonfinite,
                        const Parallel& parallel, SvcReport* report);

}  // namespace vgkernels
