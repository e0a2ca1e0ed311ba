#include "engine/tokenizer/byte_tokenizer.h"

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/special_tokens.h"

namespace mneme::engine {

absl::StatusOr<std::unique_ptr<const Tokenizer>> ByteTokenizer::Create(SpecialTokens special,
                                                                       int64_t vocab_size) {
  if (vocab_size < 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("the byte tokenizer needs 256 embedding rows, the model has ", vocab_size));
  }
  MNEME_RETURN_IF_ERROR(FinishSpecialTokens({}, vocab_size, {}, &special));
  return std::unique_ptr<const Tokenizer>(new ByteTokenizer(std::move(special), vocab_size));
}

absl::StatusOr<std::vector<TokenId>> ByteTokenizer::Encode(std::string_view text,
                                                           bool parse_special,
                                                           bool at_start) const {
  std::vector<TokenId> ids(text.size());
  for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
  return ids;
}

std::string ByteTokenizer::TokenBytes(TokenId id, bool show_special) const {
  return id >= 0 && id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
}

TokenId ByteTokenizer::FindPiece(std::string_view piece) const {
  return piece.size() == 1 ? static_cast<unsigned char>(piece[0]) : -1;
}

size_t ByteTokenizer::SafeSplit(std::string_view text) const {
  return text.size() - UnfinishedUtf8Bytes(text);
}

}  // namespace mneme::engine
