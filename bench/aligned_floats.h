// Arrays of f32 that begin on a cache line, as the engine's activations and states do.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace mneme::bench {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  explicit LineAllocator(const LineAllocator<U>&) {}

  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const {
    return true;
  }
};

using AlignedFloats = std::vector<float, LineAllocator<float>>;

}  // namespace mneme::bench
