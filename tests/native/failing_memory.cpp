// Decides which allocation fails: the n-th one, alone or with all after it, of those that our library makes and of
// those that hold tensors. Preloaded into a process by test_hostile_memory.py. What torch and Python need for
// themselves never fails: how they take that is theirs to test.
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <cstdint>
#include <new>

namespace {

std::atomic<int64_t> left{0};      // allocations until the one that fails; 0: none does
std::atomic<int64_t> failures{0};  // since arm()
std::atomic<bool> for_good{false};
char *ours_begin = nullptr, *ours_end = nullptr;

bool fails() {
  int64_t now = left.load();
  while (now > 0) {
    if (now == 1 && for_good) break;
    if (left.compare_exchange_weak(now, now - 1)) break;
  }
  if (now != 1) return false;
  ++failures;
  return true;
}

bool is_ours(void* caller) { return caller >= ours_begin && caller < ours_end; }

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

void vg_ours(char* begin, char* end) { ours_begin = begin, ours_end = end; }
void vg_arm(int64_t n, bool all_after) { for_good = all_after, failures = 0, left = n; }
int64_t vg_disarm() { return left = 0, failures.load(); }

// torch's tensors on the CPU
int posix_memalign(void** data, size_t alignment, size_t bytes) {
  static const auto real = next<int (*)(void**, size_t, size_t)>("posix_memalign");
  return fails() ? ENOMEM : real(data, alignment, bytes);
}
// our scratch
void* aligned_alloc(size_t alignment, size_t bytes) {
  static const auto real = next<void* (*)(size_t, size_t)>("aligned_alloc");
  return fails() ? (errno = ENOMEM, nullptr) : real(alignment, bytes);
}
}

// our vectors and functions
void* operator new(size_t bytes) {
  static const auto real = next<void* (*)(size_t)>("_Znwm");
  if (is_ours(__builtin_return_address(0)) && fails()) throw std::bad_alloc();
  return real(bytes);
}
