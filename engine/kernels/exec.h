// What a kernel call needs besides its operands: backend, threads, numeric contract, scratch.
#pragma once

#include <string_view>
#include <vector>

#include "engine/core/aligned_buffer.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/contract.h"
#include "engine/kernels/rope_table.h"

namespace mneme::engine {

struct Kernels;

// One per engine, used by one thread at a time. Kernels allocate only from its scratch, which grows
// to the largest call and stays.
class Exec {
 public:
  Exec(const Kernels& kernels, Contract contract, int num_threads)
      : kernels_(kernels), contract_(contract), pool_(num_threads) {}

  const Kernels& kernels() const { return kernels_; }
  Contract contract() const { return contract_; }
  ThreadPool& pool() { return pool_; }

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

  RopeTables& rope_tables() { return rope_tables_; }

 private:
  const Kernels& kernels_;
  const Contract contract_;
  ThreadPool pool_;
  AlignedBuffer scratch_[kNumSlots];
  RopeTables rope_tables_;
};

}  // namespace mneme::engine
