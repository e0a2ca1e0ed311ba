#include "engine/device/memory.h"

#include <sys/sysinfo.h>

#include <algorithm>
#include <cstring>

#include "engine/core/aligned_buffer.h"
#include "engine/core/cgroup.h"

namespace mneme::engine {
namespace {

class Host final : public Memory {
 public:
  bool OnHost() const override { return true; }
  // The machine's, or the cgroup's where that is less.
  int64_t CapacityBytes() const override {
    struct sysinfo info;
    int64_t bytes = int64_t{1} << 32;
    if (sysinfo(&info) == 0) bytes = static_cast<int64_t>(info.totalram) * info.mem_unit;
    return std::min(bytes, ReadCgroupLimits().memory_bytes);
  }
  void Write(Block& to, size_t at, std::span<const std::byte> bytes) override {
    std::memcpy(to.data() + at, bytes.data(), bytes.size());
  }
  absl::Status Read(const Block& from, size_t at, std::span<std::byte> bytes) const override {
    std::memcpy(bytes.data(), from.data() + at, bytes.size());
    return absl::OkStatus();
  }
  void Copy(const Block& from, size_t at, size_t size_bytes, Block& to) override {
    std::memcpy(to.data() + at, from.data() + at, size_bytes);
  }
  const std::byte* Map(std::span<const std::byte> file, Block&) override { return file.data(); }

 protected:
  std::byte* AllocateBytes(size_t size_bytes) override { return AllocateAligned(size_bytes); }
  void Free(std::byte* at, size_t size_bytes) override { FreeAligned(at, size_bytes); }
};

}  // namespace

Block Memory::Allocate(size_t size_bytes) {
  Block block;
  block.at_ = {AllocateBytes(size_bytes), ReleaseBlock{this, size_bytes}};
  return block;
}

Memory& HostMemory() {
  static Host* const memory = new Host;  // outlives every block
  return *memory;
}

}  // namespace mneme::engine
