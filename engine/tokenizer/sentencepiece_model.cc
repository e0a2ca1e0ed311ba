#include "engine/tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/spm_tokenizer.h"

namespace mneme::engine {
namespace {

// A cursor over protocol buffer wire format.
class WireReader {
 public:
  explicit WireReader(std::string_view data) : data_(data) {}

  bool done() const { return data_.empty(); }
  // What has not been read yet.
  const char* position() const { return data_.data(); }

  // Reads one field. `*number` and `*varint` (wire type 0) or `*bytes` (wire type 2) are set; other
  // types are passed over. False if the data ends early or is no wire format.
  bool Next(uint64_t* number, uint64_t* varint, std::string_view* bytes) {
    uint64_t tag = 0;
    if (!Varint(&tag) || tag >> 3 == 0) return false;
    *number = tag >> 3;
    *varint = 0;
    *bytes = {};
    switch (tag & 7) {
      case 0:
        return Varint(varint);
      case 1:
        return Skip(8);
      case 2: {
        uint64_t size = 0;
        if (!Varint(&size) || size > data_.size()) return false;
        *bytes = data_.substr(0, size);
        data_.remove_prefix(size);
        return true;
      }
      case 5:
        return Skip(4);
      default:
        return false;
    }
  }

 private:
  bool Skip(size_t n) {
    if (data_.size() < n) return false;
    data_.remove_prefix(n);
    return true;
  }

  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (data_.empty()) return false;
      const auto byte = static_cast<unsigned char>(data_.front());
      data_.remove_prefix(1);
      *value |= uint64_t{byte & 0x7Fu} << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }

  std::string_view data_;
};

// ModelProto: pieces = 1 { piece = 1, type = 3 }, trainer_spec = 2, normalizer_spec = 3,
// denormalizer_spec = 5.
constexpr uint64_t kPieces = 1;
constexpr uint64_t kPieceText = 1;
constexpr uint64_t kPieceType = 3;
constexpr uint64_t kTrainerSpec = 2;
constexpr uint64_t kNormalizerSpec = 3;
constexpr uint64_t kDenormalizerSpec = 5;
// normalizer_spec { add_dummy_prefix: false }. A message field that occurs again is merged into the
// first, so appending this to a serialised model turns the option off.
constexpr std::string_view kNoDummyPrefix("\x1A\x02\x18\x00", 4);

// The library puts user-defined pieces out for any text that spells them. Those that frame turns
// become control pieces in the serialised, well-formed `model`: no message may forge a turn.
void MakeFramingPiecesControl(std::span<const AddedToken> added, std::string* model) {
  WireReader reader(*model);
  uint64_t number, varint;
  std::string_view bytes;
  while (!reader.done() && reader.Next(&number, &varint, &bytes)) {
    if (number != kPieces) continue;
    std::string piece;
    size_t type_at = 0;
    WireReader inner(bytes);
    while (!inner.done() && inner.Next(&number, &varint, &bytes)) {
      if (number == kPieceText) piece = std::string(bytes);
      if (number == kPieceType && varint == static_cast<uint64_t>(PieceType::kUserDefined)) {
        type_at = inner.position() - 1 - model->data();  // its varint has one byte
      }
    }
    if (type_at == 0) continue;
    PieceType type = PieceType::kUserDefined;
    PromoteFramingPieces({&piece, 1}, {&type, 1});
    const bool is_special = std::ranges::any_of(
        added, [&](const AddedToken& token) { return token.special && token.content == piece; });
    if (is_special) type = PieceType::kControl;
    (*model)[type_at] = static_cast<char>(type);
  }
}

PieceType TypeOf(SentencePieceLibrary::Type type) {
  switch (type) {
    case SentencePieceLibrary::Type::kUnknown:
      return PieceType::kUnknown;
    case SentencePieceLibrary::Type::kControl:
      return PieceType::kControl;
    case SentencePieceLibrary::Type::kUnused:
      return PieceType::kUnused;
    case SentencePieceLibrary::Type::kByte:
      return PieceType::kByte;
    case SentencePieceLibrary::Type::kNormal:
      break;
  }
  return PieceType::kNormal;
}

std::string BytesOf(const std::string& piece, PieceType type) {
  if (type == PieceType::kUnknown || type == PieceType::kControl) return "";
  if (type == PieceType::kByte) {
    // The library has checked the spelling <0xHH>.
    return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  }
  std::string out;
  for (size_t i = 0; i < piece.size();) {
    if (std::string_view(piece).substr(i, kSpaceMark.size()) == kSpaceMark) {
      out.push_back(' ');
      i += kSpaceMark.size();
    } else {
      out.push_back(piece[i++]);
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<SentencePieceOptions> ReadSentencePieceOptions(std::string_view model) {
  const absl::Status malformed =
      absl::InvalidArgumentError("tokenizer.model is not a SentencePiece model");
  SentencePieceOptions options;
  WireReader reader(model);
  uint64_t number, varint;
  std::string_view bytes;
  while (!reader.done()) {
    if (!reader.Next(&number, &varint, &bytes)) return malformed;
    if (number != kTrainerSpec && number != kNormalizerSpec && number != kDenormalizerSpec) {
      continue;
    }
    const uint64_t message = number;
    WireReader inner(bytes);
    while (!inner.done()) {
      if (!inner.Next(&number, &varint, &bytes)) return malformed;
      if (message == kTrainerSpec) {
        if (number == 3) options.model_type = static_cast<int>(std::min<uint64_t>(varint, 99));
        if (number == 24) options.treat_whitespace_as_suffix = varint != 0;
      } else {
        if (number == 2) options.has_charsmap |= !bytes.empty();
        if (message == kDenormalizerSpec) continue;
        if (number == 3) options.add_dummy_prefix = varint != 0;
        if (number == 4) options.remove_extra_whitespaces = varint != 0;
        if (number == 5) options.escape_whitespaces = varint != 0;
      }
    }
  }
  return options;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> SentencePieceModel::Create(
    std::string model, const HfSpecials& specials, std::span<const AddedToken> added,
    int64_t vocab_size) {
  std::unique_ptr<SentencePieceModel> tokenizer(new SentencePieceModel());
  MNEME_RETURN_IF_ERROR(tokenizer->Init(std::move(model), specials, added, vocab_size));
  return tokenizer;
}

absl::Status SentencePieceModel::Init(std::string model, const HfSpecials& specials,
                                      std::span<const AddedToken> added, int64_t vocab_size) {
  if (model.size() > kMaxModelBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.model has ", model.size(), " bytes; at most ", kMaxModelBytes, " are accepted"));
  }
  MNEME_ASSIGN_OR_RETURN(options_, ReadSentencePieceOptions(model));
  if (options_.has_charsmap) {
    return absl::UnimplementedError(
        "tokenizer.model has a precompiled_charsmap (Unicode normalisation), which is not "
        "supported");
  }
  if (options_.model_type != 1 && options_.model_type != 2) {
    return absl::UnimplementedError(absl::StrCat("tokenizer.model is of model_type ",
                                                 options_.model_type,
                                                 "; supported are 1 (unigram) and 2 (bpe)"));
  }
  MakeFramingPiecesControl(added, &model);
  std::string error;
  at_start_ = SentencePieceLibrary::Load(model, &error);
  if (at_start_ != nullptr) {
    model.append(kNoDummyPrefix);
    inside_ = SentencePieceLibrary::Load(model, &error);
  }
  if (inside_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.model: ", error));
  }
  const int num_pieces = at_start_->size();
  if (num_pieces > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.model has ", num_pieces,
                                                   " pieces, the model only ", vocab_size,
                                                   " embedding rows"));
  }
  vocab_size_ = vocab_size;
  bool inner_space = false;
  for (int i = 0; i < num_pieces; ++i) {
    pieces_.push_back(at_start_->piece(i));
    types_.push_back(TypeOf(at_start_->type(i)));
    if (!IsValidUtf8(pieces_.back())) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.model: piece ", i, " is not valid UTF-8"));
    }
    bytes_.push_back(BytesOf(pieces_.back(), types_.back()));
    piece_ids_.try_emplace(pieces_.back(), i);
    inner_space |= HasInnerSpaceMark(pieces_.back());
  }
  MNEME_RETURN_IF_ERROR(AddTokens(added));
  PromoteFramingPieces(pieces_, types_);
  special_ = ResolveSpecials(specials, [this](std::string_view piece) { return FindPiece(piece); });
  special_.add_bos = specials.add_bos.value_or(true);
  if (special_.bos < 0) special_.bos = at_start_->bos_id();
  if (special_.eos < 0) special_.eos = at_start_->eos_id();
  if (special_.unk < 0) special_.unk = at_start_->unk_id();
  if (special_.pad < 0) special_.pad = at_start_->pad_id();
  if (special_.bos < 0) special_.add_bos = false;
  MNEME_RETURN_IF_ERROR(FinishSpecialTokens(pieces_, static_cast<int64_t>(pieces_.size()),
                                            specials.more_end_tokens, &special_));
  MNEME_RETURN_IF_ERROR(matcher_.Init(pieces_, types_));
  can_split_ = options_.model_type == 2 && !options_.remove_extra_whitespaces &&
               options_.escape_whitespaces && !options_.treat_whitespace_as_suffix &&
               !inner_space && !matcher_.has_inner_space();
  return absl::OkStatus();
}

absl::Status SentencePieceModel::AddTokens(std::span<const AddedToken> added) {
  for (const AddedToken& token : added) {
    if (token.id >= vocab_size_) continue;
    const auto id = static_cast<size_t>(token.id);
    if (id >= pieces_.size()) {
      pieces_.resize(id + 1);
      types_.resize(id + 1, PieceType::kUnused);
      bytes_.resize(id + 1);
    }
    // A piece that the library may put out keeps its meaning.
    const bool is_text = types_[id] == PieceType::kNormal || types_[id] == PieceType::kByte;
    if (is_text && pieces_[id] != token.content) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", id, " is \"", token.content,
                                                     "\", but tokenizer.model has the piece \"",
                                                     pieces_[id], "\" there"));
    }
    if (!IsValidUtf8(token.content)) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", id, " is not valid UTF-8"));
    }
    pieces_[id] = token.content;
    piece_ids_[token.content] = token.id;
    if (types_[id] == PieceType::kUnknown || types_[id] == PieceType::kControl) continue;
    types_[id] = token.special ? PieceType::kControl : PieceType::kUserDefined;
    bytes_[id] = token.special ? "" : token.content;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> SentencePieceModel::Encode(std::string_view text,
                                                                bool parse_special,
                                                                bool at_start) const {
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("text is not valid UTF-8");
  std::vector<TokenId> ids;
  std::vector<int> part;
  std::string error;
  bool prefix_due = at_start;
  for (const Fragment& fragment : matcher_.Cut(text, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
      prefix_due = true;
      continue;
    }
    const SentencePieceLibrary& library = prefix_due ? *at_start_ : *inside_;
    if (!library.Encode(fragment.text, &part, &error)) {
      return absl::InternalError(absl::StrCat("sentencepiece: ", error));
    }
    ids.insert(ids.end(), part.begin(), part.end());
    prefix_due = false;
  }
  return ids;
}

std::string SentencePieceModel::TokenBytes(TokenId id, bool show_special) const {
  if (id < 0 || static_cast<size_t>(id) >= pieces_.size()) return "";
  const bool special = types_[id] == PieceType::kControl || types_[id] == PieceType::kUnknown;
  return special && show_special ? pieces_[id] : bytes_[id];
}

TokenId SentencePieceModel::FindPiece(std::string_view piece) const {
  const auto it = piece_ids_.find(absl::string_view(piece.data(), piece.size()));
  return it == piece_ids_.end() ? -1 : it->second;
}

size_t SentencePieceModel::SafeSplit(std::string_view text) const {
  return can_split_ ? LastWordEnd(text, matcher_) : 0;
}

}  // namespace mneme::engine
