// 64-byte aligned blocks of bytes in the host's memory.
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

inline constexpr size_t kBlockAlignment = 64;  // a cache line, and the widest vector register

#if defined(MNEME_RED_ZONES)
inline constexpr size_t kMapFromBytes = SIZE_MAX;
#else
inline constexpr size_t kMapFromBytes = size_t{1} << 20;
#endif

// Zeroed: a slot never shows what another sequence left behind. Large blocks come from the kernel a
// page at a time, when they are first written: a state is as large as its window, and a short
// session neither waits for nor occupies the rows it never reads. Throws std::bad_alloc.
inline std::byte* AllocateAligned(size_t size_bytes) {
  if (size_bytes >= kMapFromBytes) {
    void* mapped = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, /*offset=*/0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(mapped);
  }
  const size_t rounded = (size_bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  auto* block = static_cast<std::byte*>(
      std::aligned_alloc(kBlockAlignment, rounded ? rounded : kBlockAlignment));
  if (block == nullptr) throw std::bad_alloc();
  std::memset(block, 0, rounded);
  return block;
}

// What AllocateAligned returned for this size.
inline void FreeAligned(std::byte* block, size_t size_bytes) {
  if (size_bytes >= kMapFromBytes) {
    munmap(block, size_bytes);
  } else {
    std::free(block);
  }
}

struct ReleaseAligned {
  size_t size_bytes = 0;
  void operator()(std::byte* block) const { FreeAligned(block, size_bytes); }
};

// Owns one such block.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = kBlockAlignment;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size_bytes)
      : data_(AllocateAligned(size_bytes), ReleaseAligned{size_bytes}) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return data_.get_deleter().size_bytes; }
  template <typename T>
  T* as(size_t offset_bytes = 0) {
    return reinterpret_cast<T*>(data_.get() + offset_bytes);
  }
  template <typename T>
  const T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<const T*>(data_.get() + offset_bytes);
  }

 private:
  std::unique_ptr<std::byte, ReleaseAligned> data_;
};

}  // namespace mneme::engine
