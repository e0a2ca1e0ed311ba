#include "engine/sampler/counter_rng.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using ::testing::ElementsAre;

// Known answers that the generator's authors publish with their library.
TEST(CounterRngTest, MatchesPublishedVectors) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t ones = 0xffffffff;
  EXPECT_THAT(Philox4x32({ones, ones, ones, ones}, {ones, ones}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(CounterRngTest, UniformDependsOnBothHalvesOfSeedAndIndex) {
  const double base = CounterUniform(1, 1);
  EXPECT_EQ(base, CounterUniform(1, 1));
  EXPECT_NE(base, CounterUniform(2, 1));
  EXPECT_NE(base, CounterUniform(1, 2));
  EXPECT_NE(base, CounterUniform(1 + (uint64_t{1} << 32), 1));
  EXPECT_NE(base, CounterUniform(1, 1 + (uint64_t{1} << 32)));
}

TEST(CounterRngTest, UniformFillsTheUnitInterval) {
  constexpr int kDraws = 64000, kBins = 64;
  std::vector<int> counts(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = CounterUniform(20240607, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<int>(u * kBins)];
  }
  double chi_square = 0;
  const double expected = double(kDraws) / kBins;
  for (const int count : counts) chi_square += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi_square, 103.4);  // 99.9 % point at 63 degrees of freedom
  EXPECT_GT(chi_square, 32.5);   // 0.1 % point: too even is as suspicious
}

}  // namespace
}  // namespace mneme::engine
