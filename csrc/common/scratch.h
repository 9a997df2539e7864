// Decides where a CPU kernel's scratch lies: on a cache line's alignment, freed with its owner, NaN in debug builds so
// that a read of what was never written shows. Large blocks have huge pages and are kept for the next call, up to
// VGKERNELS_KEEP_SCRATCH MiB (256) in all: fresh ones are zeroed by Linux, page by page.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "common/huge_pages.h"

namespace vgkernels {

// Blocks that nobody uses at the moment; where they are too many, those go that were given first.
class KeptScratch {
 public:
  static KeptScratch& instance() {
    static KeptScratch* kept = new KeptScratch;  // for ever: threads may still run when the process ends
    return *kept;
  }
  // A block of `bytes` to twice as many, whose size goes to `bytes`; null: none.
  void* take(int64_t& bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int i = count_ - 1; i >= 0; --i)
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes) {
        bytes = blocks_[i].bytes;
        return remove(i);
      }
    return nullptr;
  }
  // Keeps the block, or frees it.
  void give(void* data, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (count_ > 0 && (count_ == kBlocks || total_ + bytes > limit_)) std::free(remove(0));
    if (bytes > limit_) return std::free(data);
    blocks_[count_++] = {data, bytes}, total_ += bytes;
  }

 private:
  static constexpr int kBlocks = 8;
  struct Block {
    void* data;
    int64_t bytes;
  };
  KeptScratch() {
    const char* wish = std::getenv("VGKERNELS_KEEP_SCRATCH");
    limit_ = (wish ? std::atoll(wish) : 256) << 20;
  }
  void* remove(int i) {
    void* data = blocks_[i].data;
    total_ -= blocks_[i].bytes;
    for (--count_; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    return data;
  }

  std::mutex mutex_;
  Block blocks_[kBlocks];
  int count_ = 0;
  int64_t total_ = 0, limit_ = 0;
};

class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes) : bytes_(bytes + 64) {
#if defined(VG_DEBUG)
    data_ = std::aligned_alloc(64, (bytes_ + 63) / 64 * 64);
    if (data_) std::memset(data_, 0xFF, bytes);
#else
    if (is_large()) data_ = KeptScratch::instance().take(bytes_);
    if (data_) return;
    const int64_t line = is_large() ? kHugePage : 64;
    bytes_ = (bytes_ + line - 1) / line * line;
    data_ = std::aligned_alloc(line, bytes_);
    if (data_) advise_huge_pages(data_, bytes_);
#endif
  }
  ~Scratch() {
#if !defined(VG_DEBUG)
    if (data_ && is_large()) KeptScratch::instance().give(std::exchange(data_, nullptr), bytes_);
#endif
    std::free(data_);
  }
  Scratch(Scratch&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  void* data() const { return data_; }  // null: there was no memory

 private:
  bool is_large() const { return bytes_ >= 2 * kHugePage; }

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace vgkernels
