// Input: TOKENIZER '\0' TEXT. TOKENIZER is a tokenizer.json if it starts with '{', a World
// vocabulary if it starts with a digit, otherwise a tokenizer.model. If it is refused, that is all;
// otherwise TEXT goes through the laws that every tokenizer obeys.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/world_tokenizer.h"

namespace mneme::engine {
namespace {

constexpr int64_t kRows = 2048;
constexpr int64_t kWorldRows = 65536;

class OneFile final : public Checkpoint {
 public:
  OneFile(std::string name, std::string content)
      : name_(std::move(name)), content_(std::move(content)) {}

  Format format() const override { return Format::kSafetensors; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return name_; }
  std::string Fingerprint() const override { return std::string(32, '\0'); }
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t) const override {
    if (name != name_) return absl::NotFoundError("");
    return content_;
  }

 private:
  const std::string name_;
  const std::string content_;
  const std::map<std::string, MetadataValue, std::less<>> metadata_;
  const std::map<std::string, Tensor, std::less<>> tensors_;
};

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckText(const Tokenizer& tokenizer, std::string_view text) {
  for (bool parse_special : {false, true}) {
    const auto whole = tokenizer.Encode(text, parse_special, true);
    Require(whole.ok() == IsValidUtf8(text));
    const size_t safe = tokenizer.SafeSplit(text);
    Require(safe <= text.size());
    if (!whole.ok()) continue;
    for (TokenId id : *whole) Require(id >= 0 && id < tokenizer.vocab_size());
    (void)tokenizer.Decode(*whole);
    if (safe == 0) continue;
    auto first = tokenizer.Encode(text.substr(0, safe), parse_special, true);
    const auto second = tokenizer.Encode(text.substr(safe), parse_special, false);
    Require(first.ok() && second.ok());
    first->insert(first->end(), second->begin(), second->end());
    Require(*first == *whole);
  }
}

}  // namespace
}  // namespace mneme::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mneme::engine;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.empty()) return 0;
  const bool json = input.front() == '{';
  const bool world = input.front() >= '0' && input.front() <= '9';
  // A model holds zero bytes: there the last one is the border.
  const size_t border =
      std::min(json || world ? input.find('\0') : input.rfind('\0'), input.size());
  const OneFile checkpoint(json    ? "tokenizer.json"
                           : world ? "rwkv_vocab_v20230424.txt"
                                   : "tokenizer.model",
                           std::string(input.substr(0, border)));
  if (world) (void)UnescapeWorldPiece(input.substr(0, border));  // GGUF's form of a piece
  const auto tokenizer = Tokenizer::Create(checkpoint, world ? kWorldRows : kRows);
  if (!tokenizer.ok()) return 0;
  CheckText(**tokenizer, input.substr(std::min(border + 1, input.size())));
  return 0;
}
