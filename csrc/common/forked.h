// Decides whether there are threads to share work with: in a forked child there are none. OpenMP goes on counting its
// threads, which only the parent has, and waits for them for ever. Leaves torch's own products there to
// vgkernels/_forked.py.
#pragma once

#if defined(__linux__)
#include <pthread.h>
#endif

namespace vgkernels {

inline bool in_forked_child = false;

// From loading on: a parent may have used torch's threads without ever calling one of our ops. By the C library's own
// hook, so that forks made by C count too.
struct ForkWatch {
  ForkWatch() {
#if defined(__linux__)
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif
  }
};
inline const ForkWatch fork_watch;

}  // namespace vgkernels
