// A memory that the host cannot see, as a device's is: what looks through a block without asking
// dies. Kernels of the host reach it all the same, so whole models run on it.
#pragma once

#include <cstdlib>
#include <cstring>

#include "engine/core/aligned_buffer.h"
#include "engine/device/memory.h"

namespace mneme::test {

class RemoteMemory final : public engine::Memory {
 public:
  bool OnHost() const override { return false; }
  int64_t CapacityBytes() const override { return engine::HostMemory().CapacityBytes(); }
  void Write(engine::Block& to, size_t at, std::span<const std::byte> bytes) override {
    std::memcpy(to.address() + at, bytes.data(), bytes.size());
  }
  absl::Status Read(const engine::Block& from, size_t at,
                    std::span<std::byte> bytes) const override {
    std::memcpy(bytes.data(), from.address() + at, bytes.size());
    return absl::OkStatus();
  }
  void Copy(const engine::Block& from, size_t at, size_t size_bytes, engine::Block& to) override {
    std::memcpy(to.address() + at, from.address() + at, size_bytes);
  }
  const std::byte* Map(std::span<const std::byte> file, engine::Block& store) override {
    store = Allocate(file.size());
    Write(store, 0, file);
    return store.address();
  }

 protected:
  std::byte* AllocateBytes(size_t size_bytes) override {
    return engine::AllocateAligned(size_bytes);
  }
  void Free(std::byte* at, size_t size_bytes) override { engine::FreeAligned(at, size_bytes); }
};

}  // namespace mneme::test
