#include "engine/sampler/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/sampler/counter_rng.h"

namespace mneme::engine {
namespace {

// exp(x) for x <= 0 in plain IEEE double operations (this project is compiled without contraction),
// so that it has the same bits on every machine, which the C library's does not promise. Range
// reduction to |r| <= ln 2 / 2, then the Taylor series to r^13 / 13!, error below 1e-15 relative.
// Below kSmallest the result is taken as 0: such a token has less than 1e-17 of the likeliest one's
// probability.
constexpr double kSmallest = -40.0;

inline double PortableExp(double x) {
  const double clamped = x < kSmallest ? kSmallest : x;
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // low bits zero: k * kLn2High is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
  constexpr double kRound = 6755399441055744.0;
  const double shifted = clamped * kLog2E + kRound;
  const double k = shifted - kRound;
  const double r = (clamped - k * kLn2High) - k * kLn2Low;
  double sum = 1.0 / 6227020800.0;
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           0.5,
                                           1.0,
                                           1.0};
  for (const double coefficient : kInverseFactorials) sum = sum * r + coefficient;
  const uint64_t exponent = std::bit_cast<uint64_t>(shifted) + 1023;
  const double power = std::bit_cast<double>(exponent << 52);
  return x < kSmallest ? 0.0 : sum * power;
}

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

// First of the largest.
TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// max and sum over ids ascending of exp((logit - max) * inverse_temperature).
struct Normaliser {
  double max = 0;
  double sum = 0;
};
Normaliser Normalise(std::span<const float> logits, double inverse_temperature) {
  Normaliser result{.max = logits[ArgMax(logits)]};
  for (const float logit : logits) {
    result.sum += PortableExp((logit - result.max) * inverse_temperature);
  }
  return result;
}

}  // namespace

Sampler::Sampler(SamplingOptions options) : options_(std::move(options)) {}

TokenId Sampler::Sample(std::span<const float> logits, std::span<const TokenId> history,
                        int64_t output_index) {
  const TokenId vocab_size = static_cast<TokenId>(logits.size());
  const auto in_vocab = [vocab_size](TokenId id) { return id >= 0 && id < vocab_size; };

  // 1. Bias, then penalties of the tokens in the window.
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : options_.logit_bias) {
    if (in_vocab(id)) adjusted_[id] += bias;
  }
  const size_t window =
      std::min<size_t>(history.size(), std::max(options_.penalty_window_tokens, 0));
  if (window > 0 && (options_.repetition_penalty != 1.0f || options_.frequency_penalty != 0.0f ||
                     options_.presence_penalty != 0.0f)) {
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

  // 2. Greedy, or nothing to choose from: every token biased to -infinity counts as no bias at all.
  const TokenId likeliest = ArgMax(adjusted_);
  if (adjusted_[likeliest] == -std::numeric_limits<float>::infinity()) return ArgMax(logits);
  if (options_.temperature == 0.0f || options_.top_k == 1) return likeliest;

  // 3. Candidates and their weights exp((logit - max) / temperature). Without a cut by rank they
  // stay in the order of ids and nothing is sorted.
  const double inverse_temperature = 1.0 / static_cast<double>(options_.temperature);
  const double max = adjusted_[likeliest];
  const auto weight = [&](float logit) {
    return PortableExp((static_cast<double>(logit) - max) * inverse_temperature);
  };
  const bool cut_k = options_.top_k > 0 && options_.top_k < vocab_size;
  const bool cut_p = options_.top_p < 1.0f;
  if (cut_k || cut_p) {
    size_t count = cut_k ? options_.top_k : 64;
    SelectTop(adjusted_, count, candidates_);
    if (cut_p) {
      double total = 0;  // of what top-k left
      if (cut_k) {
        for (const auto& candidate : candidates_) total += weight(candidate.first);
      } else {
        total = Normalise(adjusted_, inverse_temperature).sum;
      }
      // The smallest prefix whose share reaches top_p; at least one token. The list grows until it
      // holds that prefix.
      const double enough = static_cast<double>(options_.top_p) * total;
      size_t kept = 0;
      for (;;) {
        double sum = 0;
        kept = 0;
        while (kept < candidates_.size() && (kept == 0 || sum < enough)) {
          sum += weight(candidates_[kept++].first);
        }
        if (sum >= enough || cut_k || candidates_.size() == adjusted_.size()) break;
        count *= 8;
        SelectTop(adjusted_, count, candidates_);
      }
      candidates_.resize(kept);
    }
  } else {
    candidates_.clear();
    for (TokenId id = 0; id < vocab_size; ++id) candidates_.emplace_back(adjusted_[id], id);
  }

  // 4. Min-p relative to the likeliest (whose weight is 1), then one draw.
  const double u = CounterUniform(options_.seed, static_cast<uint64_t>(output_index));
  weights_.clear();
  double total = 0;
  for (const auto& candidate : candidates_) {
    const double w = weight(candidate.first);
    weights_.push_back(w >= options_.min_p ? w : 0.0);
    total += weights_.back();
  }
  const double target = u * total;
  double sum = 0;
  TokenId chosen = likeliest;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (weights_[i] == 0.0) continue;
    chosen = candidates_[i].second;  // the last one, if rounding leaves target at the total
    sum += weights_[i];
    if (sum > target) break;
  }
  return chosen;
}

float Sampler::Logprob(std::span<const float> logits, TokenId token) {
  const Normaliser normaliser = Normalise(logits, 1.0);
  return static_cast<float>(logits[token] - normaliser.max - std::log(normaliser.sum));
}

std::vector<TokenLogprob> Sampler::TopLogprobs(std::span<const float> logits, int n) {
  std::vector<TokenLogprob> result;
  if (n <= 0) return result;
  const Normaliser normaliser = Normalise(logits, 1.0);
  std::vector<std::pair<float, TokenId>> best;
  SelectTop(logits, n, best);
  for (const auto& [logit, id] : best) {
    result.push_back(
        {.token = id,
         .logprob = static_cast<float>(logit - normaliser.max - std::log(normaliser.sum))});
  }
  return result;
}

}  // namespace mneme::engine
