#include "engine/tokenizer/world_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"

namespace mneme::engine {
namespace {

absl::Status BadPiece(size_t id, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("piece ", id, " ", std::string(what)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> WorldTokenizer::Create(WorldVocabulary vocabulary,
                                                                        int64_t vocab_size) {
  const size_t size = vocabulary.pieces.size();
  if (size > static_cast<uint64_t>(vocab_size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the vocabulary has ", size, " pieces, the model ", vocab_size, " embedding rows"));
  }
  std::unique_ptr<WorldTokenizer> tokenizer(new WorldTokenizer(std::move(vocabulary), vocab_size));
  WorldVocabulary& v = tokenizer->vocabulary_;
  std::vector<std::pair<std::string_view, TokenId>> entries;
  entries.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    std::string& piece = v.pieces[i];
    switch (v.types[i]) {
      case PieceType::kUnused:
        piece.clear();
        continue;
      case PieceType::kNormal:
        if (piece.empty()) return BadPiece(i, "is empty");
        if (piece.size() > kMaxPieceBytes) {
          return BadPiece(i, absl::StrCat("has ", piece.size(), " bytes; at most ", kMaxPieceBytes,
                                          " are accepted"));
        }
        entries.emplace_back(piece, static_cast<TokenId>(i));
        continue;
      case PieceType::kControl:
      case PieceType::kUserDefined:
        if (!IsValidUtf8(piece)) return BadPiece(i, "is not valid UTF-8");
        if (!piece.empty()) tokenizer->spellings_.push_back(piece);
        if (tokenizer->spellings_.size() > kMaxSpecialPieces) {
          return BadPiece(i, absl::StrCat("is special; at most ", kMaxSpecialPieces,
                                          " such pieces are accepted"));
        }
        continue;
      default:
        return BadPiece(i, absl::StrCat("has type ", static_cast<int>(v.types[i]),
                                        ", which a World vocabulary does not have"));
    }
  }
  std::ranges::sort(entries);
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].first == entries[i - 1].first) {
      return BadPiece(entries[i].second,
                      absl::StrCat("has the bytes of piece ", entries[i - 1].second));
    }
  }
  tokenizer->trie_.Build(entries);
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (tokenizer->trie_.Find({&c, 1}) < 0) {
      return absl::InvalidArgumentError(absl::StrCat("no piece is the single byte 0x",
                                                     absl::Hex(byte, absl::kZeroPad2),
                                                     ", so that some texts could not be encoded"));
    }
  }
  MNEME_RETURN_IF_ERROR(tokenizer->matcher_.Init(v.pieces, v.types));
  MNEME_RETURN_IF_ERROR(
      FinishSpecialTokens({}, static_cast<int64_t>(size), v.more_end_tokens, &v.special));
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::StatusOr<std::vector<TokenId>> WorldTokenizer::Encode(std::string_view text,
                                                            bool parse_special,
                                                            bool at_start) const {
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("the text is not valid UTF-8");
  std::vector<TokenId> ids;
  for (const Fragment& fragment : matcher_.Cut(text, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
      continue;
    }
    for (std::string_view rest = fragment.text; !rest.empty();) {
      const ByteTrie::Match match = trie_.Longest(rest);
      ids.push_back(match.id);
      rest.remove_prefix(match.length);
    }
  }
  return ids;
}

std::string WorldTokenizer::TokenBytes(TokenId id, bool show_special) const {
  if (id < 0 || static_cast<size_t>(id) >= vocabulary_.pieces.size()) return {};
  if (vocabulary_.types[id] == PieceType::kControl && !show_special) return {};
  return vocabulary_.pieces[id];
}

TokenId WorldTokenizer::FindPiece(std::string_view piece) const {
  for (size_t i = 0; i < vocabulary_.pieces.size() && !spellings_.empty(); ++i) {
    if (vocabulary_.types[i] != PieceType::kNormal && vocabulary_.types[i] != PieceType::kUnused &&
        vocabulary_.pieces[i] == piece) {
      return static_cast<TokenId>(i);
    }
  }
  return piece.empty() ? -1 : trie_.Find(piece);
}

std::vector<size_t> WorldTokenizer::SettledEnds(std::string_view text, bool parse_special) const {
  // A special piece may begin in the last bytes: nothing behind its first byte is settled.
  size_t limit = text.size();
  for (const std::string& spelling : spellings_) {
    for (size_t n = std::min(spelling.size() - 1, text.size()); n > 0; --n) {
      if (text.ends_with(std::string_view(spelling).substr(0, n))) {
        limit = std::min(limit, text.size() - n);
        break;
      }
    }
  }
  std::vector<size_t> ends;
  size_t at = 0;
  const std::vector<Fragment> fragments = matcher_.Cut(text, parse_special);
  for (size_t i = 0; i < fragments.size(); ++i) {
    std::string_view rest = fragments[i].text;
    if (fragments[i].id >= 0) {
      at += rest.size();
      if (at > limit) return ends;
      ends.push_back(at);
      continue;
    }
    while (!rest.empty()) {
      const ByteTrie::Match match = trie_.Longest(rest);
      // The last fragment may go on; the others end at a special piece.
      if (!match.final && i + 1 == fragments.size()) return ends;
      at += match.length;
      if (at > limit) return ends;
      rest.remove_prefix(match.length);
      ends.push_back(at);
    }
  }
  return ends;
}

size_t WorldTokenizer::SafeSplit(std::string_view text) const {
  // The cut must suit both ways of reading special pieces.
  const std::vector<size_t> plain = SettledEnds(text, false);
  const std::vector<size_t> special = SettledEnds(text, true);
  auto a = plain.rbegin();
  auto b = special.rbegin();
  while (a != plain.rend() && b != special.rend()) {
    if (*a > *b) {
      ++a;
    } else if (*b > *a) {
      ++b;
    } else {
      // Tokens may be parts of a character.
      if (*a == text.size() ? UnfinishedUtf8Bytes(text) == 0 : !IsUtf8Continuation(text[*a]))
        return *a;
      ++a;
      ++b;
    }
  }
  return 0;
}

}  // namespace mneme::engine
