// Decides where a CPU kernel's scratch lies: a cache line's alignment, freed with its owner, NaN in debug builds so
// that a read of what was never written shows.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace vgkernels {

class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes) : data_(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {
#if defined(VG_DEBUG)
    if (data_) std::memset(data_, 0xFF, bytes);
#endif
  }
  ~Scratch() { std::free(data_); }
  Scratch(Scratch&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  void* data() const { return data_; }  // null: there was no memory

 private:
  void* data_ = nullptr;
};

}  // namespace vgkernels
