#include "engine/tokenizer/bpe_tokenizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include <algorithm>
#include <array>
#include <limits>
#include <queue>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"

namespace mneme::engine {
namespace {

constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();
// Below this many bytes, scanning all pairs for the lowest rank beats a heap.
constexpr size_t kShortPart = 48;

// The printable code point that stands for each byte: itself where printable in Latin-1, otherwise
// the next one from U+0100 on.
std::array<char32_t, 256> MakeByteAlphabet() {
  std::array<char32_t, 256> alphabet;
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? static_cast<char32_t>(byte) : next++;
  }
  return alphabet;
}

// The inverse, as a table over U+0000..U+0143; -1: stands for no byte.
std::array<int16_t, 0x144> MakeInverse(const std::array<char32_t, 256>& alphabet) {
  std::array<int16_t, 0x144> inverse;
  inverse.fill(-1);
  for (int byte = 0; byte < 256; ++byte) inverse[alphabet[byte]] = static_cast<int16_t>(byte);
  return inverse;
}

// The bytes that valid UTF-8 `piece` stands for; a code point outside the alphabet stands for
// itself. `*exact` is whether there was none.
std::string PieceToBytes(std::string_view piece, const std::array<int16_t, 0x144>& inverse,
                         bool* exact) {
  std::string bytes;
  *exact = true;
  while (!piece.empty()) {
    const auto [kind, size, c] = DecodeUtf8(piece);
    if (c < inverse.size() && inverse[c] >= 0) {
      bytes.push_back(static_cast<char>(inverse[c]));
    } else {
      bytes.append(piece.substr(0, size));
      *exact = false;
    }
    piece.remove_prefix(size);
  }
  return bytes;
}

absl::StatusOr<std::string> NormalizeNfc(std::string_view text) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(error);
  std::string out;
  if (U_SUCCESS(error)) {
    icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
    nfc->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink,
                       nullptr, error);
  }
  if (U_FAILURE(error)) {
    return absl::InternalError(absl::StrCat("Unicode normalisation: ", u_errorName(error)));
  }
  return out;
}

bool IsAscii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

uint64_t PairKey(TokenId left, TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

struct BpeTokenizer::Scratch {
  struct Candidate {
    int32_t rank;
    uint32_t left;  // index of the left symbol
    TokenId left_id;
    TokenId right_id;
    // Of the heap's order: the lowest rank on top, then the leftmost.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  std::vector<TokenId> ids;  // the part's symbols; the result stays at the front, `count` of them
  size_t count = 0;
  std::vector<int32_t> ranks;
  std::vector<uint32_t> previous, next;
  std::vector<Candidate> heap;
};

absl::StatusOr<std::unique_ptr<const Tokenizer>> BpeTokenizer::Create(BpeVocabulary vocabulary,
                                                                      int64_t vocab_size) {
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer());
  MNEME_RETURN_IF_ERROR(tokenizer->Init(std::move(vocabulary), vocab_size));
  return tokenizer;
}

absl::Status BpeTokenizer::Init(BpeVocabulary vocabulary, int64_t vocab_size) {
  const auto num_pieces = static_cast<int64_t>(vocabulary.pieces.size());
  if (num_pieces > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", num_pieces,
                                                   " pieces, the model only ", vocab_size,
                                                   " embedding rows"));
  }
  if (vocabulary.types.size() != vocabulary.pieces.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the tokenizer has ", num_pieces, " pieces and ",
                                                   vocabulary.types.size(), " piece types"));
  }
  vocab_size_ = vocab_size;
  pieces_ = std::move(vocabulary.pieces);
  types_ = std::move(vocabulary.types);
  special_ = std::move(vocabulary.special);
  normalize_nfc_ = vocabulary.normalize_nfc;
  PromoteFramingPieces(pieces_, types_);
  MNEME_RETURN_IF_ERROR(
      FinishSpecialTokens(pieces_, num_pieces, vocabulary.more_end_tokens, &special_));
  MNEME_RETURN_IF_ERROR(matcher_.Init(pieces_, types_));
  MNEME_ASSIGN_OR_RETURN(pre_tokenizer_, PreTokenizer::Create(vocabulary.pre_tokenizer));

  const auto alphabet = MakeByteAlphabet();
  const auto inverse = MakeInverse(alphabet);
  bytes_.resize(pieces_.size());
  piece_ids_.reserve(pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (!IsValidUtf8(pieces_[i])) {
      return absl::InvalidArgumentError(absl::StrCat("piece ", i, " is not valid UTF-8"));
    }
    if (!pieces_[i].empty()) piece_ids_.try_emplace(pieces_[i], id);
    if (types_[i] == PieceType::kUserDefined) {
      bytes_[i] = pieces_[i];
    } else if (types_[i] == PieceType::kNormal || types_[i] == PieceType::kByte) {
      bool exact = false;
      bytes_[i] = PieceToBytes(pieces_[i], inverse, &exact);
      if (vocabulary.ignore_merges && exact && !bytes_[i].empty()) {
        whole_pieces_.try_emplace(bytes_[i], id);
      }
    }
  }
  auto is_special = [this](TokenId id) {
    return types_[id] == PieceType::kControl || types_[id] == PieceType::kUnknown;
  };
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelling;
    AppendUtf8(alphabet[byte], &spelling);
    const TokenId id = FindPiece(spelling);
    byte_ids_[byte] = id >= 0 && is_special(id) ? -1 : id;
  }

  if (vocabulary.merges.size() >= static_cast<size_t>(kNoRank)) {
    return absl::InvalidArgumentError("the tokenizer has too many merges");
  }
  merges_.reserve(vocabulary.merges.size());
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const auto& [left, right] = vocabulary.merges[rank];
    const TokenId left_id = FindPiece(left);
    const TokenId right_id = FindPiece(right);
    const TokenId result = FindPiece(left + right);
    if (left_id < 0 || right_id < 0 || result < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", rank, left_id < 0 || right_id < 0 ? " joins" : " makes",
                       " a piece that the vocabulary does not have"));
    }
    if (is_special(result)) {
      return absl::InvalidArgumentError(
          absl::StrCat("merge ", rank, " makes control token ", result));
    }
    merges_.try_emplace(PairKey(left_id, right_id), Merge{static_cast<int32_t>(rank), result});
  }
  return absl::OkStatus();
}

const BpeTokenizer::Merge* BpeTokenizer::FindMerge(TokenId left, TokenId right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BpeTokenizer::MergeShort(Scratch* scratch) const {
  std::vector<TokenId>& ids = scratch->ids;
  std::vector<int32_t>& ranks = scratch->ranks;  // of the pair (i, i + 1)
  size_t count = scratch->count;
  auto rank_of = [&](size_t i) {
    const Merge* merge = FindMerge(ids[i], ids[i + 1]);
    return merge == nullptr ? kNoRank : merge->rank;
  };
  ranks.resize(count);
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = rank_of(i);
  while (count > 1) {
    const size_t best = std::min_element(ranks.begin(), ranks.begin() + count - 1) - ranks.begin();
    if (ranks[best] == kNoRank) break;
    ids[best] = FindMerge(ids[best], ids[best + 1])->result;
    std::copy(ids.begin() + best + 2, ids.begin() + count, ids.begin() + best + 1);
    std::copy(ranks.begin() + best + 1, ranks.begin() + count - 1, ranks.begin() + best);
    --count;
    if (best > 0) ranks[best - 1] = rank_of(best - 1);
    if (best + 1 < count) ranks[best] = rank_of(best);
  }
  scratch->count = count;
}

void BpeTokenizer::MergeLong(Scratch* scratch) const {
  constexpr TokenId kGone = -1;
  std::vector<TokenId>& ids = scratch->ids;
  const auto count = static_cast<uint32_t>(scratch->count);
  auto& previous = scratch->previous;
  auto& next = scratch->next;
  auto& heap = scratch->heap;
  previous.resize(count);
  next.resize(count);
  heap.clear();
  auto push = [&](uint32_t left) {
    if (next[left] >= count) return;
    const TokenId left_id = ids[left];
    const TokenId right_id = ids[next[left]];
    if (const Merge* merge = FindMerge(left_id, right_id); merge != nullptr) {
      heap.push_back({merge->rank, left, left_id, right_id});
      std::push_heap(heap.begin(), heap.end());
    }
  };
  for (uint32_t i = 0; i < count; ++i) {
    previous[i] = i - 1;  // wraps for the first, which is never followed to the left
    next[i] = i + 1;
  }
  for (uint32_t i = 0; i + 1 < count; ++i) push(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    const uint32_t left = top.left;
    // A candidate is out of date when either side has been merged since. Ids tell: a side that
    // changed has another id, and (left id, right id) alone decide the rank.
    if (ids[left] != top.left_id || next[left] >= count || ids[next[left]] != top.right_id) {
      continue;
    }
    const uint32_t right = next[left];
    ids[left] = FindMerge(top.left_id, top.right_id)->result;
    ids[right] = kGone;
    next[left] = next[right];
    if (next[left] < count) previous[next[left]] = left;
    if (left > 0) push(previous[left]);
    push(left);
  }
  size_t out = 0;
  for (uint32_t i = 0; i < count; i = next[i]) ids[out++] = ids[i];
  scratch->count = out;
}

void BpeTokenizer::EncodePart(std::string_view part, Scratch* scratch,
                              std::vector<TokenId>* out) const {
  if (!whole_pieces_.empty()) {
    if (const auto it = whole_pieces_.find(absl::string_view(part.data(), part.size()));
        it != whole_pieces_.end()) {
      out->push_back(it->second);
      return;
    }
  }
  scratch->ids.clear();
  for (char c : part) {
    const TokenId id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) scratch->ids.push_back(id);
  }
  scratch->count = scratch->ids.size();
  if (scratch->count <= kShortPart) {
    MergeShort(scratch);
  } else {
    MergeLong(scratch);
  }
  out->insert(out->end(), scratch->ids.begin(), scratch->ids.begin() + scratch->count);
}

absl::StatusOr<std::vector<TokenId>> BpeTokenizer::Encode(std::string_view text, bool parse_special,
                                                          bool at_start) const {
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("text is not valid UTF-8");
  if (text.size() > size_t{std::numeric_limits<int32_t>::max()}) {
    return absl::InvalidArgumentError("text is longer than 2 GiB");
  }
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + 1);
  Scratch scratch;
  std::string normalized;
  for (const Fragment& fragment : matcher_.Cut(text, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
      continue;
    }
    std::string_view part = fragment.text;
    if (normalize_nfc_ && !IsAscii(part)) {
      MNEME_ASSIGN_OR_RETURN(normalized, NormalizeNfc(part));
      part = normalized;
    }
    MNEME_RETURN_IF_ERROR(pre_tokenizer_->Split(
        part, [&](std::string_view piece) { EncodePart(piece, &scratch, &ids); }));
  }
  return ids;
}

std::string BpeTokenizer::TokenBytes(TokenId id, bool show_special) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return "";
  const bool special = types_[id] == PieceType::kControl || types_[id] == PieceType::kUnknown;
  return special && show_special ? pieces_[id] : bytes_[id];
}

TokenId BpeTokenizer::FindPiece(std::string_view piece) const {
  const auto it = piece_ids_.find(absl::string_view(piece.data(), piece.size()));
  return it == piece_ids_.end() ? -1 : it->second;
}

size_t BpeTokenizer::SafeSplit(std::string_view text) const {
  if (matcher_.has_inner_space()) return 0;
  for (size_t i = text.size(); i-- > 1;) {
    if (pre_tokenizer_->CutIsSafe(text, i)) return i;
  }
  return 0;
}

}  // namespace mneme::engine
