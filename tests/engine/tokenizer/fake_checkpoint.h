// A checkpoint made of metadata and side files in memory, for tests of what reads tokenizers.
#pragma once

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/tokenizer/world_tokenizer.h"
#include "gtest/gtest.h"

namespace mneme::engine {

class FakeCheckpoint final : public Checkpoint {
 public:
  explicit FakeCheckpoint(Format format = Format::kGguf) : format_(format) {}

  FakeCheckpoint& Set(const std::string& key, MetadataValue value) {
    metadata_.insert_or_assign(key, std::move(value));
    return *this;
  }
  FakeCheckpoint& Erase(const std::string& key) {
    metadata_.erase(key);
    return *this;
  }
  FakeCheckpoint& SetFile(const std::string& name, std::string content) {
    files_[name] = std::move(content);
    return *this;
  }

  Format format() const override { return format_; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  std::string Fingerprint() const override { return std::string(32, '\0'); }
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t max_bytes) const override {
    const auto it = files_.find(name);
    if (it == files_.end()) return absl::NotFoundError(std::string(name));
    if (it->second.size() > max_bytes) return absl::InvalidArgumentError("too large");
    return it->second;
  }

 private:
  Format format_;
  std::string path_ = "fake";
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> files_;
};

inline std::string ReadGoldenFile(const std::string& name) {
  std::ifstream file(std::string(MNEME_TOKENIZER_GOLDEN_DIR "/") + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline nlohmann::json ReadGoldenJson(const std::string& name) {
  auto json = ParseStrictJson(ReadGoldenFile(name), name);
  EXPECT_TRUE(json.ok()) << json.status();
  return json.ok() ? *json : nlohmann::json();
}

// The families of tests/golden/tokenizer/.
inline const std::vector<std::string>& BpeFamilies() {
  static const auto* const kFamilies =
      new std::vector<std::string>{"gpt2", "neox", "smollm", "llama3", "qwen2"};
  return *kFamilies;
}

// Whether the family's tokenizer.json normalises texts to NFC.
inline bool Normalizes(const std::string& family) { return family == "qwen2" || family == "neox"; }

// A folder with tokenizer.json of `family`.
inline FakeCheckpoint FolderWithBpe(const std::string& family) {
  FakeCheckpoint checkpoint(Checkpoint::Format::kSafetensors);
  checkpoint.SetFile("tokenizer.json", ReadGoldenFile(family + ".json"));
  return checkpoint;
}

// The same tokenizer as GGUF metadata (without a normaliser, which GGUF cannot express).
inline FakeCheckpoint GgufWithBpe(const std::string& family) {
  static const std::map<std::string, std::string> kPre = {{"gpt2", "gpt-2"},
                                                          {"neox", "gpt-2"},
                                                          {"smollm", "smollm"},
                                                          {"llama3", "llama-bpe"},
                                                          {"qwen2", "qwen2"}};
  const nlohmann::json root = ReadGoldenJson(family + ".json");
  std::map<int64_t, std::pair<std::string, int64_t>> pieces;
  for (const auto& [piece, id] : root["model"]["vocab"].items()) pieces[id] = {piece, 1};
  for (const auto& token : root["added_tokens"]) {
    pieces[token["id"]] = {token["content"], token["special"].get<bool>() ? 3 : 4};
  }
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  for (const auto& [id, piece] : pieces) {
    tokens.push_back(piece.first);
    types.push_back(piece.second);
  }
  std::vector<std::string> merges;
  for (const auto& merge : root["model"]["merges"]) {
    merges.push_back(merge.is_string() ? merge.get<std::string>()
                                       : absl::StrCat(merge[0].get<std::string>(), " ",
                                                      merge[1].get<std::string>()));
  }
  FakeCheckpoint checkpoint;
  checkpoint.Set("tokenizer.ggml.model", std::string("gpt2"))
      .Set("tokenizer.ggml.pre", kPre.at(family))
      .Set("tokenizer.ggml.tokens", std::move(tokens))
      .Set("tokenizer.ggml.token_type", std::move(types))
      .Set("tokenizer.ggml.merges", std::move(merges))
      .Set("tokenizer.ggml.bos_token_id", int64_t{1})
      .Set("tokenizer.ggml.eos_token_id", int64_t{2});
  return checkpoint;
}

inline FakeCheckpoint GgufWithSpm() {
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  std::vector<double> scores;
  for (const auto& piece : ReadGoldenJson("spm.pieces.json")) {
    tokens.push_back(piece["piece"]);
    types.push_back(piece["type"]);
    scores.push_back(piece["score"]);
  }
  FakeCheckpoint checkpoint;
  checkpoint.Set("tokenizer.ggml.model", std::string("llama"))
      .Set("tokenizer.ggml.tokens", std::move(tokens))
      .Set("tokenizer.ggml.token_type", std::move(types))
      .Set("tokenizer.ggml.scores", std::move(scores));
  return checkpoint;
}

// Embedding rows of the World models; the vocabulary of tests/golden/tokenizer/ has its true ids.
inline constexpr int64_t kWorldRows = 65536;

inline FakeCheckpoint FolderWithWorld() {
  FakeCheckpoint checkpoint(Checkpoint::Format::kSafetensors);
  checkpoint.SetFile("rwkv_vocab_v20230424.txt", ReadGoldenFile("world.vocab.txt"));
  return checkpoint;
}

// As llama.cpp's converter writes it; ids that the excerpt lacks are as its padding.
inline FakeCheckpoint GgufWithWorld() {
  std::vector<std::string> tokens = {"<s>"};
  std::vector<int64_t> types = {3};
  for (int64_t id = 1; id < kWorldRows; ++id) {
    tokens.push_back(absl::StrCat("[PAD", id, "]"));
    types.push_back(5);
  }
  const auto vocabulary = ReadWorldVocabulary(ReadGoldenFile("world.vocab.txt"), kWorldRows);
  EXPECT_TRUE(vocabulary.ok()) << vocabulary.status();
  for (size_t id = 1; vocabulary.ok() && id < vocabulary->pieces.size(); ++id) {
    if (vocabulary->types[id] != PieceType::kNormal) continue;
    std::string& escaped = tokens[id];
    escaped.clear();
    for (const char c : vocabulary->pieces[id]) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '\t' || c == '\n' || c == '\r') {
        escaped += c == '\t' ? "\\t" : c == '\n' ? "\\n" : "\\r";
      } else if (c == '\\') {
        escaped += "\\\\";
      } else if (byte < 0x20 || byte >= 0x7F) {
        absl::StrAppend(&escaped, "\\x", absl::Hex(byte, absl::kZeroPad2));
      } else {
        escaped += c;
      }
    }
    types[id] = 1;
  }
  FakeCheckpoint checkpoint;
  checkpoint.Set("tokenizer.ggml.model", std::string("rwkv"))
      .Set("tokenizer.ggml.tokens", std::move(tokens))
      .Set("tokenizer.ggml.token_type", std::move(types))
      .Set("tokenizer.ggml.eot_token_id", int64_t{261});
  return checkpoint;
}

// The SentencePiece vocabulary as transformers converts it: byte-pair merges in the order of the
// results' scores, and `spaces` (normalizer, pre_tokenizer) put in place of its normaliser.
inline nlohmann::json ByteFallbackJson(const nlohmann::json& normalizer,
                                       const nlohmann::json& pre_tokenizer) {
  struct Merge {
    double score;
    int64_t left, right;
    nlohmann::json pair;
  };
  const nlohmann::json pieces = ReadGoldenJson("spm.pieces.json");
  std::map<std::string, int64_t> ids;  // of ordinary pieces
  nlohmann::json vocabulary = nlohmann::json::object(), added = nlohmann::json::array();
  for (size_t i = 0; i < pieces.size(); ++i) {
    vocabulary[pieces[i]["piece"].get<std::string>()] = i;
    if (pieces[i]["type"] == 1) ids[pieces[i]["piece"]] = static_cast<int64_t>(i);
    if (pieces[i]["type"] == 2 || pieces[i]["type"] == 3) {
      added.push_back({{"id", i}, {"content", pieces[i]["piece"]}, {"special", true}});
    }
  }
  std::vector<Merge> merges;
  for (const auto& [piece, id] : ids) {
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      const auto left = ids.find(piece.substr(0, cut));
      const auto right = ids.find(piece.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      merges.push_back(
          {pieces[id]["score"], left->second, right->second, {left->first, right->first}});
    }
  }
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(b.score, a.left, a.right) < std::tie(a.score, b.left, b.right);
  });
  nlohmann::json pairs = nlohmann::json::array();
  for (const Merge& merge : merges) pairs.push_back(merge.pair);
  return {{"added_tokens", added},
          {"normalizer", normalizer},
          {"pre_tokenizer", pre_tokenizer},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"byte_fallback", true},
            {"vocab", vocabulary},
            {"merges", pairs}}}};
}

// Of Llama 2's first conversions.
inline nlohmann::json PrependAndReplace() {
  return {{"type", "Sequence"},
          {"normalizers",
           {{{"type", "Prepend"}, {"prepend", "\u2581"}},
            {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}};
}

// Of later ones; `scheme` is "first", "always" or "never".
inline nlohmann::json Metaspace(const std::string& scheme) {
  return {{"type", "Metaspace"},
          {"replacement", "\u2581"},
          {"prepend_scheme", scheme},
          {"split", false}};
}

inline FakeCheckpoint FolderWithByteFallback(const nlohmann::json& tokenizer_json) {
  FakeCheckpoint checkpoint(Checkpoint::Format::kSafetensors);
  checkpoint.SetFile("tokenizer.json", tokenizer_json.dump())
      .SetFile("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  return checkpoint;
}

inline FakeCheckpoint FolderWithSentencePiece() {
  FakeCheckpoint checkpoint(Checkpoint::Format::kSafetensors);
  checkpoint.SetFile("tokenizer.model", ReadGoldenFile("spm.model"));
  return checkpoint;
}

}  // namespace mneme::engine
