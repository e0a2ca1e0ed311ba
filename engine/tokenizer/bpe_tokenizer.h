// Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al.
// 2019), as GPT-2, Llama 3, Qwen 2 and SmolLM use it.
//
// Text is cut at special pieces, split by a pattern (pre_tokenizer.h), and inside each part single
// bytes are merged, lowest rank first, leftmost of equals. Pieces are spelled in printable code
// points that stand for bytes. A byte that the vocabulary has no piece for is dropped, as the
// reference implementations do: SmolLM's lacks some control characters.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/special_tokens.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

// Untrusted input of BpeTokenizer::Create.
struct BpeVocabulary {
  std::vector<std::string> pieces;                          // by id; an id without a piece has ""
  std::vector<PieceType> types;                             // as long as `pieces`
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  bool ignore_merges = false;  // a part that is a piece is emitted as such, merges or not
  bool normalize_nfc = false;
  PreTokenizerKind pre_tokenizer = PreTokenizerKind::kGpt2;
  SpecialTokens special;  // end_of_generation is filled in by Create
  std::vector<TokenId> more_end_tokens;
};

// Time of Encode: O(n log n) in the length of the text.
class BpeTokenizer final : public Tokenizer {
 public:
  // INVALID_ARGUMENT if there are more pieces than `vocab_size`, an id lies outside, or a merge
  // names or makes an unknown piece or makes a control token (messages name its index).
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(BpeVocabulary vocabulary,
                                                                 int64_t vocab_size);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                              bool at_start) const override;
  std::string TokenBytes(TokenId id, bool show_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  const SpecialTokens& special() const override { return special_; }
  TokenId FindPiece(std::string_view piece) const override;
  std::string_view kind() const override { return "bpe"; }
  size_t SafeSplit(std::string_view text) const override;

 private:
  struct Merge {
    int32_t rank;
    TokenId result;
  };
  struct Scratch;

  BpeTokenizer() = default;
  absl::Status Init(BpeVocabulary vocabulary, int64_t vocab_size);
  void EncodePart(std::string_view part, Scratch* scratch, std::vector<TokenId>* out) const;
  void MergeShort(Scratch* scratch) const;
  void MergeLong(Scratch* scratch) const;
  const Merge* FindMerge(TokenId left, TokenId right) const;

  int64_t vocab_size_ = 0;
  std::vector<std::string> pieces_;
  std::vector<PieceType> types_;
  std::vector<std::string> bytes_;  // what each piece stands for; "" for special and unused ones
  absl::flat_hash_map<std::string, TokenId> piece_ids_;
  absl::flat_hash_map<uint64_t, Merge> merges_;             // left << 32 | right
  absl::flat_hash_map<std::string, TokenId> whole_pieces_;  // by bytes; only with ignore_merges
  TokenId byte_ids_[256];                                   // -1: no piece
  bool normalize_nfc_ = false;
  SpecialMatcher matcher_;
  std::unique_ptr<const PreTokenizer> pre_tokenizer_;
  SpecialTokens special_;
};

}  // namespace mneme::engine
