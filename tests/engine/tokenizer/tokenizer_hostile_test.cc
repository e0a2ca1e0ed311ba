// Metadata and files that must be refused, with a message that names what is wrong.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/tokenizer.h"
#include "gmock/gmock.h"
#include "tests/engine/tokenizer/fake_checkpoint.h"

namespace mneme::engine {
namespace {

using testing::HasSubstr;

void ExpectRefused(const Checkpoint& checkpoint, absl::StatusCode code, const std::string& part,
                   int64_t vocab_size = 1024) {
  const auto tokenizer = Tokenizer::Create(checkpoint, vocab_size);
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(part));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

template <typename T>
std::vector<T> Array(const Checkpoint& checkpoint, const char* key) {
  return std::get<std::vector<T>>(checkpoint.metadata().find(key)->second);
}

TEST(HostileGguf, Kinds) {
  FakeCheckpoint c = GgufWithBpe("smollm");
  ExpectRefused(c.Set("tokenizer.ggml.model", std::string("t5")), kUnimplemented, "t5");
  ExpectRefused(c.Set("tokenizer.ggml.model", int64_t{3}), kInvalid, "tokenizer.ggml.model");
  EXPECT_FALSE(Tokenizer::Create(c.Erase("tokenizer.ggml.model"), 1024).ok());
  c = GgufWithBpe("smollm").Set("tokenizer.ggml.pre", std::string("tekken"));
  ExpectRefused(c, kUnimplemented, "tekken");
  ExpectRefused(c.Erase("tokenizer.ggml.pre"), kUnimplemented, "is missing");
}

TEST(HostileGguf, Arrays) {
  const FakeCheckpoint good = GgufWithBpe("smollm");
  const auto tokens = Array<std::string>(good, "tokenizer.ggml.tokens");
  const auto merges = Array<std::string>(good, "tokenizer.ggml.merges");
  ExpectRefused(good, kInvalid, "embedding rows", static_cast<int64_t>(tokens.size()) - 1);
  EXPECT_TRUE(Tokenizer::Create(good, static_cast<int64_t>(tokens.size())).ok());
  auto with = [&](const char* key, MetadataValue value) {
    FakeCheckpoint c = good;
    c.Set(key, std::move(value));
    return c;
  };
  FakeCheckpoint c = good;
  ExpectRefused(c.Erase("tokenizer.ggml.tokens"), kInvalid, "tokenizer.ggml.tokens");
  c = good;
  ExpectRefused(c.Erase("tokenizer.ggml.merges"), kInvalid, "tokenizer.ggml.merges");
  ExpectRefused(with("tokenizer.ggml.tokens", int64_t{1}), kInvalid, "tokenizer.ggml.tokens");
  ExpectRefused(with("tokenizer.ggml.token_type", std::vector<int64_t>(3, 1)), kInvalid,
                "tokenizer.ggml.token_type");
  ExpectRefused(with("tokenizer.ggml.token_type", std::vector<int64_t>(tokens.size(), 7)), kInvalid,
                "token_type[0]");
  auto bad_merges = merges;
  bad_merges[5] = "nothere either";
  ExpectRefused(with("tokenizer.ggml.merges", bad_merges), kInvalid, "merge 5");
  bad_merges[5] = "Ġ";
  ExpectRefused(with("tokenizer.ggml.merges", bad_merges), kInvalid, "merges[5]");
  bad_merges[5] = "";
  ExpectRefused(with("tokenizer.ggml.merges", bad_merges), kInvalid, "merges[5]");
  auto bad_tokens = tokens;
  bad_tokens[7] = "\xFF";
  ExpectRefused(with("tokenizer.ggml.tokens", bad_tokens), kInvalid, "piece 7");
  auto types = Array<int64_t>(good, "tokenizer.ggml.token_type");
  types.back() = 3;
  bad_tokens = tokens;
  bad_tokens.back() = std::string(300, 'x');
  c = with("tokenizer.ggml.tokens", bad_tokens);
  ExpectRefused(c.Set("tokenizer.ggml.token_type", types), kInvalid, "300 bytes");
  // A merge may not make a control token: ordinary text would become one.
  types = Array<int64_t>(good, "tokenizer.ggml.token_type");
  for (int64_t& type : types) type = 3;
  ExpectRefused(with("tokenizer.ggml.token_type", types), kInvalid, "merge 0");
}

TEST(HostileGguf, SpecialIds) {
  for (const char* name : {"bos", "eos", "unknown", "padding", "eot", "eom"}) {
    const std::string key = absl::StrCat("tokenizer.ggml.", name, "_token_id");
    for (int64_t id : {int64_t{1} << 20, int64_t{-2}, int64_t{1} << 40}) {
      FakeCheckpoint c = GgufWithBpe("smollm");
      EXPECT_EQ(Tokenizer::Create(c.Set(key, id), 1024).status().code(), kInvalid) << key << id;
    }
    FakeCheckpoint c = GgufWithBpe("smollm");
    ExpectRefused(c.Set(key, std::string("x")), kInvalid, key);
    c = GgufWithBpe("smollm");
    EXPECT_TRUE(Tokenizer::Create(c.Set(key, int64_t{0xFFFFFFFF}), 1024).ok()) << key;
  }
}

TEST(HostileGguf, SpmScores) {
  const FakeCheckpoint good = GgufWithSpm();
  auto scores = Array<double>(good, "tokenizer.ggml.scores");
  for (double bad : {std::nan(""), 1e300, -1e300}) {
    scores[9] = bad;
    FakeCheckpoint c = good;
    ExpectRefused(c.Set("tokenizer.ggml.scores", scores), kInvalid, "scores[9]");
  }
  scores.pop_back();
  FakeCheckpoint c = good;
  ExpectRefused(c.Set("tokenizer.ggml.scores", scores), kInvalid, "tokenizer.ggml.scores");
  ExpectRefused(c.Erase("tokenizer.ggml.scores"), kInvalid, "tokenizer.ggml.scores");
  auto types = Array<int64_t>(good, "tokenizer.ggml.token_type");
  types.back() = 6;
  c = good;
  ExpectRefused(c.Set("tokenizer.ggml.token_type", types), kInvalid, "<0xHH>");
}

TEST(HostileWorld, Gguf) {
  const FakeCheckpoint good = GgufWithWorld();
  EXPECT_TRUE(Tokenizer::Create(good, kWorldRows).ok());
  ExpectRefused(good, kInvalid, "embedding rows", kWorldRows - 1);
  const auto tokens = Array<std::string>(good, "tokenizer.ggml.tokens");
  const auto types = Array<int64_t>(good, "tokenizer.ggml.token_type");
  auto with_token = [&](size_t id, const std::string& token, int64_t type = 1) {
    FakeCheckpoint c = good;
    auto changed = tokens;
    changed[id] = token;
    auto changed_types = types;
    changed_types[id] = type;
    c.Set("tokenizer.ggml.tokens", changed).Set("tokenizer.ggml.token_type", changed_types);
    return c;
  };
  ExpectRefused(with_token(300, "\\"), kInvalid, "tokens[300] ends with a backslash", kWorldRows);
  ExpectRefused(with_token(300, "a\\x4"), kInvalid, "tokens[300] has \\x without", kWorldRows);
  ExpectRefused(with_token(300, "a\\x4g"), kInvalid, "tokens[300] has \\x without", kWorldRows);
  ExpectRefused(with_token(300, ""), kInvalid, "piece 300 is empty", kWorldRows);
  ExpectRefused(with_token(300, std::string(257, 'x')), kInvalid, "257 bytes", kWorldRows);
  ExpectRefused(with_token(65535, "\\x41"), kInvalid, "has the bytes of piece 66", kWorldRows);
  ExpectRefused(with_token(66, "Zz"), kInvalid, "single byte 0x41", kWorldRows);
  ExpectRefused(with_token(300, "<0x41>", 6), kInvalid, "type 6", kWorldRows);
  ExpectRefused(with_token(300, "x", 2), kInvalid, "type 2", kWorldRows);
  EXPECT_TRUE(Tokenizer::Create(with_token(65535, "<tool>", 4), kWorldRows).ok());
  FakeCheckpoint c = good;
  ExpectRefused(c.Set("tokenizer.ggml.token_type", std::vector<int64_t>(tokens.size(), 3)),
                kInvalid, "special", kWorldRows);
  c = good;
  ExpectRefused(c.Set("tokenizer.ggml.eot_token_id", kWorldRows), kInvalid, "end-of-turn",
                kWorldRows);
}

TEST(HostileWorld, VocabularyFile) {
  const std::string good = ReadGoldenFile("world.vocab.txt");
  auto with = [](std::string text) {
    return FakeCheckpoint(Checkpoint::Format::kSafetensors)
        .SetFile("rwkv_vocab_v20230424.txt", std::move(text));
  };
  auto with_line = [&](const std::string& line) { return with(line + "\n" + good); };
  auto expect_line = [&](const std::string& line, const std::string& part) {
    ExpectRefused(with_line(line), kInvalid, "rwkv_vocab_v20230424.txt: line 1 has " + part,
                  kWorldRows);
  };
  EXPECT_TRUE(Tokenizer::Create(with(good), kWorldRows).ok());
  // The last line may lack its end, and lines may end as on Windows.
  EXPECT_TRUE(Tokenizer::Create(with(good.substr(0, good.size() - 1)), kWorldRows).ok());
  std::string windows;
  for (const char c : good) windows += c == '\n' ? "\r\n" : std::string(1, c);
  EXPECT_TRUE(Tokenizer::Create(with(windows), kWorldRows).ok());
  ExpectRefused(with(good), kInvalid, "no id from 1 to 1023", 1024);
  ExpectRefused(with(""), kInvalid, "single byte 0x00", kWorldRows);
  expect_line("", "no id, literal and length");
  expect_line("60000", "no id, literal and length");
  expect_line("60000 'x'", "no id, literal and length");
  expect_line("0 '' 0", "no id from 1");
  expect_line("-1 'zzzz' 4", "no id from 1");
  expect_line("060 'zzzz' 4", "no id from 1");
  expect_line("6000000000000000000000 'zzzz' 4", "no id from 1");
  expect_line("65536 'zzzz' 4", "no id from 1");
  expect_line("60000 'zzzz' 4x", "no length");
  expect_line("60000 '' 0", "no length");
  expect_line("60000 'zzzz' 5", "a literal of 4 bytes and the length 5");
  expect_line("60000 zzzz 4", "no Python literal");
  expect_line("60000 'zzzz\" 4", "no Python literal");
  expect_line("60000 ' 4", "no Python literal");
  expect_line("60000 b 4", "no Python literal");
  expect_line("60000 r'zzzz' 4", "no Python literal");
  expect_line("60000 'zz' 'zz' 4", "a quote inside");
  expect_line("60000 'zzzz\\' 5", "a literal that ends with a backslash");
  expect_line("60000 'zz\\a' 3", "the escape \\a");
  expect_line("60000 b'zz\\u0041' 3", "the escape \\u");
  expect_line("60000 'zz\\x4' 3", "the escape \\x without its 2");
  expect_line("60000 'zz\\u004' 3", "the escape \\u without its 4");
  expect_line("60000 'zz\\ud800' 5", "an escape that is no Unicode");
  expect_line("60000 'zz\\U00110000' 5", "an escape that is no Unicode");
  expect_line("60000 'zz\xff' 3", "text that is not valid UTF-8");
  expect_line("60000 b'zz\xff' 3", "a byte outside of ASCII");
  expect_line("60000 'zz\tz' 4", "a control character");
  ExpectRefused(with(good + "1 'zzzz' 4"), kInvalid, "the id 1, which an earlier", kWorldRows);
  ExpectRefused(with_line("60000 'a' 1"), kInvalid, "has the bytes of piece 98", kWorldRows);
  ExpectRefused(with_line("60000 '" + std::string(300, 'z') + "' 300"), kInvalid, "300 bytes",
                kWorldRows);
  // Escapes in text are code points, in bytes they are bytes.
  const auto escapes = Tokenizer::Create(
      with_line("60000 'z\\xe9\\u20ac\\U0001f600\\'\\\\' 12\n60001 b'z\\xe9\"' 3"), kWorldRows);
  ASSERT_TRUE(escapes.ok()) << escapes.status();
  EXPECT_EQ((*escapes)->TokenBytes(60000), "z\u00e9\u20ac\U0001f600'\\");
  EXPECT_EQ((*escapes)->TokenBytes(60001), "z\xe9\"");
}

TEST(HostileBytes, SizesAndIds) {
  FakeCheckpoint c;
  c.Set("tokenizer.ggml.model", std::string("bytes"));
  ExpectRefused(c, kInvalid, "256", 255);
  ExpectRefused(c.Set("tokenizer.ggml.eos_token_id", int64_t{256}), kInvalid, "eos", 256);
  EXPECT_TRUE(Tokenizer::Create(c, 257).ok());
  FakeCheckpoint folder(Checkpoint::Format::kSafetensors);
  folder.Set("tokenizer", std::string("bytes")).Set("eos_token_id", int64_t{0});
  const auto tokenizer = Tokenizer::Create(folder, 256);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->special().end_of_generation, testing::ElementsAre(0));
  EXPECT_THAT(*(*tokenizer)->Encode("\xFF\x01", true, true), testing::ElementsAre(255, 1));
  ExpectRefused(folder.Set("tokenizer", std::string("runes")), kUnimplemented, "runes");
}

TEST(HostileFolder, TokenizerJson) {
  ExpectRefused(FakeCheckpoint(Checkpoint::Format::kSafetensors), kInvalid, "tokenizer.json");
  const nlohmann::json good = ReadGoldenJson("llama3.json");
  auto with = [&](const char* pointer, nlohmann::json value) {
    nlohmann::json root = good;
    root[nlohmann::json::json_pointer(pointer)] = std::move(value);
    return FakeCheckpoint(Checkpoint::Format::kSafetensors).SetFile("tokenizer.json", root.dump());
  };
  EXPECT_TRUE(Tokenizer::Create(with("/version", "1.0"), 1024).ok());
  ExpectRefused(with("/model/type", "Unigram"), kUnimplemented, "Unigram");
  ExpectRefused(with("/model/byte_fallback", true), kUnimplemented, "byte_fallback");
  ExpectRefused(with("/model/end_of_word_suffix", "</w>"), kUnimplemented, "end_of_word_suffix");
  ExpectRefused(with("/model/vocab", nlohmann::json::array()), kInvalid, "model.vocab");
  ExpectRefused(with("/model/vocab/a", 5000), kInvalid, "5000");
  ExpectRefused(with("/model/vocab/a", -1), kInvalid, "-1");
  ExpectRefused(with("/model/vocab/a", 1.5), kInvalid, "1.5");
  ExpectRefused(with("/model/vocab/a", 4), kInvalid, "two pieces");
  ExpectRefused(with("/model/merges/3", "x"), kInvalid, "merges[3]");
  ExpectRefused(with("/model/merges/3", nlohmann::json::array({"zzz", "yyy"})), kInvalid,
                "merge 3");
  ExpectRefused(with("/model/merges", 1), kInvalid, "model.merges");
  ExpectRefused(with("/normalizer", {{"type", "NFKC"}}), kUnimplemented, "NFKC");
  ExpectRefused(with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(a+)+$"), kUnimplemented,
                "Split pattern");
  ExpectRefused(with("/pre_tokenizer", nullptr), kUnimplemented, "pre_tokenizer");
  ExpectRefused(with("/added_tokens/0/lstrip", true), kUnimplemented, "lstrip");
  ExpectRefused(with("/added_tokens/0/id", 1 << 30), kInvalid, "id");
  const std::string text = good.dump();
  for (size_t size = 0; size < text.size(); size += 97) {
    FakeCheckpoint c(Checkpoint::Format::kSafetensors);
    EXPECT_FALSE(Tokenizer::Create(c.SetFile("tokenizer.json", text.substr(0, size)), 1024).ok());
  }
}

TEST(HostileFolder, SpecialsComeFromTheConfiguration) {
  FakeCheckpoint c = FolderWithBpe("smollm");
  c.Set("eos_token_id", std::vector<int64_t>{2, 0}).Set("bos_token_id", int64_t{0});
  c.SetFile("tokenizer_config.json",
            R"({"bos_token": {"content": "<|im_start|>"}, "add_bos_token": true})");
  const auto tokenizer = Tokenizer::Create(c, 1024);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->special().bos, 1);  // the name wins
  EXPECT_EQ((*tokenizer)->special().eos, 2);
  EXPECT_TRUE((*tokenizer)->special().add_bos);
  EXPECT_THAT((*tokenizer)->special().end_of_generation, testing::ElementsAre(0, 2));
  ExpectRefused(c.Set("eos_token_id", int64_t{100000}), kInvalid, "eos");
  ExpectRefused(c.SetFile("tokenizer_config.json", "{"), kInvalid, "tokenizer_config.json");
}

TEST(HostileFolder, AddedTokens) {
  auto with = [](const char* file, const std::string& text) {
    FakeCheckpoint c = FolderWithSentencePiece();
    c.SetFile(file, text);
    return c;
  };
  ExpectRefused(with("added_tokens.json", "[]"), kInvalid, "added_tokens.json");
  ExpectRefused(with("added_tokens.json", R"({"x": -1})"), kInvalid, "added_tokens.json");
  ExpectRefused(with("added_tokens.json", R"({"x": 99999999999})"), kInvalid, "99999999999");
  ExpectRefused(with("added_tokens.json", R"({"": 600})"), kInvalid, "no content");
  ExpectRefused(with("added_tokens.json", R"({"x": 400})"), kInvalid, "added token 400");
  ExpectRefused(with("added_tokens.json", absl::StrCat("{\"", std::string(300, 'x'), "\": 600}")),
                kInvalid, "300 bytes");
  const char* config = "tokenizer_config.json";
  ExpectRefused(with(config, R"({"added_tokens_decoder": {"x": {"content": "y"}}})"), kInvalid,
                "added_tokens_decoder");
  ExpectRefused(with(config, R"({"added_tokens_decoder": {"600": {}}})"), kInvalid, "no content");
  ExpectRefused(
      with(config, R"({"added_tokens_decoder": {"600": {"content": "y", "rstrip": true}}})"),
      kUnimplemented, "rstrip");
  FakeCheckpoint two = with("added_tokens.json", R"({"x": 600})");
  two.SetFile(config, R"({"added_tokens_decoder": {"600": {"content": "y"}}})");
  ExpectRefused(two, kInvalid, "elsewhere");
  // An end beyond all pieces, named by nobody.
  FakeCheckpoint end = FolderWithSentencePiece();
  ExpectRefused(end.Set("eos_token_id", int64_t{700}), kInvalid, "eos token id is 700");
}

TEST(HostileFolder, ByteFallback) {
  const nlohmann::json good = ByteFallbackJson(PrependAndReplace(), {});
  auto with = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json json = good;
    json[nlohmann::json::json_pointer(pointer)] = value;
    return FolderWithByteFallback(json);
  };
  ExpectRefused(with("/model/merges", nlohmann::json::array()), kInvalid, "model.merges");
  ExpectRefused(with("/model/merges/3", {"no such", "pair"}), kInvalid, "merge 3");
  ExpectRefused(with("/model/ignore_merges", true), kUnimplemented, "ignore_merges");
  ExpectRefused(with("/normalizer", {{"type", "NFKC"}}), kUnimplemented, "NFKC");
  ExpectRefused(with("/normalizer", nullptr), kUnimplemented, "pre_tokenizer");
  ExpectRefused(with("/pre_tokenizer", Metaspace("first")), kUnimplemented, "pre_tokenizer");
  nlohmann::json splits = Metaspace("first");
  splits["split"] = true;
  ExpectRefused(FolderWithByteFallback(ByteFallbackJson({}, splits)), kUnimplemented,
                "pre_tokenizer");
}

TEST(HostileFolder, SentencePieceModel) {
  const std::string good = ReadGoldenFile("spm.model");
  auto with = [](std::string model) {
    return FakeCheckpoint(Checkpoint::Format::kSafetensors)
        .SetFile("tokenizer.model", std::move(model));
  };
  EXPECT_TRUE(Tokenizer::Create(with(good), 1024).ok());
  ExpectRefused(with(good), kInvalid, "embedding rows", 300);
  ExpectRefused(with(""), kInvalid, "tokenizer.model");
  ExpectRefused(with(std::string(1000, '\xFF')), kInvalid, "SentencePiece");
  // normalizer_spec { precompiled_charsmap: "abcd" }
  ExpectRefused(with(good + "\x1A\x06\x12\x04"
                            "abcd"),
                kUnimplemented, "precompiled_charsmap");
  // trainer_spec { model_type: WORD }
  ExpectRefused(with(good + std::string("\x12\x02\x18\x03", 4)), kUnimplemented, "model_type 3");
  for (size_t size = 1; size < good.size(); size += 53) {  // any outcome but a crash
    (void)Tokenizer::Create(with(good.substr(0, size)), 1024);
  }
  const auto options = ReadSentencePieceOptions(good);
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->model_type, 2);
  EXPECT_TRUE(options->add_dummy_prefix);
  EXPECT_FALSE(options->remove_extra_whitespaces);
  EXPECT_FALSE(options->has_charsmap);
}

TEST(SafeSplit, GivesUpWhereAPieceMayHoldASpace) {
  EXPECT_EQ(Tokenizer::Create(GgufWithBpe("gpt2"), 1024).value()->SafeSplit("one two thr"), 7u);
  FakeCheckpoint bpe = GgufWithBpe("gpt2");
  auto tokens = Array<std::string>(bpe, "tokenizer.ggml.tokens");
  auto types = Array<int64_t>(bpe, "tokenizer.ggml.token_type");
  tokens.push_back("tool call");
  types.push_back(4);
  bpe.Set("tokenizer.ggml.tokens", tokens).Set("tokenizer.ggml.token_type", types);
  EXPECT_EQ(Tokenizer::Create(bpe, 1024).value()->SafeSplit("one two thr"), 0u);

  // GPT-NeoX's pieces of many spaces are no such pieces.
  EXPECT_EQ(Tokenizer::Create(FolderWithBpe("neox"), 1024).value()->SafeSplit("one  two  thr"), 8u);

  EXPECT_EQ(Tokenizer::Create(GgufWithSpm(), 1024).value()->SafeSplit("one two thr"), 7u);
  FakeCheckpoint spm = GgufWithSpm();
  tokens = Array<std::string>(spm, "tokenizer.ggml.tokens");
  types = Array<int64_t>(spm, "tokenizer.ggml.token_type");
  auto scores = Array<double>(spm, "tokenizer.ggml.scores");
  tokens.push_back("e▁t");
  types.push_back(1);
  scores.push_back(-1000);
  spm.Set("tokenizer.ggml.tokens", tokens)
      .Set("tokenizer.ggml.token_type", types)
      .Set("tokenizer.ggml.scores", scores);
  EXPECT_EQ(Tokenizer::Create(spm, 1024).value()->SafeSplit("one two thr"), 0u);
}

}  // namespace
}  // namespace mneme::engine
