// What every Forward needs around its layers: arrays for one pass, and the head on the rows whose
// logits are wanted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/core/aligned_buffer.h"
#include "engine/kernels/rows.h"

namespace mneme::engine {

// Arrays of f32 in one block that grows to the largest pass and stays; each starts on a cache line.
class StepBuffers {
 public:
  struct Part {
    float** array;
    int64_t size;  // elements
  };
  // Points every array into the block; contents are undefined.
  void Reserve(std::span<const Part> parts);

 private:
  AlignedBuffer block_;
};

// The slices' tokens, one behind the other.
void FlattenTokens(std::span<const ArchSlice> slices, std::vector<int32_t>* tokens);

// fn(slice, first) for every slice that has tokens; `first` is the row of its first token.
template <typename Fn>
void ForEachSlice(std::span<const ArchSlice> slices, Fn fn) {
  int64_t first = 0;
  for (const ArchSlice& slice : slices) {
    if (slice.tokens.empty()) continue;
    fn(slice, first);
    first += static_cast<int64_t>(slice.tokens.size());
  }
}

// Logits of the wanted rows.
class OutputHead {
 public:
  // Copies the wanted rows of x [T, D] to the front of `rows` [>= T, D]; returns their number.
  int64_t Gather(Exec& exec, std::span<const ArchSlice> slices, const float* x, int64_t D,
                 int64_t V, float* rows);
  // head [V, D] times the gathered rows, normalised in the meantime, to where they are wanted.
  void Product(Exec& exec, const Weight& head, const float* rows);

 private:
  std::vector<float*> where_;  // destination of each row
  std::vector<CopyRowsArgs> copies_;
  AlignedBuffer logits_;
};

}  // namespace mneme::engine
