#include "engine/tokenizer/tokenizer.h"

#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/byte_tokenizer.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/world_tokenizer.h"

namespace mneme::engine {
namespace {

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateFromGguf(const Checkpoint& checkpoint,
                                                                int64_t vocab_size) {
  MNEME_ASSIGN_OR_RETURN(const std::string model, checkpoint.GetString("tokenizer.ggml.model"));
  if (model == "gpt2") {
    MNEME_ASSIGN_OR_RETURN(BpeVocabulary vocabulary, ReadGgufBpe(checkpoint));
    return BpeTokenizer::Create(std::move(vocabulary), vocab_size);
  }
  if (model == "llama") {
    MNEME_ASSIGN_OR_RETURN(SpmVocabulary vocabulary, ReadGgufSpm(checkpoint));
    return SpmTokenizer::Create(std::move(vocabulary), vocab_size);
  }
  if (model == "rwkv") {
    MNEME_ASSIGN_OR_RETURN(WorldVocabulary vocabulary, ReadGgufWorld(checkpoint));
    return WorldTokenizer::Create(std::move(vocabulary), vocab_size);
  }
  if (model == "bytes") {
    MNEME_ASSIGN_OR_RETURN(SpecialTokens special, ReadGgufByteSpecials(checkpoint));
    return ByteTokenizer::Create(std::move(special), vocab_size);
  }
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.ggml.model is \"", model,
                   "\"; supported are \"gpt2\", \"llama\", \"rwkv\" and \"bytes\""));
}

// The ids in config.json are ignored: public RWKV-7 files state the defaults of a class (bos 1, eos
// 2), which are other tokens here.
absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateWorld(std::string_view text,
                                                             const HfSpecials& specials,
                                                             int64_t vocab_size) {
  auto vocabulary = ReadWorldVocabulary(text, vocab_size);
  if (!vocabulary.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(kWorldVocabularyFile), ": ", vocabulary.status().message()));
  }
  vocabulary->special.add_bos = specials.add_bos.value_or(true);
  return WorldTokenizer::Create(*std::move(vocabulary), vocab_size);
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateFromFolder(const Checkpoint& checkpoint,
                                                                  int64_t vocab_size) {
  MNEME_ASSIGN_OR_RETURN(const HfSpecials specials, ReadHfSpecials(checkpoint));
  if (checkpoint.Has("tokenizer")) {
    MNEME_ASSIGN_OR_RETURN(const std::string name, checkpoint.GetString("tokenizer"));
    if (name != "bytes") {
      return absl::UnimplementedError(absl::StrCat("config.json: tokenizer is \"", name,
                                                   "\"; the only one known by name is \"bytes\""));
    }
    SpecialTokens special = specials.ids;
    MNEME_ASSIGN_OR_RETURN(special.add_bos, checkpoint.GetBool("add_bos_token", false));
    if (special.bos < 0) special.add_bos = false;
    return ByteTokenizer::Create(std::move(special), vocab_size);
  }
  absl::Status failure = absl::InvalidArgumentError(absl::StrCat(
      "there is neither tokenizer.json nor tokenizer.model nor ", std::string(kWorldVocabularyFile),
      " beside the weights, and config.json names no tokenizer"));
  auto world = checkpoint.ReadSideFile(kWorldVocabularyFile, kMaxWorldVocabularyBytes);
  if (world.ok()) return CreateWorld(*world, specials, vocab_size);
  if (!absl::IsNotFound(world.status())) return world.status();
  auto json = checkpoint.ReadSideFile("tokenizer.json", kMaxTokenizerJsonBytes);
  if (!json.ok() && !absl::IsNotFound(json.status())) return json.status();
  nlohmann::json root;  // null if there is none
  std::optional<SpmVocabulary> spm;
  if (json.ok()) {
    MNEME_ASSIGN_OR_RETURN(root, ParseTokenizerJson(*json));
    auto vocabulary = ReadTokenizerJson(root, specials, vocab_size);
    if (!vocabulary.ok()) {
      failure = vocabulary.status();
      if (!absl::IsUnimplemented(failure)) return failure;
    } else if (auto* bpe = std::get_if<BpeVocabulary>(&*vocabulary)) {
      return BpeTokenizer::Create(std::move(*bpe), vocab_size);
    } else {
      spm = std::get<SpmVocabulary>(*std::move(vocabulary));
    }
  }
  // Such a tokenizer.json is a conversion of the tokenizer.model beside it, if there is one.
  auto model = checkpoint.ReadSideFile("tokenizer.model", SentencePieceModel::kMaxModelBytes);
  if (absl::IsNotFound(model.status())) {
    if (!spm.has_value()) return failure;
    return SpmTokenizer::Create(*std::move(spm), vocab_size);
  }
  if (!model.ok()) return model.status();
  MNEME_ASSIGN_OR_RETURN(const std::vector<AddedToken> added, ReadAddedTokens(checkpoint, root));
  return SentencePieceModel::Create(*std::move(model), specials, added, vocab_size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(const Checkpoint& checkpoint,
                                                                   int64_t vocab_size) {
  auto tokenizer = checkpoint.format() == Checkpoint::Format::kGguf
                       ? CreateFromGguf(checkpoint, vocab_size)
                       : CreateFromFolder(checkpoint, vocab_size);
  if (tokenizer.ok() ||
      tokenizer.status().message().find(checkpoint.path()) != absl::string_view::npos) {
    return tokenizer;
  }
  return absl::Status(tokenizer.status().code(),
                      absl::StrCat(checkpoint.path(), ": ", tokenizer.status().message()));
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool at_start) const {
  std::string text;
  for (TokenId id : ids) text += TokenBytes(id);
  if (at_start && drops_leading_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

}  // namespace mneme::engine
