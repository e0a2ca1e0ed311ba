// An owned, 64-byte aligned block of bytes: states, scratch and activations.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

// AddressSanitizer guards the ends of heap blocks, not those of mappings.
#if defined(__SANITIZE_ADDRESS__)
#define MNEME_RED_ZONES 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MNEME_RED_ZONES 1
#endif
#endif

namespace mneme::engine {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;  // a cache line, and the widest vector register

  AlignedBuffer() = default;
  // Zeroed: a slot never shows what another sequence left behind. Large blocks come from the kernel
  // a page at a time, when they are first written: a state is as large as its window, and a short
  // session neither waits for nor occupies the rows it never reads. Throws std::bad_alloc.
  explicit AlignedBuffer(size_t size_bytes) : size_(size_bytes) {
    if (size_bytes >= kMapFromBytes) {
      void* mapped = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                          -1, /*offset=*/0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      data_ = {static_cast<std::byte*>(mapped), Release{size_bytes}};
      return;
    }
    const size_t rounded = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(
        static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded ? rounded : kAlignment)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, rounded);
  }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  template <typename T>
  T* as(size_t offset_bytes = 0) {
    return reinterpret_cast<T*>(data_.get() + offset_bytes);
  }
  template <typename T>
  const T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<const T*>(data_.get() + offset_bytes);
  }

 private:
#if defined(MNEME_RED_ZONES)
  static constexpr size_t kMapFromBytes = SIZE_MAX;
#else
  static constexpr size_t kMapFromBytes = size_t{1} << 20;
#endif

  struct Release {
    size_t mapped_bytes;  // 0: from the heap
    void operator()(std::byte* p) const {
      if (mapped_bytes > 0) {
        munmap(p, mapped_bytes);
      } else {
        std::free(p);
      }
    }
  };
  std::unique_ptr<std::byte, Release> data_;
  size_t size_ = 0;
};

}  // namespace mneme::engine
