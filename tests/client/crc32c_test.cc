#include "client/crc32c.h"

#include <gtest/gtest.h>

namespace mneme::client {
namespace {

uint32_t OfEight(int32_t id) {
  uint32_t crc = 0;
  for (int i = 0; i < 8; ++i) crc = ExtendCrc32c(crc, id);
  return crc;
}

// RFC 3720, appendix B.4.
TEST(Crc32c, IsThatOfTheStandard) {
  EXPECT_EQ(OfEight(0), 0x8A9136AAu);
  EXPECT_EQ(OfEight(-1), 0x62A8AB43u);
  uint32_t ascending = 0;
  for (int32_t i = 0; i < 8; ++i) ascending = ExtendCrc32c(ascending, 0x03020100 + i * 0x04040404);
  EXPECT_EQ(ascending, 0x46DD794Eu);
}

}  // namespace
}  // namespace mneme::client
