// What Infini-attention computes besides products, rotations and attention: reading and writing one
// head's compressive memory, and mixing what it says with attention inside the segment (Munkhdalai
// et al. 2024, arXiv:2404.07143).
//
// Every function works on one key/value head of one sequence and on rows of one segment; heads and
// sequences are the caller's to spread over threads. An element's bits depend on its operands and
// the widths alone, never on how many rows a call has: rows may be cut into calls anywhere. Rows
// are f32 and `stride` elements apart; no alignment is required.
#pragma once

#include <cstdint>
#include <string_view>

namespace mneme::engine::infini {

struct MemoryView {
  const float* memory = nullptr;      // [dk, dv]
  const float* normalizer = nullptr;  // [dk]
  int64_t dk = 0;
  int64_t dv = 0;
  float eps = 0;
};

struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;
};

struct MemoryKernels {
  std::string_view backend;
  // y[i] = exp(min(x[i], 0)) + max(x[i], 0): ELU + 1 without the cancellation that would give zero
  // for x < -17.
  void (*feature_map)(const float* x, int64_t n, float* y);
  // out[t] = s[t] M / (s[t] . z + eps); s [count, dk] feature-mapped.
  void (*retrieve)(const MemoryView& view, Rows s, int64_t count, float* out, int64_t out_stride);
  // For t ascending: memory += outer(s[t], u[t]), normalizer += s[t]. u [count, dv].
  void (*accumulate)(Rows s, Rows u, int64_t count, int64_t dk, int64_t dv, float* memory,
                     float* normalizer);
  // u[t] = v[t] - u[t], [count, dv]: what the delta rule writes, from what the memory already says.
  void (*subtract_from)(Rows v, int64_t count, int64_t dv, float* u, int64_t u_stride);
  // mix[t] = memory_share * mix[t] + local_share * local[t], [count, dv].
  void (*blend)(float memory_share, float local_share, Rows local, int64_t count, int64_t dv,
                float* mix, int64_t mix_stride);
};

// nullptr if the backend has no version of them.
const MemoryKernels* FindMemoryKernels(std::string_view backend);

const MemoryKernels& ReferenceMemoryKernels();
const MemoryKernels& CpuMemoryKernels();

}  // namespace mneme::engine::infini
