// Decides what a launch leaves behind for who asks which kernels the tests have run: a line "LIBRARY OFFSET" in the
// file that VGKERNELS_LAUNCHED names, at a kernel's first launch in a process. tools/launched_kernels.py reads it.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>

namespace emu {

inline void note_launch(const void* kernel) {
  static const char* path = std::getenv("VGKERNELS_LAUNCHED");
  static std::set<const void*> noted;
  Dl_info library;
  if (!path || !noted.insert(kernel).second || !dladdr(kernel, &library)) return;
  if (FILE* file = std::fopen(path, "a")) {
    const auto offset = reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(library.dli_fbase);
    std::fprintf(file, "%s %zx\n", library.dli_fname, size_t(offset));
    std::fclose(file);
  }
}

}  // namespace emu
