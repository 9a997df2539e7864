// Decides which fresh memory gets huge pages: large results and scratch cost more in page faults than in arithmetic.
// VGKERNELS_HUGE_PAGES=0: none.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vgkernels {

constexpr int64_t kHugePage = int64_t(2) << 20;

// Advice for `bytes` at `data`, which nothing has touched yet.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const char* wish = std::getenv("VGKERNELS_HUGE_PAGES");
  if (bytes < 2 * kHugePage || (wish && std::strcmp(wish, "0") == 0)) return;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(data) + 4095) / 4096 * 4096;
  madvise(reinterpret_cast<void*>(start), bytes - 4096, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

}  // namespace vgkernels
