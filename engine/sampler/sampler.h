// Chooses the next token from logits. Same options, seed and history: same token, on any machine.
//
// Order of operations: logit bias, repetition / frequency / presence penalties over the window,
// then temperature, top-k, top-p, min-p, then one draw. Top-p and min-p see the distribution after
// temperature. The draw is counter-based, keyed by (seed, output index), so a replay needs no
// generator state; weights are computed in double by operations that round the same everywhere.
// A token biased to -infinity is never chosen unless every token is.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/sampler/softmax.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

struct SamplingOptions {
  float temperature = 1.0f;  // 0: greedy, ties to the lowest id
  float top_p = 1.0f;
  int32_t top_k = 0;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t penalty_window_tokens = 64;
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
};

// One per sequence: it owns scratch. Not thread-safe.
class Sampler {
 public:
  // Options must have been validated (ranges of proto/mneme/v1/generation.proto).
  explicit Sampler(SamplingOptions options);

  // `history`: the last tokens before this one, oldest first; at least penalty_window_tokens of
  // them are looked at, if there. `output_index`: 0 for the first token of the turn. Logits are not
  // modified. All logits must be finite.
  TokenId Sample(std::span<const float> logits, std::span<const TokenId> history,
                 int64_t output_index);

  // Log-probability of `token` under the plain softmax of `logits`.
  static float Logprob(std::span<const float> logits, TokenId token);
  // The `n` most likely tokens, most likely first, ties to the lower id.
  static std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, int n);

 private:
  // `logits` with bias and penalties; themselves if there are none.
  std::span<const float> Adjusted(std::span<const float> logits, std::span<const TokenId> history);
  void SelectCandidates(std::span<const float> logits, size_t count);
  // The index that u, uniform in [0, 1), draws by weight.
  size_t Draw(std::span<const float> logits, const Softmax& softmax, double u);

  SamplingOptions options_;
  // Scratch.
  std::vector<float> adjusted_;
  std::vector<std::pair<float, TokenId>> candidates_;  // the likeliest, best first
  std::vector<float> candidate_logits_;                // of those, without what top-p cut
  std::vector<double> weights_;
  std::vector<double> running_sums_;
};

}  // namespace mneme::engine
