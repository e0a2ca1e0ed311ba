#include "engine/arch/step_buffers.h"

#include <algorithm>

#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"

namespace mneme::engine {
namespace {

// Rows whose logits cannot be written in place are computed this many at a time: 64 rows of 65,536
// are 16 MiB, and the head's weights are still read only once per 64 rows.
constexpr int64_t kHeadRows = 64;

}  // namespace

void StepBuffers::Reserve(std::span<const Part> parts) {
  constexpr int64_t kLine = AlignedBuffer::kAlignment / sizeof(float);
  const auto rounded = [](int64_t size) { return (size + kLine - 1) / kLine * kLine; };
  int64_t total = 0;
  for (const Part& part : parts) total += rounded(part.size);
  if (block_.size() < total * sizeof(float)) block_ = AlignedBuffer(total * sizeof(float));
  float* next = block_.as<float>();
  for (const Part& part : parts) {
    *part.array = next;
    next += rounded(part.size);
  }
}

void FlattenTokens(std::span<const ArchSlice> slices, std::vector<int32_t>* tokens) {
  tokens->clear();
  for (const ArchSlice& slice : slices) {
    tokens->insert(tokens->end(), slice.tokens.begin(), slice.tokens.end());
  }
}

int64_t OutputHead::Gather(Exec& exec, std::span<const ArchSlice> slices, const float* x, int64_t D,
                           int64_t V, float* rows) {
  where_.clear();
  copies_.clear();
  int64_t end = 0;
  for (const ArchSlice& slice : slices) {
    end += static_cast<int64_t>(slice.tokens.size());
    if (slice.num_logits == 0) continue;
    copies_.push_back({.from = x + (end - slice.num_logits) * D,
                       .from_stride = D,
                       .to = rows + where_.size() * D,
                       .to_stride = D,
                       .rows = slice.num_logits,
                       .width = D});
    for (int64_t i = 0; i < slice.num_logits; ++i) where_.push_back(slice.logits + i * V);
  }
  exec.kernels().copy_rows(exec, copies_);
  return static_cast<int64_t>(where_.size());
}

void OutputHead::Product(Exec& exec, const Weight& head, const float* rows) {
  const int64_t V = head.rows, D = head.columns;
  const auto total = static_cast<int64_t>(where_.size());
  for (int64_t begin = 0; begin < total;) {
    const int64_t count = std::min(kHeadRows, total - begin);
    bool in_place = true;
    for (int64_t i = 1; i < count; ++i) in_place &= where_[begin + i] == where_[begin] + i * V;
    MatMulTask task{.weight = head, .y = where_[begin], .y_stride = V};
    if (!in_place) {
      const size_t bytes = count * V * sizeof(float);
      if (logits_.size() < bytes) logits_ = AlignedBuffer(bytes);
      task.y = logits_.as<float>();
    }
    exec.kernels().matmul(exec, {&task, 1}, rows + begin * D, D, count);
    if (!in_place) {
      copies_.clear();
      for (int64_t i = 0; i < count; ++i) {
        copies_.push_back(
            {.from = logits_.as<float>() + i * V, .to = where_[begin + i], .rows = 1, .width = V});
      }
      exec.kernels().copy_rows(exec, copies_);
    }
    begin += count;
  }
}

}  // namespace mneme::engine
