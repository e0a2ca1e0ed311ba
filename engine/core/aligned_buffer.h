// An owned, 64-byte aligned block of bytes: states, scratch and activations.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

namespace mneme::engine {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;  // a cache line, and the widest vector register

  AlignedBuffer() = default;
  // Zeroed: a slot never shows what another sequence left behind. Throws std::bad_alloc.
  explicit AlignedBuffer(size_t size_bytes) : size_(size_bytes) {
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
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

}  // namespace mneme::engine
