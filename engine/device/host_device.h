// The device of kernels that run on the host's processors: their threads and scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/core/aligned_buffer.h"
#include "engine/core/thread_pool.h"
#include "engine/device/device.h"
#include "engine/device/rope_table.h"

namespace mneme::engine {

class HostDevice : public Device {
 public:
  HostDevice(std::string_view name, std::string (*numerics)(), const Kernels& kernels,
             int num_threads)
      : name_(name), numerics_(numerics), kernels_(kernels), pool_(num_threads) {}

  std::string_view name() const override { return name_; }
  std::string description() const override { return absl::StrCat("host, ", numerics_()); }
  std::string numerics() const override { return numerics_(); }
  const Kernels& kernels() const override { return kernels_; }
  Memory& memory() override { return HostMemory(); }
  absl::Status Wait() override { return absl::OkStatus(); }  // calls return when they are done
  void ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) override {
    pool_.Run(n, [&](int64_t i, int) { fn(i); });
  }

  // For kernels, which one thread calls at a time. They allocate only from this scratch, which
  // grows to the largest call and stays.
  ThreadPool& pool() { return pool_; }
  RopeTables& rope_tables() { return rope_tables_; }

  // At least `size_bytes`, 64-byte aligned, contents undefined, valid until the next call with the
  // same `slot`. Each kernel uses its own slots, listed below, so nested use cannot collide.
  enum Slot {
    kMatMulActivations,
    kMatMulWorkers,
    kAttention,
    kAttentionWorkers,
    kInfiniUpdates,
    kShortConvWorkers,
    kTitansAttentionWorkers,
    kTitansMemoryWorkers,
    kNumSlots
  };
  std::byte* Scratch(Slot slot, size_t size_bytes) {
    if (scratch_[slot].size() < size_bytes) scratch_[slot] = AlignedBuffer(size_bytes);
    return scratch_[slot].data();
  }

  // At least `elements` f32 for each thread of the pool, each thread's on cache lines of its own;
  // otherwise like Scratch.
  struct WorkerFloats {
    float* first = nullptr;
    int64_t stride = 0;
    float* Of(int worker) const { return first + worker * stride; }
  };
  WorkerFloats WorkerScratch(Slot slot, int64_t elements) {
    const int64_t stride = (elements + 15) / 16 * 16;
    const size_t bytes = pool_.num_threads() * stride * sizeof(float);
    return {reinterpret_cast<float*>(Scratch(slot, bytes)), stride};
  }

 private:
  const std::string_view name_;
  std::string (*const numerics_)();
  const Kernels& kernels_;
  ThreadPool pool_;
  AlignedBuffer scratch_[kNumSlots];
  RopeTables rope_tables_;
};

}  // namespace mneme::engine
