// Laws that hold for every tokenizer, over seeded random texts.
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "tests/engine/tokenizer/fake_checkpoint.h"

namespace mneme::engine {
namespace {

constexpr int64_t kRows = 1024;
constexpr uint64_t kSeed = 20240607;
constexpr int kTexts = 600;

struct Named {
  std::string name;
  std::unique_ptr<const Tokenizer> tokenizer;
  bool lossless = true;  // Decode(Encode(x)) == x for all valid UTF-8
};

std::vector<Named> All() {
  std::vector<Named> all;
  auto add = [&](const std::string& name, const Checkpoint& checkpoint, bool lossless,
                 int64_t rows = kRows) {
    auto tokenizer = Tokenizer::Create(checkpoint, rows);
    EXPECT_TRUE(tokenizer.ok()) << name << ": " << tokenizer.status();
    if (tokenizer.ok()) all.push_back({name, *std::move(tokenizer), lossless});
  };
  for (const std::string& family : BpeFamilies()) {
    add(family + ".json", FolderWithBpe(family), !Normalizes(family));
    add(family + ".gguf", GgufWithBpe(family), true);
  }
  // U+2581 becomes a space.
  add("spm.gguf", GgufWithSpm(), false);
  add("spm.model", FolderWithSentencePiece(), false);
  add("spm.json", FolderWithByteFallback(ByteFallbackJson(PrependAndReplace(), {})), false);
  add("spm.metaspace", FolderWithByteFallback(ByteFallbackJson({}, Metaspace("never"))), false);
  FakeCheckpoint bytes;
  bytes.Set("tokenizer.ggml.model", std::string("bytes"));
  add("bytes", bytes, true);
  add("world.txt", FolderWithWorld(), true, kWorldRows);
  add("world.gguf", GgufWithWorld(), true, kWorldRows);
  return all;
}

// Valid UTF-8 made of what pre-tokenizers tell apart.
std::string RandomText(std::mt19937_64& random) {
  static const std::vector<std::string> kParts = {" ",
                                                  " ",
                                                  " ",
                                                  " ",
                                                  "  ",
                                                  "\n",
                                                  "\r\n",
                                                  "\r",
                                                  "\t",
                                                  "\v",
                                                  "a",
                                                  "B",
                                                  "the",
                                                  "river",
                                                  "1",
                                                  "42",
                                                  "٣",
                                                  "²",
                                                  ".",
                                                  ",",
                                                  "!!",
                                                  "'",
                                                  "'s",
                                                  "'LL",
                                                  "'re",
                                                  "(",
                                                  "_",
                                                  "ß",
                                                  "é",
                                                  "e\u0301",
                                                  "\u0301",
                                                  "世",
                                                  "界",
                                                  "😀",
                                                  "👩‍👩‍👧",
                                                  "\u00a0",
                                                  "\u2003",
                                                  "\u3000",
                                                  "\u0085",
                                                  "\u2028",
                                                  "\u180e",
                                                  "\u200b",
                                                  "<|im_start|>",
                                                  "<|im_end|>",
                                                  "<|im_",
                                                  "<tool>",
                                                  "<tool_call>",
                                                  "<tool",
                                                  "<s>",
                                                  "</s>",
                                                  "▁",
                                                  "Ġ",
                                                  "ſ",
                                                  "\x01",
                                                  "\x1c",
                                                  "가",
                                                  "\u11a8",
                                                  "<0x0A>",
                                                  "Å",
                                                  "\U0010ffff",
                                                  "q",
                                                  "x",
                                                  "0"};
  std::string text;
  const int count = static_cast<int>(random() % 14);
  for (int i = 0; i < count; ++i) text += kParts[random() % kParts.size()];
  return text;
}

TEST(TokenizerLaws, DecodeUndoesEncode) {
  for (const Named& named : All()) {
    std::mt19937_64 random(kSeed);
    for (int i = 0; i < kTexts && named.lossless; ++i) {
      const std::string text = RandomText(random);
      for (bool parse_special : {false, true}) {
        if (parse_special && (text.find("<|im_") != text.npos || text.find("<s>") != text.npos)) {
          continue;  // control tokens have no bytes
        }
        const auto ids = named.tokenizer->Encode(text, parse_special, true);
        ASSERT_TRUE(ids.ok()) << ids.status();
        ASSERT_EQ(named.tokenizer->Decode(*ids), text) << named.name << ", seed " << kSeed;
      }
    }
  }
}

TEST(TokenizerLaws, OrdinaryTextNeverBecomesAControlToken) {
  for (const Named& named : All()) {
    if (named.name == "bytes") continue;  // has none
    std::set<TokenId> control;
    for (TokenId id = 0; id < named.tokenizer->vocab_size(); ++id) {
      if (named.tokenizer->TokenBytes(id).empty() && !named.tokenizer->TokenBytes(id, true).empty())
        control.insert(id);
    }
    ASSERT_FALSE(control.empty()) << named.name;
    bool parsed_one = false;
    std::mt19937_64 random(kSeed + 1);
    for (int i = 0; i < kTexts; ++i) {
      const std::string text = RandomText(random);
      const auto ids = named.tokenizer->Encode(text, false, true);
      ASSERT_TRUE(ids.ok());
      for (TokenId id : *ids) {
        ASSERT_FALSE(control.contains(id)) << named.name << ": " << testing::PrintToString(text);
      }
      const auto parsed = named.tokenizer->Encode(text, true, true);
      ASSERT_TRUE(parsed.ok());
      for (TokenId id : *parsed) parsed_one |= control.contains(id);
    }
    EXPECT_TRUE(parsed_one) << named.name;
  }
}

TEST(TokenizerLaws, EncodingCutAtSafeSplitsEqualsEncodingWhole) {
  for (const Named& named : All()) {
    std::mt19937_64 random(kSeed + 2);
    int cuts = 0;
    for (int i = 0; i < kTexts; ++i) {
      const std::string text = RandomText(random) + RandomText(random);
      for (bool parse_special : {false, true}) {
        const auto whole = named.tokenizer->Encode(text, parse_special, true);
        ASSERT_TRUE(whole.ok());
        // As a stream in random steps: hold back what SafeSplit does not release.
        std::vector<TokenId> parts;
        std::string held;
        bool at_start = true;
        auto flush = [&](size_t size) {
          const auto ids = named.tokenizer->Encode(held.substr(0, size), parse_special, at_start);
          ASSERT_TRUE(ids.ok()) << named.name << ": " << ids.status();
          parts.insert(parts.end(), ids->begin(), ids->end());
          held.erase(0, size);
          at_start = false;
        };
        for (size_t at = 0; at < text.size();) {
          const size_t step = std::min<size_t>(1 + random() % 6, text.size() - at);
          held += text.substr(at, step);
          at += step;
          const size_t safe = named.tokenizer->SafeSplit(held);
          ASSERT_LE(safe, held.size());
          if (safe == 0) continue;
          ++cuts;
          flush(safe);
        }
        if (!held.empty()) flush(held.size());
        ASSERT_EQ(parts, *whole) << named.name << ": " << testing::PrintToString(text);
      }
    }
    EXPECT_GT(cuts, kTexts) << named.name;
  }
}

// Both ways of merging (a scan for short parts, a heap for long ones) are one function of the text.
TEST(TokenizerLaws, LongRunsTakeTimeNearLinearInTheirLength) {
  for (const Named& named : All()) {
    for (const char* unit : {"a", " ", "the", "1", "!", "世", "<|im_", "<", "\n", "'s"}) {
      std::string text;
      while (text.size() < (64 << 10)) text += unit;
      const auto start = std::chrono::steady_clock::now();
      const auto ids = named.tokenizer->Encode(text, true, true);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(named.tokenizer->Decode(*ids), text) << named.name;
      // A quadratic merge of 65,536 symbols takes tens of seconds even without sanitizers.
      EXPECT_LT(took.count(), 5.0) << named.name << " on " << unit;
    }
  }
}

TEST(TokenizerLaws, UnfinishedTextIsRefusedAndNeverSplitOff) {
  for (const Named& named : All()) {
    const auto ids = named.tokenizer->Encode("a\xC3", false, true);
    EXPECT_EQ(ids.ok(), named.name == "bytes") << named.name;
    EXPECT_LE(named.tokenizer->SafeSplit("a\xC3"), 1u) << named.name;
  }
}

}  // namespace
}  // namespace mneme::engine
