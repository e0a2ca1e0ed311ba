#include "client/cli/nearest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mneme::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const std::vector<std::string> kCommands = {"chat", "generate", "sessions", "models", "help"};
const std::vector<std::string> kFlags = {"temperature", "top-p", "help",
                                         "max-tokens",  "v",     "max-duration"};

TEST(Nearest, ASlip) {
  EXPECT_THAT(Nearest("sesions", kCommands), ElementsAre("sessions"));
  EXPECT_THAT(Nearest("chta", kCommands), ElementsAre("chat"));
  EXPECT_THAT(Nearest("modles", kCommands), ElementsAre("models"));
  EXPECT_THAT(Nearest("genrtae", kCommands), ElementsAre("generate"));
  EXPECT_THAT(Nearest("v", kFlags), ElementsAre("v"));
}

TEST(Nearest, ABeginningIsNearerThanTwoSlips) {
  EXPECT_THAT(Nearest("temp", kFlags), ElementsAre("temperature"));
  EXPECT_THAT(Nearest("max", kFlags), ElementsAre("max-tokens", "max-duration"));
}

TEST(Nearest, NothingIsNear) {
  EXPECT_THAT(Nearest("status", kCommands), IsEmpty());
  EXPECT_THAT(Nearest("x", kFlags), IsEmpty());
  EXPECT_THAT(Nearest("", kFlags), IsEmpty());
  EXPECT_EQ(DidYouMean({}), "");
  EXPECT_EQ(DidYouMean({"list", "get"}), "; did you mean list or get?");
}

}  // namespace
}  // namespace mneme::cli
