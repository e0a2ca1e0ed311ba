// The tokenizer of RWKV's "World" models: at each place the longest vocabulary entry that the bytes
// start with. That is the definition, not an approximation of one; there are no merges, no
// normalisation and no words. Id 0 ends a document, has no text and is never produced from
// ordinary text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/byte_trie.h"
#include "engine/tokenizer/special_tokens.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

// What a vocabulary file or GGUF metadata says. Index = id; both lists have the same length.
struct WorldVocabulary {
  // kNormal: raw bytes. kControl, kUserDefined: a spelling. kUnused: nothing; the text is ignored.
  std::vector<std::string> pieces;
  std::vector<PieceType> types;
  SpecialTokens special;
  std::vector<TokenId> more_end_tokens;
};

// How id 0 is spelled where the vocabulary does not say.
inline constexpr std::string_view kWorldEndOfDocument = "<s>";

class WorldTokenizer final : public Tokenizer {
 public:
  static constexpr size_t kMaxPieceBytes = 256;    // the longest of the real vocabulary has 128
  static constexpr size_t kMaxSpecialPieces = 64;  // the real vocabulary has one

  // INVALID_ARGUMENT names the piece: empty, too long, twice, of a type that the vocabulary cannot
  // have; or a byte that no piece stands for alone (then not every text could be encoded).
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(WorldVocabulary vocabulary,
                                                                 int64_t vocab_size);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                              bool at_start) const override;
  std::string TokenBytes(TokenId id, bool show_special) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  const SpecialTokens& special() const override { return vocabulary_.special; }
  TokenId FindPiece(std::string_view piece) const override;
  std::string_view kind() const override { return "world"; }
  // May cut inside a word: the vocabulary knows none.
  size_t SafeSplit(std::string_view text) const override;

 private:
  WorldTokenizer(WorldVocabulary vocabulary, int64_t vocab_size)
      : vocabulary_(std::move(vocabulary)), vocab_size_(vocab_size) {}

  // Ends of the tokens of `text`, ascending, as far as no continuation of the text can move them.
  std::vector<size_t> SettledEnds(std::string_view text, bool parse_special) const;

  WorldVocabulary vocabulary_;
  const int64_t vocab_size_;
  ByteTrie trie_;
  SpecialMatcher matcher_;
  std::vector<std::string> spellings_;  // of special pieces
};

// The lines of rwkv_vocab_v20230424.txt: `id`, a space, a Python literal of text or bytes, a space,
// the number of bytes. Ids are 1 to vocab_size - 1, each at most once; lines end with LF or CR LF.
// Escapes are those that Python's repr() writes. INVALID_ARGUMENT names the line.
absl::StatusOr<WorldVocabulary> ReadWorldVocabulary(std::string_view text, int64_t vocab_size);

// A piece as llama.cpp's converter stores it: \t \n \r, \xHH for a byte, any other escaped
// character for itself. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<std::string> UnescapeWorldPiece(std::string_view escaped);

}  // namespace mneme::engine
