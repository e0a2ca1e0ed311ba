#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"
#include "engine/tokenizer/json_members.h"

namespace mneme::engine {
namespace {

using Json = nlohmann::json;

absl::Status Bad(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", std::string(what)));
}
absl::Status Unsupported(std::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.json: ", std::string(what), " is not supported"));
}

bool IsEmptyOrNull(const Json& value) {
  return value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty());
}

struct KnownPattern {
  std::string_view regex;
  PreTokenizerKind kind;
};

constexpr auto kKnownPatterns = std::to_array<KnownPattern>({
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+)"
     R"([\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     PreTokenizerKind::kLlama3},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+)"
     R"([\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     PreTokenizerKind::kQwen2},
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     PreTokenizerKind::kGpt2},
});

absl::StatusOr<PreTokenizerKind> ReadPreTokenizer(const Json& pre) {
  if (pre.is_null()) return Unsupported("a missing pre_tokenizer");
  std::vector<Json> steps;
  if (StringMember(pre, "type") == "Sequence") {
    const Json& list = Member(pre, "pretokenizers");
    if (!list.is_array()) return Bad("pre_tokenizer.pretokenizers is not an array");
    steps.assign(list.begin(), list.end());
  } else {
    steps.push_back(pre);
  }
  if (steps.empty() || StringMember(steps.back(), "type") != "ByteLevel") {
    return Unsupported("a pre_tokenizer that does not end with ByteLevel");
  }
  const Json& byte_level = steps.back();
  // ByteLevel's own defaults are true for both.
  if (BoolMember(byte_level, "add_prefix_space", true)) {
    return Unsupported("pre_tokenizer ByteLevel with add_prefix_space");
  }
  const bool use_regex = BoolMember(byte_level, "use_regex", true);
  if (steps.size() == 1 && use_regex) return PreTokenizerKind::kGpt2;
  if (steps.size() == 2) {
    const Json& first = steps.front();
    const std::string type = StringMember(first, "type");
    if (type == "Digits" && use_regex && BoolMember(first, "individual_digits", false)) {
      return PreTokenizerKind::kSmollm;
    }
    if (type == "Split" && !use_regex && StringMember(first, "behavior") == "Isolated" &&
        !BoolMember(first, "invert", false)) {
      const std::string regex = StringMember(Member(first, "pattern"), "Regex");
      for (const KnownPattern& known : kKnownPatterns) {
        if (known.regex == regex) return known.kind;
      }
      return Unsupported("the pre_tokenizer's Split pattern");
    }
  }
  return Unsupported("this sequence of pre_tokenizer steps");
}

absl::StatusOr<bool> ReadNormalizesNfc(const Json& normalizer) {
  if (normalizer.is_null()) return false;
  const std::string type = StringMember(normalizer, "type");
  if (type == "NFC") return true;
  if (type == "Sequence") {
    const Json& list = Member(normalizer, "normalizers");
    if (!list.is_array()) return Bad("normalizer.normalizers is not an array");
    bool nfc = false;
    for (const Json& step : list) {
      if (StringMember(step, "type") != "NFC") {
        return Unsupported(absl::StrCat("normalizer \"", StringMember(step, "type"), "\""));
      }
      nfc = true;
    }
    return nfc;
  }
  return Unsupported(absl::StrCat("normalizer \"", type, "\""));
}

template <typename Vocabulary>
absl::Status PutPiece(const Json& id_value, const std::string& piece, PieceType type,
                      int64_t vocab_size, Vocabulary* vocabulary) {
  if (!id_value.is_number_unsigned() ||
      id_value.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
    return Bad(absl::StrCat("a piece has id ", id_value.dump(), "; ids are 0 to ", vocab_size - 1,
                            " (the model's embedding rows)"));
  }
  const auto id = static_cast<size_t>(id_value.get<uint64_t>());
  if (id >= vocabulary->pieces.size()) {
    vocabulary->pieces.resize(id + 1);
    vocabulary->types.resize(id + 1, PieceType::kUnused);
  }
  std::string& slot = vocabulary->pieces[id];
  if (!slot.empty() && slot != piece) {
    return Bad(absl::StrCat("two pieces have the id ", id));
  }
  slot = piece;
  vocabulary->types[id] = type;
  return absl::OkStatus();
}

template <typename Vocabulary>
absl::Status ReadMerges(const Json& merges, Vocabulary* vocabulary) {
  if (!merges.is_array()) return Bad("model.merges is missing or not an array");
  vocabulary->merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const Json& merge = merges[i];
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      vocabulary->merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : std::string();
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos) {
      return Bad(absl::StrCat("model.merges[", i, "] is not two pieces"));
    }
    vocabulary->merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return absl::OkStatus();
}

template <typename Vocabulary>
absl::Status ReadModel(const Json& model, int64_t vocab_size, Vocabulary* vocabulary) {
  const std::string type = StringMember(model, "type");
  if (type != "BPE") return Unsupported(absl::StrCat("model type \"", type, "\""));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!IsEmptyOrNull(Member(model, key))) return Unsupported(absl::StrCat("model.", key));
  }
  const Json& dropout = Member(model, "dropout");
  if (dropout.is_number() && dropout.get<double>() != 0) return Unsupported("model.dropout");
  const Json& vocab = Member(model, "vocab");
  if (!vocab.is_object() || vocab.empty()) return Bad("model.vocab is missing or empty");
  for (const auto& [piece, id] : vocab.items()) {
    MNEME_RETURN_IF_ERROR(PutPiece(id, piece, PieceType::kNormal, vocab_size, vocabulary));
  }
  return ReadMerges(Member(model, "merges"), vocabulary);
}

template <typename Vocabulary>
absl::Status PutAddedTokens(const Json& added, int64_t vocab_size, Vocabulary* vocabulary) {
  if (added.is_null()) return absl::OkStatus();
  if (!added.is_array()) return Bad("added_tokens is not an array");
  for (size_t i = 0; i < added.size(); ++i) {
    const Json& token = added[i];
    const std::string content = StringMember(token, "content");
    if (content.empty()) return Bad(absl::StrCat("added_tokens[", i, "] has no content"));
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
      if (BoolMember(token, flag, false)) {
        return Unsupported(absl::StrCat("added_tokens[", i, "] with ", flag));
      }
    }
    const bool special = BoolMember(token, "special", false);
    MNEME_RETURN_IF_ERROR(PutPiece(Member(token, "id"), content,
                                   special ? PieceType::kControl : PieceType::kUserDefined,
                                   vocab_size, vocabulary));
  }
  return absl::OkStatus();
}

// Whether `processor` puts the token spelled `bos` in front of a single text.
bool PostProcessorAddsBos(const Json& processor, const std::string& bos, int depth = 0) {
  if (depth > 4) return false;
  const std::string type = StringMember(processor, "type");
  if (type == "Sequence") {
    const Json& list = Member(processor, "processors");
    return list.is_array() && std::any_of(list.begin(), list.end(), [&](const Json& step) {
             return PostProcessorAddsBos(step, bos, depth + 1);
           });
  }
  if (type != "TemplateProcessing") return false;
  const Json& single = Member(processor, "single");
  return single.is_array() && !single.empty() &&
         StringMember(Member(single[0], "SpecialToken"), "id") == bos;
}

absl::StatusOr<BpeVocabulary> ReadByteLevel(const Json& root, int64_t vocab_size) {
  BpeVocabulary vocabulary;
  const Json& model = Member(root, "model");
  MNEME_RETURN_IF_ERROR(ReadModel(model, vocab_size, &vocabulary));
  vocabulary.ignore_merges = BoolMember(model, "ignore_merges", false);
  MNEME_ASSIGN_OR_RETURN(vocabulary.pre_tokenizer, ReadPreTokenizer(Member(root, "pre_tokenizer")));
  MNEME_ASSIGN_OR_RETURN(vocabulary.normalize_nfc, ReadNormalizesNfc(Member(root, "normalizer")));
  return vocabulary;
}

// Where spaces become marks and a first one is put in front: a normaliser, or (newer files) the
// pre-tokenizer Metaspace.
absl::Status ReadSpaces(const Json& root, SpmVocabulary* vocabulary) {
  const std::string mark(kSpaceMark);
  const Json& normalizer = Member(root, "normalizer");
  std::vector<Json> steps;
  if (StringMember(normalizer, "type") == "Sequence") {
    const Json& list = Member(normalizer, "normalizers");
    if (!list.is_array()) return Bad("normalizer.normalizers is not an array");
    steps.assign(list.begin(), list.end());
  } else if (!normalizer.is_null()) {
    steps.push_back(normalizer);
  }
  bool replaces = false;
  vocabulary->add_space_prefix = false;
  for (const Json& step : steps) {
    const std::string type = StringMember(step, "type");
    if (type == "Prepend" && StringMember(step, "prepend") == mark) {
      vocabulary->add_space_prefix = true;
    } else if (type == "Replace" && StringMember(step, "content") == mark &&
               StringMember(Member(step, "pattern"), "String") == " ") {
      replaces = true;
    } else {
      return Unsupported(absl::StrCat("normalizer \"", type, "\" with byte_fallback"));
    }
  }
  const Json& pre = Member(root, "pre_tokenizer");
  if (pre.is_null() && replaces) return absl::OkStatus();
  if (StringMember(pre, "type") != "Metaspace" || !steps.empty() ||
      StringMember(pre, "replacement") != mark || BoolMember(pre, "split", true)) {
    return Unsupported("this pre_tokenizer with byte_fallback");
  }
  const std::string scheme = StringMember(pre, "prepend_scheme");
  vocabulary->add_space_prefix = scheme != "never";
  vocabulary->prefix_first_only = scheme == "first";
  vocabulary->prefix_before_space = false;
  return absl::OkStatus();
}

absl::StatusOr<SpmVocabulary> ReadByteFallback(const Json& root, int64_t vocab_size) {
  SpmVocabulary vocabulary;
  const Json& model = Member(root, "model");
  if (BoolMember(model, "ignore_merges", false)) {
    return Unsupported("model.ignore_merges with byte_fallback");
  }
  MNEME_RETURN_IF_ERROR(ReadModel(model, vocab_size, &vocabulary));
  if (vocabulary.merges.empty()) return Bad("model.merges is empty");
  MNEME_RETURN_IF_ERROR(ReadSpaces(root, &vocabulary));
  const std::string unknown = StringMember(model, "unk_token");
  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (ByteOfPiece(vocabulary.pieces[i]) >= 0) vocabulary.types[i] = PieceType::kByte;
    if (!unknown.empty() && vocabulary.pieces[i] == unknown) {
      vocabulary.types[i] = PieceType::kUnknown;
      vocabulary.special.unk = static_cast<TokenId>(i);
    }
  }
  return vocabulary;
}

// What both kinds have besides the model.
template <typename Vocabulary>
absl::Status ReadTokens(const Json& root, const HfSpecials& specials, int64_t vocab_size,
                        Vocabulary* vocabulary) {
  MNEME_RETURN_IF_ERROR(PutAddedTokens(Member(root, "added_tokens"), vocab_size, vocabulary));
  const std::vector<std::string>& pieces = vocabulary->pieces;
  const TokenId unknown = vocabulary->special.unk;
  SpecialTokens& special = vocabulary->special;
  special = ResolveSpecials(specials, [&](std::string_view spelling) -> TokenId {
    const auto it = std::ranges::find(pieces, spelling);
    return it == pieces.end() ? -1 : static_cast<TokenId>(it - pieces.begin());
  });
  if (special.unk < 0) special.unk = unknown;
  vocabulary->more_end_tokens = specials.more_end_tokens;
  if (special.bos >= 0 && static_cast<size_t>(special.bos) < pieces.size()) {
    special.add_bos = specials.add_bos.value_or(
        PostProcessorAddsBos(Member(root, "post_processor"), pieces[special.bos]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ParseTokenizerJson(std::string_view text) {
  MNEME_ASSIGN_OR_RETURN(Json root, ParseStrictJson(text, "tokenizer.json",
                                                    {.max_bytes = kMaxTokenizerJsonBytes,
                                                     .max_values = size_t{8} << 20}));
  if (!root.is_object()) return Bad("not an object");
  return root;
}

absl::StatusOr<HfVocabulary> ReadTokenizerJson(const Json& root, const HfSpecials& specials,
                                               int64_t vocab_size) {
  const Json& model = Member(root, "model");
  if (!model.is_object()) return Bad("model is missing");
  if (BoolMember(model, "byte_fallback", false)) {
    MNEME_ASSIGN_OR_RETURN(SpmVocabulary vocabulary, ReadByteFallback(root, vocab_size));
    MNEME_RETURN_IF_ERROR(ReadTokens(root, specials, vocab_size, &vocabulary));
    return vocabulary;
  }
  MNEME_ASSIGN_OR_RETURN(BpeVocabulary vocabulary, ReadByteLevel(root, vocab_size));
  MNEME_RETURN_IF_ERROR(ReadTokens(root, specials, vocab_size, &vocabulary));
  return vocabulary;
}

}  // namespace mneme::engine
