// How a launcher reaches the device: lists in one copy, kernels in order.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstring>
#include <span>
#include <type_traits>

#include "engine/kernels/cuda/launches.h"
#include "engine/kernels/cuda/runtime.h"
#include "engine/kernels/exec.h"

namespace mneme::engine::cuda {

// The device of an Exec that a kernel of this backend was called with.
inline CudaDevice& Cuda(Exec& exec) { return static_cast<CudaDevice&>(exec.device()); }

inline unsigned Blocks(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Launches nothing if the grid is empty. `shared_bytes` of dynamic shared memory; arguments are
// taken by value.
template <typename... Params, typename... Args>
void Launch(CudaDevice& device, void (*kernel)(Params...), dim3 grid, unsigned threads,
            size_t shared_bytes, Args... args) {
  static_assert((std::is_trivially_copyable_v<Params> && ...));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  device.Use();
  constexpr size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking && !device.MayShareMore(kernel)) return;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device.stream();
  device.Check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "kernel launch");
}

// Arrays that one copy takes to the device.
//   Upload upload(device);
//   const T* list = upload.Add(span);      the address on the device
//   upload.Send();                          before the launch that reads them
// Add is called for everything before Send; Room must have been told the most there can be.
class Upload {
 public:
  Upload(CudaDevice& device, size_t room_bytes)
      : staging_(device.staging()), place_(staging_.Reserve(room_bytes)) {}

  // What an array of `count` T takes of the room.
  template <typename T>
  static constexpr size_t Bytes(size_t count) {
    return (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  // An array to be filled in: where it is written on the host, where kernels find it.
  template <typename T>
  struct Array {
    T* host;
    T* device;
  };
  template <typename T>
  Array<T> Allocate(size_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlignment);
    const size_t at = used_;
    used_ += Bytes<T>(count);
    assert(used_ <= place_.bytes);
    return {reinterpret_cast<T*>(place_.host + at), reinterpret_cast<T*>(place_.device + at)};
  }
  template <typename T>
  const T* Add(std::span<const T> values) {
    const Array<T> array = Allocate<T>(values.size());
    std::copy(values.begin(), values.end(), array.host);
    return array.device;
  }
  void Send() { staging_.Send(place_); }

 private:
  static constexpr size_t kAlignment = 16;

  Staging& staging_;
  Staging::Place place_;
  size_t used_ = 0;
};

// A simple launcher's list as its kernel's argument, `const __grid_constant__ List<T>`: a short one
// whole, else where a copy has put it. Threads of a block ask for one element.
template <typename T>
struct List {
  const T* copy;
  T few[FewOf<T>()];

  __device__ __forceinline__ T operator[](unsigned i) const {
    return copy != nullptr ? copy[i] : few[i];
  }
};

template <typename T>
List<T> ListOf(CudaDevice& device, std::span<const T> values) {
  List<T> list;
  list.copy = nullptr;
  if (values.size() <= FewOf<T>()) {
    std::copy(values.begin(), values.end(), list.few);
    return list;
  }
  Upload upload(device, Upload::Bytes<T>(values.size()));
  list.copy = upload.Add(values);
  upload.Send();
  return list;
}

}  // namespace mneme::engine::cuda
