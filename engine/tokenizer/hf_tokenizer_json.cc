#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"

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

// The member `key`, or null if `object` is no object or has no such member.
const Json& Member(const Json& object, const char* key) {
  static const Json* const kNull = new Json();
  if (!object.is_object()) return *kNull;
  const auto it = object.find(key);
  return it == object.end() ? *kNull : *it;
}

std::string StringMember(const Json& object, const char* key) {
  const Json& value = Member(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

bool BoolMember(const Json& object, const char* key, bool fallback) {
  const Json& value = Member(object, key);
  return value.is_boolean() ? value.get<bool>() : fallback;
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

absl::Status PutPiece(const Json& id_value, const std::string& piece, PieceType type,
                      int64_t vocab_size, BpeVocabulary* vocabulary) {
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

absl::Status ReadMerges(const Json& merges, BpeVocabulary* vocabulary) {
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

absl::Status ReadModel(const Json& model, int64_t vocab_size, BpeVocabulary* vocabulary) {
  if (!model.is_object()) return Bad("model is missing");
  const std::string type = StringMember(model, "type");
  if (type != "BPE") return Unsupported(absl::StrCat("model type \"", type, "\""));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!IsEmptyOrNull(Member(model, key))) return Unsupported(absl::StrCat("model.", key));
  }
  if (BoolMember(model, "byte_fallback", false)) return Unsupported("model.byte_fallback");
  const Json& dropout = Member(model, "dropout");
  if (dropout.is_number() && dropout.get<double>() != 0) return Unsupported("model.dropout");
  vocabulary->ignore_merges = BoolMember(model, "ignore_merges", false);
  const Json& vocab = Member(model, "vocab");
  if (!vocab.is_object() || vocab.empty()) return Bad("model.vocab is missing or empty");
  for (const auto& [piece, id] : vocab.items()) {
    MNEME_RETURN_IF_ERROR(PutPiece(id, piece, PieceType::kNormal, vocab_size, vocabulary));
  }
  return ReadMerges(Member(model, "merges"), vocabulary);
}

absl::Status ReadAddedTokens(const Json& added, int64_t vocab_size, BpeVocabulary* vocabulary) {
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

// A token in tokenizer_config.json: its spelling, or an object that has it as "content".
std::optional<std::string> TokenSpelling(const Json& config, const char* key) {
  const Json& value = Member(config, key);
  if (value.is_string()) return value.get<std::string>();
  const Json& content = Member(value, "content");
  if (content.is_string()) return content.get<std::string>();
  return std::nullopt;
}

// The ids under `key` of config.json: one integer or several.
absl::StatusOr<std::vector<TokenId>> ConfigIds(const Checkpoint& checkpoint, std::string_view key) {
  const auto it = checkpoint.metadata().find(key);
  if (it == checkpoint.metadata().end()) return std::vector<TokenId>();
  std::vector<int64_t> ids;
  if (const auto* one = std::get_if<int64_t>(&it->second)) {
    ids.push_back(*one);
  } else if (const auto* several = std::get_if<std::vector<int64_t>>(&it->second)) {
    ids = *several;
  } else {
    return std::vector<TokenId>();  // null, or a list without entries
  }
  std::vector<TokenId> out;
  for (int64_t id : ids) {
    if (id == -1) continue;  // some writers' "none"
    if (id < 0 || id > std::numeric_limits<TokenId>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": ", std::string(key),
                                                     " is ", id, ", which is no token id"));
    }
    out.push_back(static_cast<TokenId>(id));
  }
  return out;
}

}  // namespace

absl::StatusOr<Json> ReadTokenizerConfig(const Checkpoint& checkpoint) {
  auto text = checkpoint.ReadSideFile("tokenizer_config.json", kMaxTokenizerConfigBytes);
  if (absl::IsNotFound(text.status())) return Json::object();
  if (!text.ok()) return text.status();
  return ParseStrictJson(*text, "tokenizer_config.json", {.max_bytes = kMaxTokenizerConfigBytes});
}

absl::StatusOr<HfSpecials> ReadHfSpecials(const Checkpoint& checkpoint) {
  HfSpecials specials;
  MNEME_ASSIGN_OR_RETURN(const Json config, ReadTokenizerConfig(checkpoint));
  specials.bos = TokenSpelling(config, "bos_token");
  specials.eos = TokenSpelling(config, "eos_token");
  specials.unk = TokenSpelling(config, "unk_token");
  specials.pad = TokenSpelling(config, "pad_token");
  if (const Json& add = Member(config, "add_bos_token"); add.is_boolean()) {
    specials.add_bos = add.get<bool>();
  }
  const std::array<std::pair<const char*, TokenId*>, 3> ids = {{
      {"bos_token_id", &specials.ids.bos},
      {"eos_token_id", &specials.ids.eos},
      {"pad_token_id", &specials.ids.pad},
  }};
  for (const auto& [key, slot] : ids) {
    MNEME_ASSIGN_OR_RETURN(const std::vector<TokenId> values, ConfigIds(checkpoint, key));
    if (values.empty()) continue;
    *slot = values.front();
    if (slot == &specials.ids.eos) specials.more_end_tokens = values;
  }
  return specials;
}

absl::StatusOr<BpeVocabulary> ReadTokenizerJson(std::string_view text, const HfSpecials& specials,
                                                int64_t vocab_size) {
  MNEME_ASSIGN_OR_RETURN(const Json root, ParseStrictJson(text, "tokenizer.json",
                                                          {.max_bytes = kMaxTokenizerJsonBytes,
                                                           .max_values = size_t{8} << 20}));
  if (!root.is_object()) return Bad("not an object");
  BpeVocabulary vocabulary;
  MNEME_RETURN_IF_ERROR(ReadModel(Member(root, "model"), vocab_size, &vocabulary));
  MNEME_ASSIGN_OR_RETURN(vocabulary.pre_tokenizer, ReadPreTokenizer(Member(root, "pre_tokenizer")));
  MNEME_ASSIGN_OR_RETURN(vocabulary.normalize_nfc, ReadNormalizesNfc(Member(root, "normalizer")));
  MNEME_RETURN_IF_ERROR(ReadAddedTokens(Member(root, "added_tokens"), vocab_size, &vocabulary));

  auto resolve = [&](const std::optional<std::string>& spelling, TokenId id) -> TokenId {
    if (spelling.has_value()) {
      const auto it = std::ranges::find(vocabulary.pieces, *spelling);
      if (it != vocabulary.pieces.end())
        return static_cast<TokenId>(it - vocabulary.pieces.begin());
    }
    return id;
  };
  SpecialTokens& special = vocabulary.special;
  special.bos = resolve(specials.bos, specials.ids.bos);
  special.eos = resolve(specials.eos, specials.ids.eos);
  special.unk = resolve(specials.unk, -1);
  special.pad = resolve(specials.pad, specials.ids.pad);
  vocabulary.more_end_tokens = specials.more_end_tokens;
  if (special.bos >= 0 && static_cast<size_t>(special.bos) < vocabulary.pieces.size()) {
    special.add_bos = specials.add_bos.value_or(
        PostProcessorAddsBos(Member(root, "post_processor"), vocabulary.pieces[special.bos]));
  }
  return vocabulary;
}

}  // namespace mneme::engine
