// The compressive memory of Infini-attention (Munkhdalai et al. 2024, arXiv:2404.07143): per
// key/value head a matrix M [dk, dv] and a normaliser z [dk] of the complete segments, and what the
// current segment will add to them.
//
//   s(x) = ELU(x) + 1                                     the feature map of queries and keys
//   a[t] = s(q[t]) M / (s(q[t]) . z + eps)                read
//   u[t] = v[t], or v[t] - s(k[t]) M / (s(k[t]) . z + eps) under the delta rule
//   pending M += outer(s(k[t]), u[t]), pending z += s(k[t])
//   M += pending M, z += pending z, pending = 0           where the segment ends
//
// An element's bits depend on its operands and the widths alone, never on how many rows a call has:
// a segment may be cut into calls anywhere. All arrays are f32.
#pragma once

#include <cstdint>
#include <span>

namespace mneme::engine {

class Exec;

// y[i] = exp(min(x[i], 0)) + max(x[i], 0): ELU + 1 without the cancellation that would give zero
// for x < -17. n elements; y may be x.
using InfiniFeatureMapFn = void (*)(Exec& exec, const float* x, int64_t n, float* y);

// What all sequences of a call share. H query heads read Hk key/value heads, Hk divides H.
struct InfiniMixShape {
  int64_t heads = 0;      // H
  int64_t kv_heads = 0;   // Hk
  int64_t key_dim = 0;    // dk
  int64_t value_dim = 0;  // dv
  float eps = 0;
  bool delta = false;                   // the delta rule
  const float* memory_share = nullptr;  // [H]
  const float* local_share = nullptr;   // [H]
};

// Rows of one sequence that lie in one segment.
struct InfiniMixArgs {
  // Of the state; updated.
  float* memory = nullptr;              // [Hk, dk, dv]
  float* normalizer = nullptr;          // [Hk, dk]
  float* pending_memory = nullptr;      // [Hk, dk, dv]
  float* pending_normalizer = nullptr;  // [Hk, dk]
  int64_t rows = 0;                     // T
  bool local_only = false;       // the shares of this segment are 0 of the memory and 1 of `local`
  bool completes = false;        // the last row is the segment's last
  const float* sq = nullptr;     // [T, H, dk], feature-mapped
  const float* sk = nullptr;     // [T, Hk, dk], feature-mapped
  const float* v = nullptr;      // [T, Hk, dv]
  const float* local = nullptr;  // [T, H, dv], attention inside the segment
  float* mixed = nullptr;        // [T, H, dv]: memory_share * a + local_share * local; overwritten
};

// `batch` holds one entry per sequence; states are distinct. Threads are shared over sequences and
// heads.
using InfiniMixFn = void (*)(Exec& exec, const InfiniMixShape& shape,
                             std::span<const InfiniMixArgs> batch);

}  // namespace mneme::engine
