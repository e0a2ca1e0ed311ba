#include "engine/tokenizer/hf_specials.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/core/status_macros.h"
#include "engine/tokenizer/json_members.h"

namespace mneme::engine {
namespace {

using Json = nlohmann::json;

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

// Collects tokens by id; what is said later of an id must agree with what was said before.
class AddedTokens {
 public:
  absl::Status Add(std::string_view source, const Json& id, const std::string& content,
                   const Json& flags) {
    const std::string where(source);
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<TokenId>::max())) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " has a token with the id ", id.dump()));
    }
    if (content.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": token ", id.dump(), " has no content"));
    }
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
      if (BoolMember(flags, flag, false)) {
        return absl::UnimplementedError(
            absl::StrCat(where, ": token ", id.dump(), " with ", flag, " is not supported"));
      }
    }
    const auto key = static_cast<TokenId>(id.get<uint64_t>());
    const auto [it, inserted] = by_id_.try_emplace(key, AddedToken{.id = key, .content = content});
    if (it->second.content != content) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": token ", id.dump(), " is \"",
                                                     content, "\", but elsewhere \"",
                                                     it->second.content, "\""));
    }
    it->second.special |= BoolMember(flags, "special", false);
    return absl::OkStatus();
  }

  std::vector<AddedToken> Take(const std::set<std::string>& special) && {
    std::vector<AddedToken> tokens;
    for (auto& [id, token] : by_id_) {
      token.special |= special.contains(token.content);
      tokens.push_back(std::move(token));
    }
    return tokens;
  }

 private:
  std::map<TokenId, AddedToken> by_id_;
};

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

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const Checkpoint& checkpoint,
                                                        const Json& tokenizer_json) {
  AddedTokens tokens;
  if (const Json& list = Member(tokenizer_json, "added_tokens"); list.is_array()) {
    for (const Json& token : list) {
      MNEME_RETURN_IF_ERROR(
          tokens.Add("tokenizer.json", Member(token, "id"), StringMember(token, "content"), token));
    }
  }
  MNEME_ASSIGN_OR_RETURN(const Json config, ReadTokenizerConfig(checkpoint));
  if (const Json& decoder = Member(config, "added_tokens_decoder"); decoder.is_object()) {
    for (const auto& [key, token] : decoder.items()) {
      uint32_t id = 0;
      if (!absl::SimpleAtoi(key, &id)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer_config.json: added_tokens_decoder has the id \"", key, "\""));
      }
      MNEME_RETURN_IF_ERROR(
          tokens.Add("tokenizer_config.json", id, StringMember(token, "content"), token));
    }
  }
  auto file = checkpoint.ReadSideFile("added_tokens.json", kMaxTokenizerConfigBytes);
  if (file.ok()) {
    MNEME_ASSIGN_OR_RETURN(
        const Json ids,
        ParseStrictJson(*file, "added_tokens.json", {.max_bytes = kMaxTokenizerConfigBytes}));
    if (!ids.is_object()) return absl::InvalidArgumentError("added_tokens.json: not an object");
    for (const auto& [content, id] : ids.items()) {
      MNEME_RETURN_IF_ERROR(tokens.Add("added_tokens.json", id, content, Json::object()));
    }
  } else if (!absl::IsNotFound(file.status())) {
    return file.status();
  }
  // That file has no flags: a token is special if the configuration names it as one.
  std::set<std::string> special;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    if (const auto spelling = TokenSpelling(config, key)) special.insert(*spelling);
  }
  if (const Json& more = Member(config, "additional_special_tokens"); more.is_array()) {
    for (const Json& token : more) {
      special.insert(token.is_string() ? token.get<std::string>() : StringMember(token, "content"));
    }
  }
  return std::move(tokens).Take(special);
}

SpecialTokens ResolveSpecials(const HfSpecials& specials,
                              absl::FunctionRef<TokenId(std::string_view)> find) {
  auto resolve = [&](const std::optional<std::string>& spelling, TokenId fallback) {
    const TokenId id = spelling.has_value() ? find(*spelling) : -1;
    return id >= 0 ? id : fallback;
  };
  return {.bos = resolve(specials.bos, specials.ids.bos),
          .eos = resolve(specials.eos, specials.ids.eos),
          .unk = resolve(specials.unk, -1),
          .pad = resolve(specials.pad, specials.ids.pad)};
}

}  // namespace mneme::engine
