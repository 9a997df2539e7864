// Decides how a CUDA call's workspace, one block of bytes from the caller, is cut into arrays.
#pragma once

#include <cstdint>

namespace vgkernels {

// Aligned pieces of the block at `begin`, one after the other; from null it only counts.
struct Pieces {
  char* begin;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(begin + used);  // reinterpret_cast: untyped scratch, aligned to 256 bytes
    used += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
};

}  // namespace vgkernels
