// Decides into which ranges of units CPU kernels are split where tests call them without torch: any number, either way.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace vgkernels {

// Calls run(begin, end) for `pieces` ranges of about one size, or fewer where there are not as many units.
template <class Run>
void in_pieces(int64_t units, int64_t pieces, bool reversed, const Run& run) {
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t piece = reversed ? pieces - 1 - i : i;
    const int64_t begin = units * piece / pieces, end = units * (piece + 1) / pieces;
    if (begin < end && !run(begin, end)) throw std::runtime_error("out of memory");
  }
}

}  // namespace vgkernels
