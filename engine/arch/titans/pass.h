// One pass through the layers: some tokens of each of several sequences, one sequence behind the
// other, and what the parts of a layer need to work on them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/titans/kernels.h"
#include "engine/core/aligned_buffer.h"
#include "engine/core/dtype.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"
#include "engine/state/schema.h"

namespace mneme::engine::titans {

struct Sequence {
  State* state = nullptr;
  int64_t position = 0;  // of its first token in this pass
  int64_t first = 0;     // row of that token
  int64_t count = 0;     // > 0
};

struct Pass {
  Exec& exec;
  const TitansKernels& kernels;
  std::span<const Sequence> sequences;
  int64_t T = 0;  // rows of all sequences
};

// One growing block of f32 per thread of the pool.
class WorkerScratch {
 public:
  // Before the threads start.
  void Prepare(int num_threads) {
    if (blocks_.size() < static_cast<size_t>(num_threads)) blocks_.resize(num_threads);
  }
  // At least `elements`, contents undefined.
  float* Get(int worker, int64_t elements) {
    const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
    if (blocks_[worker].size() < bytes) blocks_[worker] = AlignedBuffer(bytes);
    return blocks_[worker].as<float>();
  }

 private:
  std::vector<AlignedBuffer> blocks_;
};

}  // namespace mneme::engine::titans
