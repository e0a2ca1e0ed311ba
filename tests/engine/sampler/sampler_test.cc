#include "engine/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "engine/kernels/kernels.h"
#include "engine/sampler/counter_rng.h"
#include "engine/sampler/softmax.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSubsetOf;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Deterministic logits in [-8, 8).
std::vector<float> SomeLogits(int size, uint64_t seed) {
  std::vector<float> logits(size);
  for (int i = 0; i < size; ++i) {
    logits[i] = static_cast<float>(CounterUniform(seed, i) * 16 - 8);
  }
  return logits;
}

// The set of tokens that ever come out of `draws` draws.
std::set<TokenId> Support(const SamplingOptions& options, std::span<const float> logits,
                          int draws = 4000) {
  Sampler sampler(options);
  std::set<TokenId> support;
  for (int i = 0; i < draws; ++i) support.insert(sampler.Sample(logits, {}, i));
  return support;
}

double ChiSquare(const SamplingOptions& options, std::span<const float> logits,
                 const std::vector<double>& probabilities, int draws) {
  Sampler sampler(options);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) ++counts[sampler.Sample(logits, {}, i)];
  double chi_square = 0;
  for (size_t i = 0; i < probabilities.size(); ++i) {
    const double expected = probabilities[i] * draws;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
      continue;
    }
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return chi_square;
}

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  Sampler sampler({.temperature = 0});
  EXPECT_EQ(sampler.Sample(std::vector<float>{1, 3, 3, 2}, {}, 0), 1);
  EXPECT_EQ(sampler.Sample(std::vector<float>{-1, -1, -1}, {}, 7), 0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{5}, {}, 0), 0);
}

TEST(SamplerTest, DrawsFollowTheSoftmaxAtItsTemperature) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 0.0f, 1.25f, -3.0f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    std::vector<double> probabilities;
    double sum = 0;
    for (const float logit : logits) {
      probabilities.push_back(std::exp(double(logit) / temperature));
      sum += probabilities.back();
    }
    for (double& p : probabilities) p /= sum;
    // 99.9 % point at 5 degrees of freedom.
    EXPECT_LT(ChiSquare({.temperature = temperature, .seed = 17}, logits, probabilities, 200000),
              20.5)
        << "temperature " << temperature;
  }
}

// What sampling is defined to be, written down plainly: exp and sums in double, one after the
// other.
TokenId PlainDraw(const SamplingOptions& options, std::span<const float> logits, int64_t index) {
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights;
  double total = 0;
  for (const float logit : logits) {
    const double x = (logit - max) * (1.0 / static_cast<double>(options.temperature));
    const double weight = x < -40 ? 0 : std::exp(x);
    weights.push_back(weight >= options.min_p ? weight : 0);
    total += weights.back();
  }
  const double target = CounterUniform(options.seed, index) * total;
  double sum = 0;
  TokenId token = 0;
  while ((sum += weights[token]) <= target) ++token;
  return token;
}

class SamplerTargetTest : public testing::Test {
 protected:
  void TearDown() override { PinSimdTarget(""); }
};

TEST_F(SamplerTargetTest, EveryTargetDrawsThePlainDefinitionsToken) {
  for (const std::string& target : AvailableSimdTargets()) {
    ASSERT_TRUE(PinSimdTarget(target));
    for (const int size : {1, 2, 7, 511, 512, 513, 1025, 5003}) {
      const std::vector<float> logits = SomeLogits(size, size);
      for (const float temperature : {1.0f, 0.3f, 5.0f}) {
        for (const float min_p : {0.0f, 0.05f}) {
          const SamplingOptions options{.temperature = temperature, .min_p = min_p, .seed = 3};
          Sampler sampler(options);
          for (int i = 0; i < 50; ++i) {
            ASSERT_EQ(sampler.Sample(logits, {}, i), PlainDraw(options, logits, i))
                << target << ", " << size << " tokens, temperature " << temperature << ", min_p "
                << min_p << ", draw " << i;
          }
        }
      }
    }
  }
}

TEST_F(SamplerTargetTest, EveryTargetHasTheSameBits) {
  const std::vector<float> logits = SomeLogits(4099, 1);
  std::vector<std::vector<double>> results;
  for (const std::string& target : AvailableSimdTargets()) {
    ASSERT_TRUE(PinSimdTarget(target));
    const Softmax softmax{.max = logits[ArgMax(logits)], .inverse_temperature = 1.7};
    std::vector<double> weights(logits.size());
    softmax.Weights(logits, weights.data());
    weights.push_back(softmax.AddWeights(logits, 0.125));
    results.push_back(weights);
    EXPECT_EQ(results.back(), results.front()) << target;
  }
}

TEST_F(SamplerTargetTest, EveryTargetFindsTheFirstOfTheLargest) {
  for (const std::string& target : AvailableSimdTargets()) {
    ASSERT_TRUE(PinSimdTarget(target));
    for (const int size : {1, 3, 16, 63, 64, 65, 200}) {
      for (int at = 0; at < size; ++at) {
        std::vector<float> logits(size, -2.5f);
        logits[at] = logits.back() = -1.5f;
        EXPECT_EQ(ArgMax(logits), static_cast<size_t>(at)) << target << ", " << size;
      }
    }
  }
}

TEST(SamplerTest, TopPAndTopKDrawFromTheRenormalisedRest) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f),
                                     std::log(0.2f)};
  // 0.4 + 0.3 reach 0.6; token 3 and 0 are cut.
  const std::vector<double> two = {0, 4.0 / 7, 3.0 / 7, 0};
  EXPECT_LT(ChiSquare({.top_p = 0.6f, .seed = 3}, logits, two, 50000), 10.9);
  EXPECT_LT(ChiSquare({.top_k = 2, .seed = 3}, logits, two, 50000), 10.9);
  // Top-p applies to what top-k left: 0.4 / 0.7 already reaches 0.55.
  EXPECT_THAT(Support({.top_p = 0.55f, .top_k = 2}, logits), ElementsAre(1));
}

TEST(SamplerTest, SameSeedAndIndexGiveTheSameTokenAndOthersDiffer) {
  const std::vector<float> logits = SomeLogits(500, 1);
  std::vector<TokenId> first, again, other;
  Sampler a({.seed = 5}), b({.seed = 5}), c({.seed = 6});
  for (int i = 0; i < 50; ++i) first.push_back(a.Sample(logits, {}, i));
  for (int i = 49; i >= 0; --i) again.push_back(b.Sample(logits, {}, i));
  std::reverse(again.begin(), again.end());
  for (int i = 0; i < 50; ++i) other.push_back(c.Sample(logits, {}, i));
  EXPECT_EQ(first, again) << "a draw depends on the index only, not on the draws before";
  EXPECT_NE(first, other);
  EXPECT_GT(std::set<TokenId>(first.begin(), first.end()).size(), 1u);
}

TEST(SamplerTest, TopPGrowsBeyondTheFirstCandidates) {
  // 200 equal tokens: the nucleus of 0.9 holds the first 180 ids.
  const std::vector<float> logits(200, 0.25f);
  const std::set<TokenId> support = Support({.top_p = 0.9f, .seed = 2}, logits);
  EXPECT_LT(*support.rbegin(), 181);
  EXPECT_GT(*support.rbegin(), 170);
  EXPECT_GT(support.size(), 170u);
}

TEST(SamplerTest, TopPAlwaysKeepsOneTokenAndOneKeepsAll) {
  const std::vector<float> logits = {0, 5, 1};
  EXPECT_THAT(Support({.top_p = 1e-6f}, logits), ElementsAre(1));
  EXPECT_EQ(Support({.top_p = 1.0f}, std::vector<float>{0, 0.1f, 0.2f}).size(), 3u);
}

TEST(SamplerTest, TopKBreaksTiesByIdAndIgnoresMoreThanTheVocabulary) {
  const std::vector<float> logits(100, 1.0f);
  EXPECT_THAT(Support({.top_k = 3}, logits), ElementsAre(0, 1, 2));
  EXPECT_THAT(Support({.top_k = 1}, logits), ElementsAre(0));
  EXPECT_EQ(Support({.top_k = 1000}, std::vector<float>(4, 0.0f)).size(), 4u);
}

TEST(SamplerTest, MinPCutsRelativeToTheLikeliest) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.05f),
                                     std::log(0.15f)};
  EXPECT_THAT(Support({.min_p = 0.2f}, logits), ElementsAre(0, 1, 3));
  EXPECT_THAT(Support({.min_p = 0.5f}, logits), ElementsAre(0, 1));
  EXPECT_THAT(Support({.min_p = 1.0f}, logits), ElementsAre(0));
}

TEST(SamplerTest, BiasAddsToLogits) {
  const std::vector<float> logits = {1, 2, 3};
  SamplingOptions options{.temperature = 0, .logit_bias = {{0, 2.5f}}};
  EXPECT_EQ(Sampler(options).Sample(logits, {}, 0), 0);
  options.logit_bias = {{2, -2.0f}, {99, 50.0f}, {-1, 50.0f}};  // unknown ids change nothing
  EXPECT_EQ(Sampler(options).Sample(logits, {}, 0), 1);
}

TEST(SamplerTest, TokensBiasedToMinusInfinityAreNeverChosenUnlessAllAre) {
  const std::vector<float> logits = {1, 9, 3};
  SamplingOptions options{.logit_bias = {{1, -kInfinity}}};
  EXPECT_THAT(Support(options, logits), ElementsAre(0, 2));
  options.temperature = 10;
  options.top_p = 0.9999f;
  EXPECT_THAT(Support(options, logits), ElementsAre(0, 2));
  options.temperature = 0;
  EXPECT_THAT(Support(options, logits, 2), ElementsAre(2));
  options.logit_bias = {{0, -kInfinity}, {1, -kInfinity}, {2, -kInfinity}};
  EXPECT_THAT(Support(options, logits, 2), ElementsAre(1));
  options.temperature = 1;
  EXPECT_THAT(Support(options, logits, 2), ElementsAre(1));
}

TEST(SamplerTest, RepetitionPenaltyLowersBothSigns) {
  const std::vector<TokenId> history = {0, 0, 0};
  Sampler sampler({.temperature = 0, .repetition_penalty = 2.0f});
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0f, 1.6f}, history, 0), 1);    // 3 / 2 < 1.6
  EXPECT_EQ(sampler.Sample(std::vector<float>{-1.0f, -1.9f}, history, 0), 1);  // -1 * 2 < -1.9
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0f, 1.4f}, history, 0), 0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{3.0f, 1.6f}, {}, 0), 0);
}

TEST(SamplerTest, FrequencyCountsAndPresenceDoesNot) {
  const std::vector<TokenId> history = {0, 0, 0, 1};
  Sampler frequency({.temperature = 0, .frequency_penalty = 1.0f});
  EXPECT_EQ(frequency.Sample(std::vector<float>{3.0f, 1.5f}, history, 0), 1);  // 0 against 0.5
  Sampler presence({.temperature = 0, .presence_penalty = 1.0f});
  EXPECT_EQ(presence.Sample(std::vector<float>{3.0f, 1.5f}, history, 0), 0);  // 2 against 0.5
  EXPECT_EQ(presence.Sample(std::vector<float>{3.0f, 1.5f, 2.5f}, history, 0), 2);
}

TEST(SamplerTest, PenaltiesLookAtTheWindowOnly) {
  const std::vector<TokenId> history = {0, 1, 1, 2};
  const std::vector<float> logits = {3, 2.9f, 2.8f, 0};
  SamplingOptions options{.temperature = 0, .presence_penalty = 2.0f, .penalty_window_tokens = 3};
  EXPECT_EQ(Sampler(options).Sample(logits, history, 0), 0);
  options.penalty_window_tokens = 4;
  options.presence_penalty = 1.0f;
  EXPECT_EQ(Sampler(options).Sample(std::vector<float>{3, 2.9f, 2.8f, 2.5f}, history, 0), 3);
  options.penalty_window_tokens = 0;
  EXPECT_EQ(Sampler(options).Sample(logits, history, 0), 0);
}

TEST(SamplerTest, LogitsAreNotModified) {
  const std::vector<float> logits = SomeLogits(64, 9);
  const std::vector<float> copy = logits;
  Sampler({.repetition_penalty = 1.5f, .logit_bias = {{3, 4.0f}}})
      .Sample(logits, std::vector<TokenId>{1, 2, 3}, 0);
  EXPECT_EQ(logits, copy);
}

TEST(SamplerTest, LogprobIsTheSoftmax) {
  const std::vector<float> logits = SomeLogits(1000, 4);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit));
  for (const TokenId id : {0, 17, 999}) {
    EXPECT_NEAR(Sampler::Logprob(logits, id), logits[id] - std::log(sum), 1e-6);
  }
  // Large logits do not overflow.
  EXPECT_NEAR(Sampler::Logprob(std::vector<float>{1000, 1000}, 0), -std::log(2.0), 1e-7);
}

TEST(SamplerTest, TopLogprobsAreOrderedWithTiesByIdAndBounded) {
  const std::vector<float> logits = {1, 4, 2, 4, 0};
  const std::vector<TokenLogprob> top = Sampler::TopLogprobs(logits, 3);
  ASSERT_EQ(top.size(), 3u);
  EXPECT_EQ(top[0].token, 1);
  EXPECT_EQ(top[1].token, 3);
  EXPECT_EQ(top[2].token, 2);
  EXPECT_EQ(top[0].logprob, Sampler::Logprob(logits, 1));
  EXPECT_EQ(Sampler::TopLogprobs(logits, 50).size(), 5u);
  EXPECT_TRUE(Sampler::TopLogprobs(logits, 0).empty());
}

}  // namespace
}  // namespace mneme::engine
