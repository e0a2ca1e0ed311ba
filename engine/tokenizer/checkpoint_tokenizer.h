// Reads tokenizers out of checkpoints. Everything read is untrusted; messages name the key.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/tokenizer/bpe_tokenizer.h"
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
inline constexpr size_t kMaxTokenizerConfigBytes = size_t{4} << 20;
// RWKV's own file name, under which converted folders carry it too.
inline constexpr std::string_view kWorldVocabularyFile = "rwkv_vocab_v20230424.txt";
inline constexpr size_t kMaxWorldVocabularyBytes = size_t{64} << 20;

// What config.json and tokenizer_config.json say about special tokens. Names win over ids.
struct HfSpecials {
  std::optional<std::string> bos, eos, unk, pad;
  SpecialTokens ids;  // from config.json; only the ids are set
  std::vector<TokenId> more_end_tokens;
  std::optional<bool> add_bos;
};

absl::StatusOr<HfSpecials> ReadHfSpecials(const Checkpoint& checkpoint);

// tokenizer_config.json, or an empty object if there is none.
absl::StatusOr<nlohmann::json> ReadTokenizerConfig(const Checkpoint& checkpoint);

// `text` is tokenizer.json. UNIMPLEMENTED names the part that is not supported.
absl::StatusOr<BpeVocabulary> ReadTokenizerJson(std::string_view text, const HfSpecials& specials,
                                                int64_t vocab_size);

}  // namespace mneme::engine
