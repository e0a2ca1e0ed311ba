// Reads tokenizers out of checkpoints. Everything read is untrusted; messages name the key.
#pragma once

#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/tokenizer/bpe_tokenizer.h"
#include "engine/tokenizer/hf_specials.h"
#include "engine/tokenizer/spm_tokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/world_tokenizer.h"
#include "nlohmann/json.hpp"

namespace mneme::engine {

// --- GGUF metadata (gguf_vocabulary.cc) ---

// tokenizer.ggml.model = "gpt2". UNIMPLEMENTED names an unknown tokenizer.ggml.pre.
absl::StatusOr<BpeVocabulary> ReadGgufBpe(const Checkpoint& checkpoint);
// tokenizer.ggml.model = "llama".
absl::StatusOr<SpmVocabulary> ReadGgufSpm(const Checkpoint& checkpoint);
// tokenizer.ggml.model = "rwkv".
absl::StatusOr<WorldVocabulary> ReadGgufWorld(const Checkpoint& checkpoint);
// tokenizer.ggml.model = "bytes".
absl::StatusOr<SpecialTokens> ReadGgufByteSpecials(const Checkpoint& checkpoint);

// --- Hugging Face files (hf_tokenizer_json.cc) ---

inline constexpr size_t kMaxTokenizerJsonBytes = size_t{64} << 20;
// RWKV's own file name, under which converted folders carry it too.
inline constexpr std::string_view kWorldVocabularyFile = "rwkv_vocab_v20230424.txt";
inline constexpr size_t kMaxWorldVocabularyBytes = size_t{64} << 20;

absl::StatusOr<nlohmann::json> ParseTokenizerJson(std::string_view text);

// `root` is tokenizer.json. With byte_fallback it is SentencePiece's way of encoding, its merges in
// order instead of scores. UNIMPLEMENTED names the part that is not supported.
using HfVocabulary = std::variant<BpeVocabulary, SpmVocabulary>;
absl::StatusOr<HfVocabulary> ReadTokenizerJson(const nlohmann::json& root,
                                               const HfSpecials& specials, int64_t vocab_size);

}  // namespace mneme::engine
