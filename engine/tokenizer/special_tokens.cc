#include "engine/tokenizer/special_tokens.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

constexpr std::array<std::string_view, 7> kEndOfGeneration = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"};

constexpr std::array<std::string_view, 6> kFraming = {"<|im_start|>",      "<|start_header_id|>",
                                                      "<|end_header_id|>", "<|begin_of_text|>",
                                                      "<|end_of_text|>",   "<start_of_turn>"};

absl::Status CheckId(TokenId id, std::string_view name, int64_t num_pieces) {
  if (id >= -1 && id < num_pieces) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the tokenizer's ", std::string(name),
                                                 " token id is ", id, ", but the vocabulary has ",
                                                 num_pieces, " pieces"));
}

bool IsAsciiSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

std::span<const std::string_view> EndOfGenerationSpellings() { return kEndOfGeneration; }

void PromoteFramingPieces(std::span<const std::string> pieces, std::span<PieceType> types) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (types[i] != PieceType::kUserDefined) continue;
    if (std::ranges::find(kEndOfGeneration, pieces[i]) != kEndOfGeneration.end() ||
        std::ranges::find(kFraming, pieces[i]) != kFraming.end()) {
      types[i] = PieceType::kControl;
    }
  }
}

absl::Status FinishSpecialTokens(std::span<const std::string> pieces, int64_t num_pieces,
                                 std::span<const TokenId> extra, SpecialTokens* special) {
  MNEME_RETURN_IF_ERROR(CheckId(special->bos, "bos", num_pieces));
  MNEME_RETURN_IF_ERROR(CheckId(special->eos, "eos", num_pieces));
  MNEME_RETURN_IF_ERROR(CheckId(special->unk, "unknown", num_pieces));
  MNEME_RETURN_IF_ERROR(CheckId(special->pad, "padding", num_pieces));
  std::vector<TokenId>& end = special->end_of_generation;
  end.clear();
  if (special->eos >= 0) end.push_back(special->eos);
  for (TokenId id : extra) {
    MNEME_RETURN_IF_ERROR(CheckId(id, "end-of-turn", num_pieces));
    if (id >= 0) end.push_back(id);
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (std::ranges::find(kEndOfGeneration, pieces[i]) != kEndOfGeneration.end()) {
      end.push_back(static_cast<TokenId>(i));
    }
  }
  std::ranges::sort(end);
  end.erase(std::unique(end.begin(), end.end()), end.end());
  return absl::OkStatus();
}

absl::Status SpecialMatcher::Init(std::span<const std::string> pieces,
                                  std::span<const PieceType> types) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool control = types[i] == PieceType::kControl || types[i] == PieceType::kUnknown;
    if ((!control && types[i] != PieceType::kUserDefined) || pieces[i].empty()) continue;
    if (pieces[i].size() > kMaxSpellingBytes) {
      return absl::InvalidArgumentError(absl::StrCat("special piece ", i, " is ", pieces[i].size(),
                                                     " bytes long; at most ", kMaxSpellingBytes,
                                                     " are accepted"));
    }
    Add(pieces[i], static_cast<TokenId>(i), control);
  }
  return absl::OkStatus();
}

void SpecialMatcher::Add(std::string_view spelling, TokenId id, bool control) {
  uint32_t node = 0;
  for (char c : spelling) {
    const uint64_t edge = uint64_t{node} * 256 + static_cast<unsigned char>(c);
    auto [it, inserted] = edges_.try_emplace(edge, static_cast<uint32_t>(nodes_.size()));
    if (inserted) nodes_.emplace_back();
    node = it->second;
  }
  TokenId& slot = control ? nodes_[node].control : nodes_[node].user_defined;
  if (slot < 0) slot = id;  // the first of two equal spellings, as in the piece table
  (control ? first_byte_control_ : first_byte_user_)[static_cast<unsigned char>(spelling.front())] =
      true;
  last_byte_[static_cast<unsigned char>(spelling.back())] = true;
  for (size_t i = 1; i < spelling.size(); ++i) {
    has_inner_space_ |=
        IsAsciiSpace(spelling[i]) && !(spelling[i] == ' ' && spelling[i - 1] == ' ');
  }
}

std::vector<Fragment> SpecialMatcher::Cut(std::string_view text, bool parse_special) const {
  std::vector<Fragment> fragments;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (!first_byte_user_[first] && !(parse_special && first_byte_control_[first])) {
      ++i;
      continue;
    }
    TokenId id = -1;
    size_t length = 0;
    uint32_t node = 0;
    for (size_t j = i; j < text.size(); ++j) {
      const auto it = edges_.find(uint64_t{node} * 256 + static_cast<unsigned char>(text[j]));
      if (it == edges_.end()) break;
      node = it->second;
      TokenId here = nodes_[node].user_defined;
      if (parse_special && nodes_[node].control >= 0) here = nodes_[node].control;
      if (here >= 0) {
        id = here;
        length = j + 1 - i;
      }
    }
    if (id < 0) {
      ++i;
      continue;
    }
    if (i > begin) fragments.push_back({text.substr(begin, i - begin), -1});
    fragments.push_back({text.substr(i, length), id});
    i += length;
    begin = i;
  }
  if (begin < text.size()) fragments.push_back({text.substr(begin), -1});
  return fragments;
}

}  // namespace mneme::engine
