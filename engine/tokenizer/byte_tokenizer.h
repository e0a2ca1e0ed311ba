// Raw bytes: token id = byte value. For models trained on bytes; ids from 256 to the vocabulary's
// end have no bytes, and special tokens may be among them.
#pragma once

#include <memory>

#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

class ByteTokenizer final : public Tokenizer {
 public:
  // INVALID_ARGUMENT if `vocab_size` is below 256 or a special id is outside of it.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(SpecialTokens special,
                                                                 int64_t vocab_size);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                              bool at_start) const override;
  std::string TokenBytes(TokenId id, bool show_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  const SpecialTokens& special() const override { return special_; }
  // A piece is one byte; special tokens have no spelling.
  TokenId FindPiece(std::string_view piece) const override;
  std::string_view kind() const override { return "bytes"; }
  // Everything but an unfinished UTF-8 sequence at the end.
  size_t SafeSplit(std::string_view text) const override;

 private:
  ByteTokenizer(SpecialTokens special, int64_t vocab_size)
      : special_(std::move(special)), vocab_size_(vocab_size) {}

  const SpecialTokens special_;
  const int64_t vocab_size_;
};

}  // namespace mneme::engine
