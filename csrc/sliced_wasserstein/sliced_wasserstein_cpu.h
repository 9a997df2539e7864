// Decides how the CPU work of sliced_wasserstein is handed out: the caller runs ranges of units, in phases. Any split
// of the units over threads gives the same bits.
#pragma once

#include "common/parallel.h"
#include "sliced_wasserstein/sliced_wasserstein.h"

namespace vgkernels {

constexpr int64_t kSlicedWassersteinLargest = int64_t(1) << 29;  // samples of a side: an index has 29 bits

// False: there was no memory; the outputs hold anything.
bool sliced_wasserstein_cpu(const SlicedWassersteinParams& params, DType dtype, const Parallel& parallel);

}  // namespace vgkernels
