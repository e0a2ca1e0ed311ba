// The client's UTF-8 and the engine's are one: every lead and second byte, the edges of the others'
// ranges, and every cut.
#include "client/utf8.h"

#include <gtest/gtest.h>

#include "engine/core/utf8.h"

namespace mneme {
namespace {

TEST(Utf8, ClientAndEngineFindTheSameCharacters) {
  const std::string edges = "z\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xFF";
  for (int lead = 0; lead < 256; ++lead) {
    for (int second = 0; second < 256; ++second) {
      for (const char third : edges) {
        for (const char fourth : edges) {
          const char bytes[] = {static_cast<char>(lead), static_cast<char>(second), third, fourth};
          for (size_t size = 1; size <= sizeof(bytes); ++size) {
            const std::string_view text(bytes, size);
            const engine::Utf8Character found = engine::DecodeUtf8(text);
            const bool whole = found.kind == engine::Utf8Character::Kind::kWhole;
            ASSERT_EQ(client::Utf8CharacterBytes(text), whole ? found.size_bytes : 0)
                << testing::PrintToString(std::string(text));
          }
        }
      }
    }
  }
  EXPECT_EQ(client::Utf8CharacterBytes(""), 0u);
}

}  // namespace
}  // namespace mneme
