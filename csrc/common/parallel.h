// Decides how a CPU kernel that works in phases gets threads: it is handed a parallel loop, and owns none itself.
#pragma once

#include <cstdint>
#include <functional>

namespace vgkernels {

// Calls run(begin, end) over all of [0, units), from any threads; about `work` operations a unit. A run returns false
// where there was no memory.
using Range = std::function<bool(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t units, int64_t work, const Range& run)>;

}  // namespace vgkernels
