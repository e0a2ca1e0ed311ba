#include "engine/kernels/block_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/kernels/host.h"
#include "engine/kernels/reference/reference.h"
#include "engine/kernels/reference/stored_element.h"

namespace mneme::engine::reference {
namespace {

// Query t, head h.
void Attend(const BlockAttentionArgs& args, int64_t t, int64_t h) {
  const int64_t Dk = args.key_dim, Dv = args.value_dim, Hk = args.kv_heads;
  const int64_t kv_head = h / (args.query_heads / Hk);
  const float* q = args.q + t * args.q_stride + h * Dk;
  int64_t keys = 0;
  for (const KeyRun& run : args.runs) keys += run.rows;
  if (args.causal) keys -= args.T - 1 - t;

  std::vector<float> weights;
  float max = -std::numeric_limits<float>::infinity();
  for (const KeyRun& run : args.runs) {
    for (int64_t j = 0; j < run.rows && static_cast<int64_t>(weights.size()) < keys; ++j) {
      float dot = 0;
      for (int64_t d = 0; d < Dk; ++d) {
        dot += q[d] * ReadElement(run.k, args.dtype, (j * Hk + kv_head) * Dk + d);
      }
      weights.push_back(args.scale * dot);
      max = std::max(max, weights.back());
    }
  }
  float total = 0;
  for (float& weight : weights) {
    weight = std::exp(weight - max);
    total += weight;
  }
  float* out = args.out + t * args.out_stride + h * Dv;
  std::fill_n(out, Dv, 0.0f);
  size_t key = 0;
  for (const KeyRun& run : args.runs) {
    for (int64_t j = 0; j < run.rows && key < weights.size(); ++j, ++key) {
      for (int64_t d = 0; d < Dv; ++d) {
        out[d] += weights[key] * ReadElement(run.v, args.dtype, (j * Hk + kv_head) * Dv + d);
      }
    }
  }
  for (int64_t d = 0; d < Dv; ++d) out[d] /= total;
}

}  // namespace

void BlockAttention(Exec& exec, std::span<const BlockAttentionArgs> batch) {
  for (const BlockAttentionArgs& args : batch) {
    Host(exec).pool().Run(args.T * args.query_heads, [&](int64_t task, int) {
      Attend(args, task / args.query_heads, task % args.query_heads);
    });
  }
}

}  // namespace mneme::engine::reference
