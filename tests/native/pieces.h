// Decides into which ranges of units CPU kernels are split where tests call them without torch: any number, either way;
// one after the other, so that the order is known, but for TSan all at once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace vgkernels {

// Calls run(begin, end) for `pieces` ranges of about one size, or fewer where there are not as many units.
template <class Run>
void in_pieces(int64_t units, int64_t pieces, bool reversed, const Run& run) {
  const char* variant = std::getenv("VGKERNELS_NATIVE_VARIANT");
  const bool at_once = variant && std::string(variant) == "tsan";
  if (at_once) pieces = std::clamp<int64_t>(pieces, 2, 4);
  std::atomic<bool> complete{true};
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t piece = reversed ? pieces - 1 - i : i;
    const int64_t begin = units * piece / pieces, end = units * (piece + 1) / pieces;
    const auto work = [&run, &complete, begin, end] {
      if (begin < end && !run(begin, end)) complete = false;
    };
    if (at_once)
      threads.emplace_back(work);
    else
      work();
  }
  for (std::thread& thread : threads) thread.join();
  if (!complete) throw std::runtime_error("out of memory");
}

}  // namespace vgkernels
