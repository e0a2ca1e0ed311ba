// SentencePiece's byte-pair encoding (Kudo and Richardson 2018, arXiv:1808.06226) from the pieces
// and scores of a GGUF file (tokenizer.ggml.model = "llama"), or the pieces and merges of a
// tokenizer.json with byte_fallback.
//
// Spaces become U+2581; code points are merged, highest score of the joined piece first, leftmost
// of equals; a code point that is no piece becomes its bytes' <0xHH> pieces, or the unknown token
// where those are missing.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/special_tokens.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

// Untrusted input of SpmTokenizer::Create.
struct SpmVocabulary {
  std::vector<std::string> pieces;
  std::vector<PieceType> types;
  std::vector<float> scores;  // as long as `pieces`; unless there are merges
  // By rank: then two pieces are joined by the pair's rank instead of the result's score.
  std::vector<std::pair<std::string, std::string>> merges;
  bool add_space_prefix = true;
  bool prefix_first_only = false;   // and not again after a special piece
  bool prefix_before_space = true;  // also where the text begins with a space
  SpecialTokens special;
  std::vector<TokenId> more_end_tokens;
};

// Time of Encode: O(n log n) in the length of the text.
class SpmTokenizer final : public Tokenizer {
 public:
  // INVALID_ARGUMENT if the arrays differ in length, there are more pieces than `vocab_size`, a
  // score is not finite, an id lies outside, or a merge names or makes an unknown piece.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(SpmVocabulary vocabulary,
                                                                 int64_t vocab_size);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                              bool at_start) const override;
  std::string TokenBytes(TokenId id, bool show_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  const SpecialTokens& special() const override { return special_; }
  TokenId FindPiece(std::string_view piece) const override;
  std::string_view kind() const override { return "spm"; }
  // Before a space that follows a word. 0 always if some piece has a space inside.
  size_t SafeSplit(std::string_view text) const override;

 protected:
  bool drops_leading_space() const override { return add_space_prefix_; }

 private:
  SpmTokenizer() = default;
  absl::Status Init(SpmVocabulary vocabulary, int64_t vocab_size);
  absl::Status InitMerges(std::span<const std::pair<std::string, std::string>> merges);
  // How early two neighbours are joined, the highest first; nothing if never.
  std::optional<float> JoinScore(std::string_view left, std::string_view right) const;
  // `text` already has U+2581 for spaces.
  void EncodeEscaped(std::string_view text, std::vector<TokenId>* out) const;

  int64_t vocab_size_ = 0;
  std::vector<std::string> pieces_;
  std::vector<PieceType> types_;
  std::vector<float> scores_;
  std::vector<std::string> bytes_;                       // what each piece stands for
  absl::flat_hash_map<std::string, TokenId> piece_ids_;  // all
  absl::flat_hash_map<std::string, TokenId> merge_ids_;  // those that ordinary text can become
  absl::flat_hash_map<uint64_t, float> merges_;  // left << 32 | right -> -rank; may be empty
  size_t longest_piece_bytes_ = 0;               // in merge_ids_
  TokenId byte_ids_[256];                        // -1: no such piece
  bool add_space_prefix_ = true;
  bool prefix_first_only_ = false;
  bool prefix_before_space_ = true;
  bool has_inner_space_ = false;
  SpecialMatcher matcher_;
  SpecialTokens special_;
};

// The byte of a piece spelled <0xHH>, or -1.
int ByteOfPiece(std::string_view piece);

// U+2581, which stands for a space inside pieces.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

// The longest prefix of `text` that ends before a space and after another character that is neither
// U+2581 nor the end of a special piece (a prefix space may be due after those); 0 if there is
// none.
size_t LastWordEnd(std::string_view text, const SpecialMatcher& matcher);

// Whether U+2581 follows another character in `piece`.
bool HasInnerSpaceMark(std::string_view piece);

}  // namespace mneme::engine
