#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"

namespace mneme::engine {
namespace {

struct PreName {
  std::string_view name;
  PreTokenizerKind kind;
  bool ignore_merges = false;
  bool add_bos = false;
};

constexpr PreTokenizerKind kGpt2 = PreTokenizerKind::kGpt2;
constexpr PreTokenizerKind kLlama3 = PreTokenizerKind::kLlama3;
constexpr PreTokenizerKind kQwen2 = PreTokenizerKind::kQwen2;
constexpr PreTokenizerKind kSmollm = PreTokenizerKind::kSmollm;

// Names that converters write into tokenizer.ggml.pre.
constexpr auto kPreNames = std::to_array<PreName>({
    {"gpt-2", kGpt2},        {"phi-2", kGpt2},
    {"roberta-bpe", kGpt2},  {"mpt", kGpt2},
    {"olmo", kGpt2},         {"jina-es", kGpt2},
    {"jina-de", kGpt2},      {"jina-v1-en", kGpt2},
    {"jina-v2-es", kGpt2},   {"jina-v2-de", kGpt2},
    {"jina-v2-code", kGpt2}, {"llama-bpe", kLlama3, true, true},
    {"dbrx", kLlama3},       {"llama3", kLlama3, true, true},
    {"smaug-bpe", kLlama3},  {"llama-v3", kLlama3, true, true},
    {"qwen2", kQwen2},       {"falcon3", kLlama3, true, true},
    {"megrez", kQwen2},      {"deepseek-r1-qwen", kQwen2},
    {"stablelm2", kQwen2},   {"smollm", kSmollm},
    {"starcoder", kSmollm},  {"refact", kSmollm},
    {"command-r", kSmollm},  {"codeshell", kSmollm},
    {"exaone", kSmollm},     {"minerva-7b", kSmollm},
});

// The array under `key`, moved nowhere: a pointer into the metadata. nullptr if absent.
template <typename T>
absl::StatusOr<const std::vector<T>*> FindArray(const Checkpoint& checkpoint, std::string_view key,
                                                const char* element) {
  const auto it = checkpoint.metadata().find(key);
  if (it == checkpoint.metadata().end()) return nullptr;
  const auto* array = std::get_if<std::vector<T>>(&it->second);
  if (array == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": ", std::string(key), " is not an array of ", element));
  }
  return array;
}

absl::StatusOr<TokenId> ReadId(const Checkpoint& checkpoint, std::string_view name,
                               TokenId fallback) {
  const std::string key = absl::StrCat("tokenizer.ggml.", std::string(name), "_token_id");
  MNEME_ASSIGN_OR_RETURN(const int64_t id, checkpoint.GetInt(key, fallback));
  // Writers store "none" as -1 or as 2^32 - 1.
  if (id == -1 || id == int64_t{std::numeric_limits<uint32_t>::max()}) return -1;
  if (id < -1 || id > std::numeric_limits<TokenId>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": ", key, " is ", id, ", which is no token id"));
  }
  return static_cast<TokenId>(id);
}

struct Common {
  std::vector<std::string> pieces;
  std::vector<PieceType> types;
  SpecialTokens special;
  std::vector<TokenId> more_end_tokens;
};

// Ids that a file does not state are those of the first tokenizer of each kind; they count only if
// the vocabulary reaches so far.
absl::StatusOr<Common> ReadCommon(const Checkpoint& checkpoint, TokenId default_bos,
                                  TokenId default_eos, TokenId default_unk) {
  Common common;
  MNEME_ASSIGN_OR_RETURN(const auto* tokens,
                         FindArray<std::string>(checkpoint, "tokenizer.ggml.tokens", "strings"));
  if (tokens == nullptr || tokens->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tokenizer.ggml.tokens is missing or empty"));
  }
  common.pieces = *tokens;
  MNEME_ASSIGN_OR_RETURN(const auto* types,
                         FindArray<int64_t>(checkpoint, "tokenizer.ggml.token_type", "integers"));
  common.types.assign(common.pieces.size(), PieceType::kNormal);
  if (types != nullptr) {
    if (types->size() != common.pieces.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": tokenizer.ggml.token_type has ", types->size(),
                       " entries, tokenizer.ggml.tokens ", common.pieces.size()));
    }
    for (size_t i = 0; i < types->size(); ++i) {
      const int64_t type = (*types)[i];
      if (type < 1 || type > 6) {
        return absl::InvalidArgumentError(absl::StrCat(
            checkpoint.path(), ": tokenizer.ggml.token_type[", i, "] is ", type, ", not 1 to 6"));
      }
      common.types[i] = static_cast<PieceType>(type);
    }
  }
  const auto size = static_cast<int64_t>(common.pieces.size());
  auto if_present = [size](TokenId id) { return id < size ? id : -1; };
  SpecialTokens& special = common.special;
  MNEME_ASSIGN_OR_RETURN(special.bos, ReadId(checkpoint, "bos", if_present(default_bos)));
  MNEME_ASSIGN_OR_RETURN(special.eos, ReadId(checkpoint, "eos", if_present(default_eos)));
  MNEME_ASSIGN_OR_RETURN(special.unk, ReadId(checkpoint, "unknown", if_present(default_unk)));
  MNEME_ASSIGN_OR_RETURN(special.pad, ReadId(checkpoint, "padding", -1));
  for (std::string_view name : {"eot", "eom"}) {
    MNEME_ASSIGN_OR_RETURN(const TokenId id, ReadId(checkpoint, name, -1));
    if (id >= 0) common.more_end_tokens.push_back(id);
  }
  return common;
}

absl::Status ReadAddBos(const Checkpoint& checkpoint, bool fallback, SpecialTokens* special) {
  MNEME_ASSIGN_OR_RETURN(special->add_bos,
                         checkpoint.GetBool("tokenizer.ggml.add_bos_token", fallback));
  if (special->bos < 0) special->add_bos = false;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BpeVocabulary> ReadGgufBpe(const Checkpoint& checkpoint) {
  MNEME_ASSIGN_OR_RETURN(const std::string pre, checkpoint.GetString("tokenizer.ggml.pre", ""));
  const auto* found = std::ranges::find(kPreNames, std::string_view(pre), &PreName::name);
  if (found == kPreNames.end()) {
    return absl::UnimplementedError(
        absl::StrCat(checkpoint.path(), ": tokenizer.ggml.pre ",
                     pre.empty() ? "is missing" : absl::StrCat("is \"", pre, "\""),
                     ", a pre-tokenizer that is not supported"));
  }
  MNEME_ASSIGN_OR_RETURN(Common common, ReadCommon(checkpoint, 11, 11, -1));
  BpeVocabulary vocabulary;
  vocabulary.pieces = std::move(common.pieces);
  vocabulary.types = std::move(common.types);
  vocabulary.special = std::move(common.special);
  vocabulary.more_end_tokens = std::move(common.more_end_tokens);
  vocabulary.pre_tokenizer = found->kind;
  vocabulary.ignore_merges = found->ignore_merges;
  MNEME_RETURN_IF_ERROR(ReadAddBos(checkpoint, found->add_bos, &vocabulary.special));
  MNEME_ASSIGN_OR_RETURN(const auto* merges,
                         FindArray<std::string>(checkpoint, "tokenizer.ggml.merges", "strings"));
  if (merges == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tokenizer.ggml.merges is missing"));
  }
  vocabulary.merges.reserve(merges->size());
  for (size_t i = 0; i < merges->size(); ++i) {
    const std::string& merge = (*merges)[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": tokenizer.ggml.merges[", i, "] is not two pieces"));
    }
    vocabulary.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return vocabulary;
}

absl::StatusOr<SpmVocabulary> ReadGgufSpm(const Checkpoint& checkpoint) {
  MNEME_ASSIGN_OR_RETURN(Common common, ReadCommon(checkpoint, 1, 2, 0));
  SpmVocabulary vocabulary;
  vocabulary.pieces = std::move(common.pieces);
  vocabulary.types = std::move(common.types);
  vocabulary.special = std::move(common.special);
  vocabulary.more_end_tokens = std::move(common.more_end_tokens);
  MNEME_RETURN_IF_ERROR(ReadAddBos(checkpoint, true, &vocabulary.special));
  MNEME_ASSIGN_OR_RETURN(vocabulary.add_space_prefix,
                         checkpoint.GetBool("tokenizer.ggml.add_space_prefix", true));
  MNEME_ASSIGN_OR_RETURN(const auto* scores,
                         FindArray<double>(checkpoint, "tokenizer.ggml.scores", "floats"));
  if (scores == nullptr || scores->size() != vocabulary.pieces.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.path(), ": tokenizer.ggml.scores has ", scores == nullptr ? 0 : scores->size(),
        " entries, tokenizer.ggml.tokens ", vocabulary.pieces.size()));
  }
  vocabulary.scores.reserve(scores->size());
  for (size_t i = 0; i < scores->size(); ++i) {
    const double score = (*scores)[i];
    if (!(std::abs(score) <= std::numeric_limits<float>::max())) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": tokenizer.ggml.scores[", i, "] is not a finite f32"));
    }
    vocabulary.scores.push_back(static_cast<float>(score));
  }
  return vocabulary;
}

absl::StatusOr<WorldVocabulary> ReadGgufWorld(const Checkpoint& checkpoint) {
  MNEME_ASSIGN_OR_RETURN(Common common, ReadCommon(checkpoint, 0, 0, -1));
  WorldVocabulary vocabulary;
  vocabulary.types = std::move(common.types);
  vocabulary.special = std::move(common.special);
  vocabulary.more_end_tokens = std::move(common.more_end_tokens);
  // Id 0 stands for no text, whether or not the types say so.
  if (vocabulary.types[0] == PieceType::kNormal) vocabulary.types[0] = PieceType::kControl;
  vocabulary.pieces = std::move(common.pieces);
  for (size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] != PieceType::kNormal) continue;
    auto piece = UnescapeWorldPiece(vocabulary.pieces[i]);
    if (!piece.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.path(), ": tokenizer.ggml.tokens[",
                                                     i, "] ", piece.status().message()));
    }
    vocabulary.pieces[i] = *std::move(piece);
  }
  MNEME_RETURN_IF_ERROR(ReadAddBos(checkpoint, true, &vocabulary.special));
  return vocabulary;
}

absl::StatusOr<SpecialTokens> ReadGgufByteSpecials(const Checkpoint& checkpoint) {
  SpecialTokens special;
  MNEME_ASSIGN_OR_RETURN(special.bos, ReadId(checkpoint, "bos", -1));
  MNEME_ASSIGN_OR_RETURN(special.eos, ReadId(checkpoint, "eos", -1));
  MNEME_ASSIGN_OR_RETURN(special.pad, ReadId(checkpoint, "padding", -1));
  MNEME_RETURN_IF_ERROR(ReadAddBos(checkpoint, false, &special));
  return special;
}

}  // namespace mneme::engine
