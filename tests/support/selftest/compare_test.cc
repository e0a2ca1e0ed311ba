#include "tests/support/compare.h"

#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::test {
namespace {

using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(AllCloseTest, AbsoluteAndRelativeAdd) {
  const std::vector<float> expected = {0, 100};
  EXPECT_TRUE(AllClose(std::vector<float>{0.01f, 101}, expected, {0.02, 0.01}));
  EXPECT_FALSE(AllClose(std::vector<float>{0.03f, 100}, expected, {0.02, 0.01}));
  EXPECT_FALSE(AllClose(std::vector<float>{0, 101.1f}, expected, {0.02, 0.01}));
  EXPECT_TRUE(AllClose(expected, expected, {}));
}

TEST(AllCloseTest, OppositeErrorsDoNotCancel) {
  EXPECT_FALSE(AllClose(std::vector<float>{1, -1}, std::vector<float>{0, 0}, {0.5, 0}));
}

TEST(AllCloseTest, NanAndInfinityNeverPass) {
  const std::vector<float> one = {1};
  EXPECT_FALSE(AllClose(std::vector<float>{kNan}, one, {1e9, 1e9}));
  EXPECT_FALSE(AllClose(one, std::vector<float>{kNan}, {1e9, 1e9}));
  EXPECT_FALSE(AllClose(std::vector<float>{kNan}, std::vector<float>{kNan}, {1e9, 1e9}));
  EXPECT_FALSE(AllClose(std::vector<float>{kInfinity}, one, {1e9, 1e9}));
  EXPECT_FALSE(AllClose(one, std::vector<float>{kInfinity}, {1e9, 1e9}));
  EXPECT_TRUE(AllClose(std::vector<float>{kInfinity}, std::vector<float>{kInfinity}, {}));
}

TEST(AllCloseTest, ReportsCountAndWorstIndex) {
  const std::vector<float> expected = {0, 0, 0, 0};
  const testing::AssertionResult result =
      AllClose(std::vector<float>{0, 2, 9, 3}, expected, {1, 0});
  EXPECT_THAT(result.message(), HasSubstr("3 of 4 elements"));
  EXPECT_THAT(result.message(), HasSubstr("worst at index 2"));
  EXPECT_THAT(AllClose(std::vector<float>{0, 2, kNan, 3}, expected, {1, 0}).message(),
              HasSubstr("worst at index 2"));
}

TEST(AllCloseTest, SizesMustAgree) {
  EXPECT_FALSE(AllClose(std::vector<float>{1}, std::vector<float>{1, 1}, {1e9, 1e9}));
  EXPECT_FALSE(SameBits(std::vector<float>{1}, std::vector<float>{1, 1}));
}

TEST(SameBitsTest, SeesEveryBit) {
  EXPECT_TRUE(SameBits(std::vector<float>{1, kNan}, std::vector<float>{1, kNan}));
  EXPECT_FALSE(SameBits(std::vector<float>{0.0f}, std::vector<float>{-0.0f}));
  EXPECT_FALSE(SameBits(std::vector<float>{1}, std::vector<float>{std::nextafter(1.0f, 2.0f)}));
}

}  // namespace
}  // namespace mneme::test
