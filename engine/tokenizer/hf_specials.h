// What a folder for transformers says of its special and added tokens. Everything read is
// untrusted; messages name the file.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"

namespace mneme::engine {

inline constexpr size_t kMaxTokenizerConfigBytes = size_t{4} << 20;

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

// A token that a folder puts beside its vocabulary's own, or names anew.
struct AddedToken {
  TokenId id = -1;
  std::string content;
  bool special = false;  // a control token; others are found in any text
};

// All that tokenizer.json (null: there is none), added_tokens_decoder of tokenizer_config.json and
// added_tokens.json tell, by ascending id. INVALID_ARGUMENT if they contradict each other;
// UNIMPLEMENTED for a token that takes white space around it along.
absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const Checkpoint& checkpoint,
                                                        const nlohmann::json& tokenizer_json);

// The ids of the special tokens: what `find` gives for their spellings (-1: no such piece), else
// those of config.json.
SpecialTokens ResolveSpecials(const HfSpecials& specials,
                              absl::FunctionRef<TokenId(std::string_view)> find);

}  // namespace mneme::engine
