// A SentencePiece model file (tokenizer.model), encoded by the sentencepiece library.
//
// Models with a compiled normalisation table are refused by name: the library walks that table
// without checking it, and a file must not be able to make us read outside of our memory. The
// models we serve (Llama, Mistral, Gemma) have none.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/hf_specials.h"
#include "engine/tokenizer/sentencepiece_library.h"
#include "engine/tokenizer/special_tokens.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

// What we need to know of a ModelProto besides the pieces; defaults are the format's.
struct SentencePieceOptions {
  int model_type = 1;  // 1 unigram, 2 bpe, 3 word, 4 char
  bool has_charsmap = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool treat_whitespace_as_suffix = false;
};

// Reads the options out of a serialised ModelProto. INVALID_ARGUMENT if it is no well-formed
// protocol buffer.
absl::StatusOr<SentencePieceOptions> ReadSentencePieceOptions(std::string_view model);

class SentencePieceModel final : public Tokenizer {
 public:
  static constexpr size_t kMaxModelBytes = size_t{32} << 20;

  // Special ids come from the model where `specials` has none. `added` are pieces behind the
  // model's own, or new names for its control and unused ones; those without an embedding row are
  // left out.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(std::string model,
                                                                 const HfSpecials& specials,
                                                                 std::span<const AddedToken> added,
                                                                 int64_t vocab_size);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                              bool at_start) const override;
  std::string TokenBytes(TokenId id, bool show_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  const SpecialTokens& special() const override { return special_; }
  TokenId FindPiece(std::string_view piece) const override;
  std::string_view kind() const override { return "sentencepiece"; }
  // Before a space that follows a word, for BPE models that keep whitespace as it is and have no
  // piece with a space inside; otherwise 0 (a unigram model weighs the whole text at once).
  size_t SafeSplit(std::string_view text) const override;

 protected:
  bool drops_leading_space() const override { return options_.add_dummy_prefix; }

 private:
  SentencePieceModel() = default;
  absl::Status Init(std::string model, const HfSpecials& specials,
                    std::span<const AddedToken> added, int64_t vocab_size);
  absl::Status AddTokens(std::span<const AddedToken> added);

  int64_t vocab_size_ = 0;
  SentencePieceOptions options_;
  std::unique_ptr<const SentencePieceLibrary> at_start_;
  std::unique_ptr<const SentencePieceLibrary> inside_;  // the same model without a prefix space
  std::vector<std::string> pieces_;
  std::vector<PieceType> types_;
  std::vector<std::string> bytes_;
  absl::flat_hash_map<std::string, TokenId> piece_ids_;
  SpecialMatcher matcher_;
  bool can_split_ = false;
  SpecialTokens special_;
};

}  // namespace mneme::engine
