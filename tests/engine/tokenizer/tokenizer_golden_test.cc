// Exact ids against those of independent implementations (train/make_tokenizer_golden.py).
#include <memory>
#include <string>
#include <vector>

#include "engine/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "tests/engine/tokenizer/fake_checkpoint.h"

namespace mneme::engine {
namespace {

constexpr int64_t kRows = 1024;

using Ids = std::vector<TokenId>;

std::unique_ptr<const Tokenizer> Make(const Checkpoint& checkpoint, int64_t rows = kRows) {
  auto tokenizer = Tokenizer::Create(checkpoint, rows);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

void ExpectIds(const Tokenizer& tokenizer, const std::string& text, bool parse_special,
               const Ids& expected) {
  auto ids = tokenizer.Encode(text, parse_special, true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, expected) << "text: " << testing::PrintToString(text)
                            << " parse_special: " << parse_special;
}

class BpeGolden : public testing::TestWithParam<std::string> {};

TEST_P(BpeGolden, TokenizerJson) {
  const auto tokenizer = Make(FolderWithBpe(GetParam()));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->kind(), "bpe");
  const auto cases = ReadGoldenJson(GetParam() + ".cases.json");
  ASSERT_GT(cases.size(), 90u);
  for (const auto& c : cases) {
    ExpectIds(*tokenizer, c["text"], false, c["ids"].get<Ids>());
    ExpectIds(*tokenizer, c["text"], true, c["special"].get<Ids>());
  }
}

TEST_P(BpeGolden, Gguf) {
  const auto tokenizer = Make(GgufWithBpe(GetParam()));
  ASSERT_NE(tokenizer, nullptr);
  const auto with_nfc = Make(FolderWithBpe(GetParam()));
  ASSERT_NE(with_nfc, nullptr);
  for (const auto& c : ReadGoldenJson(GetParam() + ".cases.json")) {
    const std::string text = c["text"];
    if (Normalizes(GetParam())) {  // only texts that the normaliser leaves alone
      if (with_nfc->Decode(c["ids"].get<Ids>()) != text) continue;
    }
    ExpectIds(*tokenizer, text, false, c["ids"].get<Ids>());
    ExpectIds(*tokenizer, text, true, c["special"].get<Ids>());
  }
}

INSTANTIATE_TEST_SUITE_P(Families, BpeGolden, testing::ValuesIn(BpeFamilies()),
                         [](const auto& info) { return info.param; });

TEST(WorldGolden, VocabularyFileAndGguf) {
  for (const FakeCheckpoint& checkpoint : {FolderWithWorld(), GgufWithWorld()}) {
    const auto tokenizer = Make(checkpoint, kWorldRows);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->kind(), "world");
    const auto cases = ReadGoldenJson("world.cases.json");
    ASSERT_GT(cases.size(), 90u);
    for (const auto& c : cases) {
      const std::string text = c["text"];
      ExpectIds(*tokenizer, text, false, c["ids"].get<Ids>());
      EXPECT_EQ(tokenizer->Decode(c["ids"].get<Ids>()), text);
    }
  }
}

TEST(WorldGolden, SpecialTokens) {
  const auto file = Make(FolderWithWorld(), kWorldRows);
  const auto gguf = Make(GgufWithWorld(), kWorldRows);
  ASSERT_NE(file, nullptr);
  ASSERT_NE(gguf, nullptr);
  for (const auto* tokenizer : {file.get(), gguf.get()}) {
    EXPECT_EQ(tokenizer->special().bos, 0);
    EXPECT_EQ(tokenizer->special().eos, 0);
    EXPECT_TRUE(tokenizer->special().add_bos);
    EXPECT_EQ(tokenizer->FindPiece("<s>"), 0);
    EXPECT_EQ(tokenizer->FindPiece("\n\n"), 261);
    EXPECT_EQ(tokenizer->FindPiece("[PAD65530]"), -1);
    EXPECT_EQ(tokenizer->TokenBytes(0), "");
    EXPECT_EQ(tokenizer->TokenBytes(0, true), "<s>");
    EXPECT_EQ(tokenizer->TokenBytes(kWorldRows - 1, true), "");
    EXPECT_EQ(tokenizer->TokenBytes(256), "\xFF");
    ExpectIds(*tokenizer, "a<s>\n\n", true, {98, 0, 261});
    const auto plain = tokenizer->Encode("a<s>\n\n", false, true);
    ASSERT_TRUE(plain.ok()) << plain.status();
    for (const TokenId id : *plain) EXPECT_NE(id, 0);
  }
  EXPECT_THAT(file->special().end_of_generation, testing::ElementsAre(0));
  EXPECT_THAT(gguf->special().end_of_generation, testing::ElementsAre(0, 261));
  // The class defaults in public RWKV-7 configurations are no World tokens; add_bos_token counts.
  FakeCheckpoint folder = FolderWithWorld();
  folder.Set("bos_token_id", int64_t{1}).Set("eos_token_id", int64_t{2});
  folder.SetFile("tokenizer_config.json", R"({"add_bos_token": false})");
  const auto configured = Make(folder, kWorldRows);
  ASSERT_NE(configured, nullptr);
  EXPECT_EQ(configured->special().eos, 0);
  EXPECT_FALSE(configured->special().add_bos);
}

TEST(SpmGolden, GgufAndLibrary) {
  const auto gguf = Make(GgufWithSpm());
  const auto library = Make(FolderWithSentencePiece());
  ASSERT_NE(gguf, nullptr);
  ASSERT_NE(library, nullptr);
  EXPECT_EQ(gguf->kind(), "spm");
  EXPECT_EQ(library->kind(), "sentencepiece");
  const auto cases = ReadGoldenJson("spm.cases.json");
  ASSERT_GT(cases.size(), 90u);
  for (const auto& c : cases) {
    const Ids expected = c["ids"].get<Ids>();
    ExpectIds(*gguf, c["text"], false, expected);
    ExpectIds(*library, c["text"], false, expected);
    EXPECT_EQ(gguf->Decode(expected), c["decoded"].get<std::string>());
    EXPECT_EQ(library->Decode(expected), c["decoded"].get<std::string>());
  }
}

TEST(SpmGolden, TokenizerJsonWithByteFallback) {
  const auto tokenizer = Make(FolderWithByteFallback(ByteFallbackJson(PrependAndReplace(), {})));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->kind(), "spm");
  for (const auto& c : ReadGoldenJson("spm.cases.json")) {
    const Ids expected = c["ids"].get<Ids>();
    ExpectIds(*tokenizer, c["text"], false, expected);
    EXPECT_EQ(tokenizer->Decode(expected), c["decoded"].get<std::string>());
  }
  EXPECT_EQ(tokenizer->special().bos, 1);
  EXPECT_EQ(tokenizer->special().eos, 2);
  EXPECT_EQ(tokenizer->special().unk, 0);
}

// The ids are those that the PyPI package tokenizers gives for the same JSON.
TEST(SpmGolden, WhereASpaceIsPutInFront) {
  struct Case {
    nlohmann::json normalizer, pre_tokenizer;
    Ids plain, spaced, after_control, mixed;
  };
  const Ids joined = {431}, pieces = {274, 565, 278};  // "river" with and without a space
  const std::vector<Case> cases = {
      {PrependAndReplace(),
       {},
       joined,
       {259, 274, 565, 278},
       {1, 431},
       {262, 1, 259, 274, 565, 278, 1, 431}},
      {{}, Metaspace("always"), joined, joined, {1, 431}, {262, 1, 431, 1, 431}},
      {{}, Metaspace("first"), joined, joined, {1, 274, 565, 278}, {262, 1, 431, 1, 274, 565, 278}},
      {{},
       Metaspace("never"),
       pieces,
       joined,
       {1, 274, 565, 278},
       {542, 1, 431, 1, 274, 565, 278}}};
  for (const Case& c : cases) {
    const auto tokenizer =
        Make(FolderWithByteFallback(ByteFallbackJson(c.normalizer, c.pre_tokenizer)));
    ASSERT_NE(tokenizer, nullptr);
    ExpectIds(*tokenizer, "river", true, c.plain);
    ExpectIds(*tokenizer, " river", true, c.spaced);
    ExpectIds(*tokenizer, "<s>river", true, c.after_control);
    ExpectIds(*tokenizer, "a<s> river<s>river", true, c.mixed);
  }
}

// Fine-tuned models put tokens behind those of tokenizer.model.
TEST(SpmGolden, AddedTokens) {
  const auto plain = Make(FolderWithSentencePiece());
  ASSERT_NE(plain, nullptr);
  const TokenId start = 600, end = 601, word = 602;  // the model has 600 pieces
  const std::string config = R"({"eos_token": "<|im_end|>", "additional_special_tokens":
                                 ["<|im_start|>"])";
  FakeCheckpoint decoder = FolderWithSentencePiece();
  decoder.SetFile("tokenizer_config.json", config + R"(, "added_tokens_decoder": {
      "1": {"content": "<s>", "special": true},
      "600": {"content": "<|im_start|>", "special": true},
      "601": {"content": "<|im_end|>", "special": true}, "602": {"content": "<word>"}}})");
  FakeCheckpoint ids = FolderWithSentencePiece();
  ids.SetFile("tokenizer_config.json", config + "}")
      .SetFile("added_tokens.json",
               R"({"<|im_start|>": 600, "<|im_end|>": 601, "<word>": 602, "<no row>": 1024})");
  FakeCheckpoint json = FolderWithSentencePiece();
  json.SetFile("tokenizer_config.json", config + "}")
      .SetFile("tokenizer.json", R"({"model": {"type": "Unigram"}, "added_tokens": [
          {"id": 600, "content": "<|im_start|>", "special": true},
          {"id": 601, "content": "<|im_end|>", "special": true},
          {"id": 602, "content": "<word>", "special": false}]})");
  for (FakeCheckpoint* folder : {&decoder, &ids, &json}) {
    folder->Set("eos_token_id", int64_t{2});  // the configuration's name wins, and both end a turn
    const auto tokenizer = Make(*folder);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->special().bos, 1);
    EXPECT_EQ(tokenizer->special().eos, end);
    EXPECT_THAT(tokenizer->special().end_of_generation, testing::ElementsAre(2, end));
    const Ids river = plain->Encode("river", false, true).value();
    Ids expected = {start};
    expected.insert(expected.end(), river.begin(), river.end());
    expected.push_back(end);
    ExpectIds(*tokenizer, "<|im_start|>river<|im_end|>", true, expected);
    ExpectIds(*tokenizer, "<|im_start|>", false,
              plain->Encode("<|im_start|>", false, true).value());
    expected = {word};
    ExpectIds(*tokenizer, "<word>", false, expected);
    EXPECT_EQ(tokenizer->TokenBytes(word), "<word>");
    EXPECT_EQ(tokenizer->TokenBytes(end), "");
    EXPECT_EQ(tokenizer->TokenBytes(end, true), "<|im_end|>");
    EXPECT_EQ(tokenizer->FindPiece("<no row>"), -1);
  }
}

// What a model's own user-defined pieces spell is found in any text, but for those that frame
// turns.
TEST(SpmGolden, FramingPiecesOfTheModelAreControlTokens) {
  // ModelProto { pieces { piece: text, type: USER_DEFINED } }, behind the file's own.
  auto piece = [](const std::string& text) {
    const std::string fields =
        std::string("\x0A") + static_cast<char>(text.size()) + text + std::string("\x18\x04");
    return std::string("\x0A") + static_cast<char>(fields.size()) + fields;
  };
  FakeCheckpoint folder(Checkpoint::Format::kSafetensors);
  folder.SetFile("tokenizer.model", ReadGoldenFile("spm.model") + piece("<|im_start|>") +
                                        piece("<named>") + piece("<word>"));
  folder.SetFile("tokenizer_config.json",
                 R"({"added_tokens_decoder": {"601": {"content": "<named>", "special": true}}})");
  const auto tokenizer = Make(folder);
  ASSERT_NE(tokenizer, nullptr);
  const auto plain = Make(FolderWithSentencePiece());
  ASSERT_NE(plain, nullptr);
  for (const auto& [text, id] : {std::pair{"<|im_start|>", 600}, std::pair{"<named>", 601}}) {
    ExpectIds(*tokenizer, text, true, {id});
    ExpectIds(*tokenizer, text, false, plain->Encode(text, false, true).value());
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
  }
  const Ids word = tokenizer->Encode("a<word>", false, true).value();
  EXPECT_THAT(word, testing::Contains(602));
}

TEST(SpmGolden, SpecialTokens) {
  for (const FakeCheckpoint& checkpoint : {GgufWithSpm(), FolderWithSentencePiece()}) {
    const auto tokenizer = Make(checkpoint);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(tokenizer->special().bos, 1);
    EXPECT_EQ(tokenizer->special().eos, 2);
    EXPECT_EQ(tokenizer->special().unk, 0);
    EXPECT_TRUE(tokenizer->special().add_bos);
    EXPECT_THAT(tokenizer->special().end_of_generation, testing::ElementsAre(2));
    // A prefix space is due at the start and after a control token, not inside a text.
    const Ids river = tokenizer->Encode("river", false, true).value();
    Ids expected = {1};
    expected.insert(expected.end(), river.begin(), river.end());
    ExpectIds(*tokenizer, "<s>river", true, expected);
    EXPECT_EQ(tokenizer->Decode(river, false), " river");
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("river", false, false).value(), false), "river");
    EXPECT_EQ(tokenizer->TokenBytes(1, true), "<s>");
    EXPECT_EQ(tokenizer->TokenBytes(1), "");
    EXPECT_EQ(tokenizer->TokenBytes(kRows - 1, true), "");
  }
}

}  // namespace
}  // namespace mneme::engine
