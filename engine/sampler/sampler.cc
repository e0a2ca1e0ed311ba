#include "engine/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/sampler/counter_rng.h"
#include "engine/sampler/softmax.h"

namespace mneme::engine {
namespace {

// Tokens between two running sums that a draw remembers.
constexpr size_t kDrawBlock = 512;

// Higher logit first, lower id first among equals.
bool Better(const std::pair<float, TokenId>& a, const std::pair<float, TokenId>& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// The `n` best of `logits`, best first, without sorting the vocabulary: one scan over a heap of n,
// which few tokens enter.
void SelectTop(std::span<const float> logits, size_t n,
               std::vector<std::pair<float, TokenId>>& best) {
  best.clear();
  n = std::min(n, logits.size());
  if (n == 0) return;
  for (size_t i = 0; i < logits.size(); ++i) {
    const std::pair<float, TokenId> candidate(logits[i], static_cast<TokenId>(i));
    if (best.size() < n) {
      best.push_back(candidate);
      if (best.size() == n) std::make_heap(best.begin(), best.end(), Better);
    } else if (Better(candidate, best.front())) {  // front: the worst that is kept
      std::pop_heap(best.begin(), best.end(), Better);
      best.back() = candidate;
      std::push_heap(best.begin(), best.end(), Better);
    }
  }
  std::sort_heap(best.begin(), best.end(), Better);
}

// From a logit to the logarithm of its token's probability.
class LogSoftmax {
 public:
  explicit LogSoftmax(std::span<const float> logits)
      : max_(logits[ArgMax(logits)]),
        log_sum_(std::log(Softmax{.max = max_}.AddWeights(logits, 0))) {}
  float operator()(float logit) const { return static_cast<float>(logit - max_ - log_sum_); }

 private:
  const double max_, log_sum_;
};

}  // namespace

Sampler::Sampler(SamplingOptions options) : options_(std::move(options)) {}

std::span<const float> Sampler::Adjusted(std::span<const float> logits,
                                         std::span<const TokenId> history) {
  const bool penalties = options_.repetition_penalty != 1.0f ||
                         options_.frequency_penalty != 0.0f || options_.presence_penalty != 0.0f;
  if (options_.logit_bias.empty() && !penalties) return logits;

  const auto vocab_size = static_cast<TokenId>(logits.size());
  const auto in_vocab = [vocab_size](TokenId id) { return id >= 0 && id < vocab_size; };
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : options_.logit_bias) {
    if (in_vocab(id)) adjusted_[id] += bias;
  }
  const size_t window =
      std::min<size_t>(history.size(), std::max(options_.penalty_window_tokens, 0));
  if (penalties && window > 0) {
    std::vector<TokenId> seen(history.end() - window, history.end());
    std::sort(seen.begin(), seen.end());
    for (size_t begin = 0; begin < seen.size();) {
      size_t end = begin;
      while (end < seen.size() && seen[end] == seen[begin]) ++end;
      if (in_vocab(seen[begin])) {
        float& logit = adjusted_[seen[begin]];
        // Keskar et al. 2019 (arXiv:1909.05858), with the sign handled so that it always lowers.
        logit =
            logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
        logit -= static_cast<float>(end - begin) * options_.frequency_penalty;
        logit -= options_.presence_penalty;
      }
      begin = end;
    }
  }
  return adjusted_;
}

size_t Sampler::Draw(std::span<const float> logits, const Softmax& softmax, double u) {
  running_sums_.clear();
  double total = 0;
  for (size_t begin = 0; begin < logits.size(); begin += kDrawBlock) {
    const size_t count = std::min(kDrawBlock, logits.size() - begin);
    total = softmax.AddWeights(logits.subspan(begin, count), total);
    running_sums_.push_back(total);
  }
  // The first token at which the running sum passes the target. u < 1, so the total does.
  const double target = u * total;
  const size_t block =
      std::upper_bound(running_sums_.begin(), running_sums_.end(), target) - running_sums_.begin();
  const size_t begin = block * kDrawBlock;
  const size_t count = std::min(kDrawBlock, logits.size() - begin);
  weights_.resize(count);
  softmax.Weights(logits.subspan(begin, count), weights_.data());
  double sum = block == 0 ? 0 : running_sums_[block - 1];
  size_t i = 0;
  while ((sum += weights_[i]) <= target) ++i;
  return begin + i;
}

TokenId Sampler::Sample(std::span<const float> logits, std::span<const TokenId> history,
                        int64_t output_index) {
  // 1. Bias, then penalties of the tokens in the window.
  const std::span<const float> adjusted = Adjusted(logits, history);

  // 2. Greedy, or nothing to choose from: every token biased to -infinity counts as no bias at all.
  const size_t likeliest = ArgMax(adjusted);
  if (adjusted[likeliest] == -std::numeric_limits<float>::infinity()) {
    return static_cast<TokenId>(ArgMax(logits));
  }
  if (options_.temperature == 0.0f || options_.top_k == 1) return static_cast<TokenId>(likeliest);

  // 3. Without a cut by rank all tokens are candidates, in the order of ids: nothing is sorted.
  // Then one draw; min-p is relative to the likeliest, whose weight is 1.
  const Softmax whole{.max = adjusted[likeliest],
                      .inverse_temperature = 1.0 / static_cast<double>(options_.temperature)};
  Softmax cut = whole;
  cut.min_weight = options_.min_p;
  const double u = CounterUniform(options_.seed, static_cast<uint64_t>(output_index));
  const bool cut_k = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < adjusted.size();
  const bool cut_p = options_.top_p < 1.0f;
  if (!cut_k && !cut_p) return static_cast<TokenId>(Draw(adjusted, cut, u));

  size_t count = cut_k ? options_.top_k : 64;
  SelectCandidates(adjusted, count);
  if (cut_p) {
    // The smallest prefix whose share of what top-k left reaches top_p; at least one token. The
    // list grows until it holds that prefix.
    const double enough = static_cast<double>(options_.top_p) *
                          whole.AddWeights(cut_k ? candidate_logits_ : adjusted, 0);
    size_t kept = 0;
    for (;;) {
      weights_.resize(candidates_.size());
      whole.Weights(candidate_logits_, weights_.data());
      double sum = 0;
      kept = 0;
      while (kept < candidates_.size() && (kept == 0 || sum < enough)) sum += weights_[kept++];
      if (sum >= enough || cut_k || candidates_.size() == adjusted.size()) break;
      count *= 8;
      SelectCandidates(adjusted, count);
    }
    candidate_logits_.resize(kept);
  }
  return candidates_[Draw(candidate_logits_, cut, u)].second;
}

void Sampler::SelectCandidates(std::span<const float> logits, size_t count) {
  SelectTop(logits, count, candidates_);
  candidate_logits_.clear();
  for (const auto& [logit, id] : candidates_) candidate_logits_.push_back(logit);
}

float Sampler::Logprob(std::span<const float> logits, TokenId token) {
  return LogSoftmax(logits)(logits[token]);
}

std::vector<TokenLogprob> Sampler::TopLogprobs(std::span<const float> logits, int n) {
  std::vector<TokenLogprob> result;
  if (n <= 0) return result;
  const LogSoftmax log_softmax(logits);
  std::vector<std::pair<float, TokenId>> best;
  SelectTop(logits, n, best);
  for (const auto& [logit, id] : best) {
    result.push_back({.token = id, .logprob = log_softmax(logit)});
  }
  return result;
}

}  // namespace mneme::engine
