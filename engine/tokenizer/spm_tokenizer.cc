#include "engine/tokenizer/spm_tokenizer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"

namespace mneme::engine {
namespace {

std::string Unescape(std::string_view piece) {
  std::string out;
  for (size_t i = 0; i < piece.size();) {
    if (piece.substr(i, kSpaceMark.size()) == kSpaceMark) {
      out.push_back(' ');
      i += kSpaceMark.size();
    } else {
      out.push_back(piece[i++]);
    }
  }
  return out;
}

// A run of the text that is one piece so far.
struct Symbol {
  uint32_t begin;  // bytes
  uint32_t size;   // 0: merged into its left neighbour
  uint32_t previous;
  uint32_t next;
};

struct Candidate {
  float score;
  uint32_t left;
  uint32_t size;  // of both sides together when it was pushed; differs if either has grown since
  bool operator<(const Candidate& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

// Ranks are kept in f32, which is exact up to here.
constexpr size_t kMaxMerges = size_t{1} << 24;

absl::string_view Key(std::string_view text) { return {text.data(), text.size()}; }

uint64_t PairKey(TokenId left, TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

int ByteOfPiece(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  int value = 0;
  for (char c : piece.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

bool HasInnerSpaceMark(std::string_view piece) {
  for (size_t at = piece.find(kSpaceMark); at != piece.npos;
       at = piece.find(kSpaceMark, at + kSpaceMark.size())) {
    if (at != 0 && (at < kSpaceMark.size() ||
                    piece.substr(at - kSpaceMark.size(), kSpaceMark.size()) != kSpaceMark)) {
      return true;
    }
  }
  return false;
}

size_t LastWordEnd(std::string_view text, const SpecialMatcher& matcher) {
  for (size_t i = text.size(); i-- > 1;) {
    if (text[i] != ' ' || text[i - 1] == ' ' || matcher.ends_spelling(text[i - 1])) continue;
    if (text.substr(0, i).ends_with(kSpaceMark)) continue;
    if (UnfinishedUtf8Bytes(text.substr(0, i)) != 0) continue;
    return i;
  }
  return 0;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> SpmTokenizer::Create(SpmVocabulary vocabulary,
                                                                      int64_t vocab_size) {
  std::unique_ptr<SpmTokenizer> tokenizer(new SpmTokenizer());
  MNEME_RETURN_IF_ERROR(tokenizer->Init(std::move(vocabulary), vocab_size));
  return tokenizer;
}

absl::Status SpmTokenizer::Init(SpmVocabulary vocabulary, int64_t vocab_size) {
  const auto num_pieces = static_cast<int64_t>(vocabulary.pieces.size());
  if (num_pieces > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", num_pieces,
                                                   " pieces, the model only ", vocab_size,
                                                   " embedding rows"));
  }
  if (!vocabulary.merges.empty()) vocabulary.scores.resize(num_pieces);
  if (vocabulary.types.size() != vocabulary.pieces.size() ||
      vocabulary.scores.size() != vocabulary.pieces.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", num_pieces, " pieces, ",
                                                   vocabulary.types.size(), " piece types and ",
                                                   vocabulary.scores.size(), " scores"));
  }
  vocab_size_ = vocab_size;
  pieces_ = std::move(vocabulary.pieces);
  types_ = std::move(vocabulary.types);
  scores_ = std::move(vocabulary.scores);
  special_ = std::move(vocabulary.special);
  add_space_prefix_ = vocabulary.add_space_prefix;
  prefix_first_only_ = vocabulary.prefix_first_only;
  prefix_before_space_ = vocabulary.prefix_before_space;
  PromoteFramingPieces(pieces_, types_);
  MNEME_RETURN_IF_ERROR(
      FinishSpecialTokens(pieces_, num_pieces, vocabulary.more_end_tokens, &special_));
  MNEME_RETURN_IF_ERROR(matcher_.Init(pieces_, types_));

  std::ranges::fill(byte_ids_, -1);
  bytes_.resize(pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (!IsValidUtf8(pieces_[i])) {
      return absl::InvalidArgumentError(absl::StrCat("piece ", i, " is not valid UTF-8"));
    }
    if (!std::isfinite(scores_[i])) {
      return absl::InvalidArgumentError(absl::StrCat("the score of piece ", i, " is not finite"));
    }
    if (!pieces_[i].empty()) piece_ids_.try_emplace(pieces_[i], id);
    switch (types_[i]) {
      case PieceType::kUnknown:
      case PieceType::kControl:
        break;
      case PieceType::kByte: {
        const int byte = ByteOfPiece(pieces_[i]);
        if (byte < 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("piece ", i, " is of type byte, but not spelled <0xHH>"));
        }
        if (byte_ids_[byte] < 0) byte_ids_[byte] = id;
        bytes_[i] = std::string(1, static_cast<char>(byte));
        break;
      }
      case PieceType::kUserDefined:
        bytes_[i] = Unescape(pieces_[i]);
        break;
      case PieceType::kNormal:
      case PieceType::kUnused:
        bytes_[i] = Unescape(pieces_[i]);
        if (pieces_[i].empty()) break;
        merge_ids_.try_emplace(pieces_[i], id);
        longest_piece_bytes_ = std::max(longest_piece_bytes_, pieces_[i].size());
        has_inner_space_ |= HasInnerSpaceMark(pieces_[i]);
        break;
    }
  }
  return InitMerges(vocabulary.merges);
}

absl::Status SpmTokenizer::InitMerges(std::span<const std::pair<std::string, std::string>> merges) {
  if (merges.size() > kMaxMerges) {
    return absl::InvalidArgumentError("the tokenizer has too many merges");
  }
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    for (const std::string& piece : {left, right, left + right}) {
      if (FindPiece(piece) >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", rank, " joins or makes a piece that the vocabulary does not have"));
    }
    const auto left_id = merge_ids_.find(left);
    const auto right_id = merge_ids_.find(right);
    // Special pieces are cut out of a text before, and none is made of ordinary text.
    if (left_id == merge_ids_.end() || right_id == merge_ids_.end() ||
        !merge_ids_.contains(left + right)) {
      continue;
    }
    merges_.try_emplace(PairKey(left_id->second, right_id->second), -static_cast<float>(rank));
  }
  return absl::OkStatus();
}

std::optional<float> SpmTokenizer::JoinScore(std::string_view left, std::string_view right) const {
  if (merges_.empty()) {
    // The two lie side by side in one text.
    const auto it = merge_ids_.find(absl::string_view(left.data(), left.size() + right.size()));
    if (it == merge_ids_.end()) return std::nullopt;
    return scores_[it->second];
  }
  const auto left_id = merge_ids_.find(Key(left));
  const auto right_id = merge_ids_.find(Key(right));
  if (left_id == merge_ids_.end() || right_id == merge_ids_.end()) return std::nullopt;
  const auto it = merges_.find(PairKey(left_id->second, right_id->second));
  if (it == merges_.end()) return std::nullopt;
  return it->second;
}

void SpmTokenizer::EncodeEscaped(std::string_view text, std::vector<TokenId>* out) const {
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (uint32_t begin = 0; begin < text.size();) {
    const auto size = static_cast<uint32_t>(DecodeUtf8(text.substr(begin)).size_bytes);
    const auto index = static_cast<uint32_t>(symbols.size());
    symbols.push_back({begin, size, index - 1, index + 1});
    begin += size;
  }
  const auto count = static_cast<uint32_t>(symbols.size());
  std::vector<Candidate> heap;
  auto push = [&](uint32_t left) {
    const uint32_t right = symbols[left].next;
    if (right >= count) return;
    const uint32_t size = symbols[left].size + symbols[right].size;
    if (size > longest_piece_bytes_) return;
    const auto score = JoinScore(text.substr(symbols[left].begin, symbols[left].size),
                                 text.substr(symbols[right].begin, symbols[right].size));
    if (!score.has_value()) return;
    heap.push_back({*score, left, size});
    std::push_heap(heap.begin(), heap.end());
  };
  for (uint32_t i = 0; i + 1 < count; ++i) push(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[top.left];
    if (left.size == 0 || left.next >= count || left.size + symbols[left.next].size != top.size) {
      continue;
    }
    Symbol& right = symbols[left.next];
    left.size = top.size;
    right.size = 0;
    left.next = right.next;
    if (left.next < count) symbols[left.next].previous = top.left;
    if (top.left > 0) push(left.previous);
    push(top.left);
  }
  for (uint32_t i = 0; i < count; i = symbols[i].next) {
    const std::string_view piece = text.substr(symbols[i].begin, symbols[i].size);
    if (const auto it = merge_ids_.find(Key(piece)); it != merge_ids_.end()) {
      out->push_back(it->second);
      continue;
    }
    const bool has_bytes = std::ranges::all_of(
        piece, [this](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; });
    if (has_bytes) {
      for (char c : piece) out->push_back(byte_ids_[static_cast<unsigned char>(c)]);
    } else if (special_.unk >= 0) {
      out->push_back(special_.unk);
    }
  }
}

absl::StatusOr<std::vector<TokenId>> SpmTokenizer::Encode(std::string_view text, bool parse_special,
                                                          bool at_start) const {
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("text is not valid UTF-8");
  if (text.size() > (size_t{1} << 30)) return absl::InvalidArgumentError("text is over 1 GiB");
  std::vector<TokenId> ids;
  bool prefix_due = at_start;
  for (const Fragment& fragment : matcher_.Cut(text, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
      prefix_due = !prefix_first_only_;
      continue;
    }
    std::string escaped;
    escaped.reserve(fragment.text.size() * 3 / 2);
    const bool has_prefix = fragment.text.starts_with(' ') || fragment.text.starts_with(kSpaceMark);
    if (prefix_due && add_space_prefix_ && (prefix_before_space_ || !has_prefix)) {
      escaped.append(kSpaceMark);
    }
    for (char c : fragment.text) {
      if (c == ' ') {
        escaped.append(kSpaceMark);
      } else {
        escaped.push_back(c);
      }
    }
    EncodeEscaped(escaped, &ids);
    prefix_due = false;
  }
  return ids;
}

std::string SpmTokenizer::TokenBytes(TokenId id, bool show_special) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return "";
  const bool special = types_[id] == PieceType::kControl || types_[id] == PieceType::kUnknown;
  return special && show_special ? pieces_[id] : bytes_[id];
}

TokenId SpmTokenizer::FindPiece(std::string_view piece) const {
  const auto it = piece_ids_.find(Key(piece));
  return it == piece_ids_.end() ? -1 : it->second;
}

size_t SpmTokenizer::SafeSplit(std::string_view text) const {
  if (has_inner_space_ || matcher_.has_inner_space()) return 0;
  return LastWordEnd(text, matcher_);
}

}  // namespace mneme::engine
