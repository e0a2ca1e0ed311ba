// Where weights, states and activations live: the host's memory or a device's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "absl/status/status.h"

namespace mneme::engine {

class Memory;

struct ReleaseBlock {
  Memory* memory = nullptr;
  size_t size_bytes = 0;
  void operator()(std::byte* at) const;
};

// An owned piece of some memory. Movable.
class Block {
 public:
  Block() = default;

  size_t size() const { return at_.get_deleter().size_bytes; }
  Memory* memory() const { return at_.get_deleter().memory; }
  explicit operator bool() const { return at_ != nullptr; }

  // In `memory`: only its kernels read and write there.
  std::byte* address() const { return at_.get(); }
  // The same, of blocks in the host's memory; aborts for others.
  std::byte* data();
  const std::byte* data() const;
  template <typename T>
  T* as(size_t offset_bytes = 0) {
    return reinterpret_cast<T*>(data() + offset_bytes);
  }
  template <typename T>
  const T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<const T*>(data() + offset_bytes);
  }

 private:
  friend class Memory;
  std::unique_ptr<std::byte, ReleaseBlock> at_;
};

// Must outlive its blocks. Thread-safe. Writes and copies that a device's fault keeps from
// happening say nothing: whatever is read or waited for afterwards fails.
class Memory {
 public:
  virtual ~Memory() = default;

  // Whether the host can read and write blocks where they lie.
  virtual bool OnHost() const = 0;
  // What there is of it for this process, used or not.
  virtual int64_t CapacityBytes() const = 0;
  // Zeroed, 64-byte aligned. Throws std::bad_alloc.
  Block Allocate(size_t size_bytes);
  virtual void Write(Block& to, size_t at, std::span<const std::byte> bytes) = 0;
  // INTERNAL after a fault of the device; `bytes` then mean nothing.
  virtual absl::Status Read(const Block& from, size_t at, std::span<std::byte> bytes) const = 0;
  // Bytes [at, at + size_bytes) of one block to the same place of another.
  virtual void Copy(const Block& from, size_t at, size_t size_bytes, Block& to) = 0;
  // A file's bytes that a matrix is used from, as this memory's kernels reach them: the mapping
  // itself, or a copy that `store` owns.
  virtual const std::byte* Map(std::span<const std::byte> file, Block& store) = 0;

 protected:
  friend struct ReleaseBlock;
  virtual std::byte* AllocateBytes(size_t size_bytes) = 0;
  virtual void Free(std::byte* at, size_t size_bytes) = 0;
};

// Of this process.
Memory& HostMemory();

inline void ReleaseBlock::operator()(std::byte* at) const { memory->Free(at, size_bytes); }
inline std::byte* Block::data() {
  if (memory() != nullptr && !memory()->OnHost()) std::abort();
  return at_.get();
}
inline const std::byte* Block::data() const { return const_cast<Block*>(this)->data(); }

}  // namespace mneme::engine
