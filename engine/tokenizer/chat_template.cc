#include "engine/tokenizer/chat_template.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"
#include "engine/tokenizer/white_space.h"

namespace mneme::engine {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

// A piece of text that a Jinja template can put out as it stands: a string literal inside a tag, or
// what lies between tags.
struct TemplateText {
  std::string text;
  std::string_view code_before;  // of a literal: its tag's source up to the opening quote
};

// Finds all of them without running anything. Tolerates any input.
std::vector<TemplateText> ReadTemplateTexts(std::string_view source) {
  std::vector<TemplateText> texts;
  size_t i = 0;
  while (i < source.size()) {
    const size_t open = source.find('{', i);
    const char kind = open + 1 < source.size() && open != source.npos ? source[open + 1] : '\0';
    if (open == source.npos || (kind != '{' && kind != '%' && kind != '#')) {
      const size_t end = open == source.npos ? source.size() : open + 1;
      texts.push_back({std::string(source.substr(i, end - i)), {}});
      i = end;
      continue;
    }
    if (open > i) texts.push_back({std::string(source.substr(i, open - i)), {}});
    const char close = kind == '{' ? '}' : kind;
    size_t begin = open + 2;
    i = begin;
    while (i < source.size()) {
      if (source[i] == close && i + 1 < source.size() && source[i + 1] == '}') {
        i += 2;
        break;
      }
      if (kind == '#' || (source[i] != '\'' && source[i] != '"')) {
        ++i;
        continue;
      }
      const char quote = source[i];
      TemplateText literal;
      literal.code_before = source.substr(begin, i - begin);
      for (++i; i < source.size() && source[i] != quote; ++i) {
        if (source[i] != '\\' || i + 1 == source.size()) {
          literal.text.push_back(source[i]);
          continue;
        }
        const char escaped = source[++i];
        literal.text.push_back(escaped == 'n'   ? '\n'
                               : escaped == 't' ? '\t'
                               : escaped == 'r' ? '\r'
                                                : escaped);
      }
      ++i;
      begin = i;
      texts.push_back(std::move(literal));
    }
  }
  return texts;
}

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

// The system message that a ChatML template inserts when a conversation starts without one.
std::optional<std::string> FindDefaultSystem(std::string_view source) {
  constexpr std::string_view kOpen = "<|im_start|>system\n";
  constexpr std::string_view kClose = "<|im_end|>";
  constexpr std::string_view kVariable = "system_message";
  for (const TemplateText& part : ReadTemplateTexts(source)) {
    const std::string_view text = part.text;
    if (const size_t open = text.find(kOpen); open != text.npos) {
      const size_t begin = open + kOpen.size();
      const size_t end = text.find(kClose, begin);
      if (end != text.npos && end > begin) return std::string(text.substr(begin, end - begin));
    }
    // {% set system_message = '...' %}
    std::string_view code = part.code_before;
    while (code.ends_with(' ')) code.remove_suffix(1);
    if (!code.ends_with('=')) continue;
    code.remove_suffix(1);
    while (code.ends_with(' ')) code.remove_suffix(1);
    if (code.ends_with(kVariable) && Contains(code, "set ") && !text.empty()) return part.text;
  }
  return std::nullopt;
}

// Python's str.strip(), which is also Jinja's trim.
std::string_view Trim(std::string_view text) {
  auto is_space = [](char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Utf8Character first = DecodeUtf8(text);
    if (!is_space(first.code_point)) break;
    text.remove_prefix(first.size_bytes);
  }
  while (!text.empty()) {
    const Utf8Character last = DecodeLastUtf8(text);
    if (!is_space(last.code_point)) break;
    text.remove_suffix(last.size_bytes);
  }
  return text;
}

absl::Status BadMessage(size_t index, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("message ", index, " ", std::string(why)));
}

// Everything that the families share: checks, and tokens appended in order.
class TemplateBase : public ChatTemplate {
 protected:
  explicit TemplateBase(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  static absl::Status CheckMessages(std::span<const ChatMessage> messages) {
    if (messages.empty()) return absl::InvalidArgumentError("there are no messages");
    for (size_t i = 0; i < messages.size(); ++i) {
      const std::string& role = messages[i].role;
      if (role != "system" && role != "user" && role != "assistant") {
        return BadMessage(i, "has a role other than system, user and assistant");
      }
      if (!IsValidUtf8(messages[i].content)) return BadMessage(i, "is not valid UTF-8");
    }
    return absl::OkStatus();
  }

  // The text between two control tokens, as one string: pieces may join across its parts.
  absl::Status AppendText(std::string_view text, std::vector<TokenId>* ids) const {
    MNEME_ASSIGN_OR_RETURN(const std::vector<TokenId> part,
                           tokenizer_.Encode(text, /*parse_special=*/false, /*at_start=*/true));
    ids->insert(ids->end(), part.begin(), part.end());
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
};

// The id of a control token that a family needs.
absl::StatusOr<TokenId> ControlToken(const Tokenizer& tokenizer, std::string_view spelling) {
  const TokenId id = tokenizer.FindPiece(spelling);
  if (id < 0 || !tokenizer.TokenBytes(id).empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the chat template uses ", std::string(spelling),
                                                   ", which is no control token here"));
  }
  return id;
}

// <|im_start|>ROLE\nTEXT<|im_end|>\n
class ChatMl final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(std::string_view source,
                                                                    const Tokenizer& tokenizer) {
    std::unique_ptr<ChatMl> chat(new ChatMl(tokenizer));
    MNEME_ASSIGN_OR_RETURN(chat->start_, ControlToken(tokenizer, "<|im_start|>"));
    MNEME_ASSIGN_OR_RETURN(chat->end_, ControlToken(tokenizer, "<|im_end|>"));
    if (Contains(source, "bos_token")) chat->bos_ = tokenizer.special().bos;
    chat->default_system_ = FindDefaultSystem(source);
    for (std::string_view trim : {"content'] | trim", "content']|trim", "content\"] | trim",
                                  "content\"]|trim", ".content | trim", ".content|trim"}) {
      chat->trims_ |= Contains(source, trim);
    }
    return chat;
  }

  std::string_view family() const override { return "chatml"; }

  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages, bool continues,
                                              bool after_end_of_turn) const override {
    MNEME_RETURN_IF_ERROR(CheckMessages(messages));
    std::vector<TokenId> ids;
    if (continues) {
      if (!after_end_of_turn) ids.push_back(end_);
      MNEME_RETURN_IF_ERROR(AppendText("\n", &ids));
    } else {
      if (bos_ >= 0) ids.push_back(bos_);
      if (default_system_.has_value() && messages.front().role != "system") {
        MNEME_RETURN_IF_ERROR(AppendMessage("system", *default_system_, &ids));
      }
    }
    for (const ChatMessage& message : messages) {
      MNEME_RETURN_IF_ERROR(AppendMessage(
          message.role, trims_ ? Trim(message.content) : std::string_view(message.content), &ids));
    }
    ids.push_back(start_);
    MNEME_RETURN_IF_ERROR(AppendText("assistant\n", &ids));
    return ids;
  }

 private:
  using TemplateBase::TemplateBase;

  absl::Status AppendMessage(const std::string& role, std::string_view content,
                             std::vector<TokenId>* ids) const {
    ids->push_back(start_);
    MNEME_RETURN_IF_ERROR(AppendText(absl::StrCat(role, "\n", std::string(content)), ids));
    ids->push_back(end_);
    return AppendText("\n", ids);
  }

  TokenId start_ = -1;
  TokenId end_ = -1;
  TokenId bos_ = -1;  // -1: the template has none
  bool trims_ = false;
  std::optional<std::string> default_system_;
};

// <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>
class Llama3 final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(std::string_view source,
                                                                    const Tokenizer& tokenizer) {
    if (Contains(source, "Cutting Knowledge Date")) {
      return absl::UnimplementedError(
          "the chat template writes dates into the system message (Llama 3.1 and later), which is "
          "not supported");
    }
    std::unique_ptr<Llama3> chat(new Llama3(tokenizer));
    MNEME_ASSIGN_OR_RETURN(chat->header_, ControlToken(tokenizer, "<|start_header_id|>"));
    MNEME_ASSIGN_OR_RETURN(chat->header_end_, ControlToken(tokenizer, "<|end_header_id|>"));
    MNEME_ASSIGN_OR_RETURN(chat->end_, ControlToken(tokenizer, "<|eot_id|>"));
    if (Contains(source, "bos_token") || Contains(source, "<|begin_of_text|>")) {
      chat->bos_ = tokenizer.special().bos;
    }
    chat->trims_ = Contains(source, "| trim") || Contains(source, "|trim");
    return chat;
  }

  std::string_view family() const override { return "llama3"; }

  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages, bool continues,
                                              bool after_end_of_turn) const override {
    MNEME_RETURN_IF_ERROR(CheckMessages(messages));
    std::vector<TokenId> ids;
    if (continues && !after_end_of_turn) ids.push_back(end_);
    if (!continues && bos_ >= 0) ids.push_back(bos_);
    for (const ChatMessage& message : messages) {
      MNEME_RETURN_IF_ERROR(AppendHeader(
          message.role, trims_ ? Trim(message.content) : std::string_view(message.content), &ids));
      ids.push_back(end_);
    }
    MNEME_RETURN_IF_ERROR(AppendHeader("assistant", "", &ids));
    return ids;
  }

 private:
  using TemplateBase::TemplateBase;

  absl::Status AppendHeader(const std::string& role, std::string_view content,
                            std::vector<TokenId>* ids) const {
    ids->push_back(header_);
    MNEME_RETURN_IF_ERROR(AppendText(role, ids));
    ids->push_back(header_end_);
    return AppendText(absl::StrCat("\n\n", std::string(content)), ids);
  }

  TokenId header_ = -1;
  TokenId header_end_ = -1;
  TokenId end_ = -1;
  TokenId bos_ = -1;
  bool trims_ = false;
};

// BOS [INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nUSER [/INST] ASSISTANT EOS. The brackets are ordinary
// text, so here (and only here) a message can imitate the frame: that is the model's own format.
class Llama2 final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(const Tokenizer& tokenizer) {
    if (tokenizer.special().bos < 0 || tokenizer.special().eos < 0) {
      return absl::InvalidArgumentError(
          "the chat template is Llama 2's, but the tokenizer has no bos or no eos token");
    }
    return std::unique_ptr<const ChatTemplate>(new Llama2(tokenizer));
  }

  std::string_view family() const override { return "llama2"; }

  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages, bool continues,
                                              bool after_end_of_turn) const override {
    MNEME_RETURN_IF_ERROR(CheckMessages(messages));
    const SpecialTokens& special = tokenizer_.special();
    std::vector<TokenId> ids;
    if (continues && !after_end_of_turn) ids.push_back(special.eos);
    std::string pending;  // text since the last control token
    std::string system;
    bool user_is_due = true;
    for (size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role == "system") {
        if (i != 0 || continues) {
          return BadMessage(i, "is a system message, which can only start a conversation");
        }
        system = absl::StrCat("<<SYS>>\n", message.content, "\n<</SYS>>\n\n");
        continue;
      }
      if ((message.role == "user") != user_is_due) {
        return BadMessage(i, "breaks the alternation of user and assistant");
      }
      user_is_due = !user_is_due;
      if (message.role == "user") {
        const std::string content = absl::StrCat(std::exchange(system, ""), message.content);
        ids.push_back(special.bos);
        pending = absl::StrCat("[INST] ", std::string(Trim(content)), " [/INST]");
      } else {
        absl::StrAppend(&pending, " ", std::string(Trim(message.content)), " ");
        MNEME_RETURN_IF_ERROR(AppendText(pending, &ids));
        ids.push_back(special.eos);
        pending.clear();
      }
    }
    if (user_is_due) {
      return BadMessage(messages.size() - 1, "leaves the assistant nothing to answer");
    }
    MNEME_RETURN_IF_ERROR(AppendText(pending, &ids));
    return ids;
  }

 private:
  using TemplateBase::TemplateBase;
};

// User: TEXT\n\nAssistant: TEXT\n\n, after token 0, which begins a document: RWKV's World and G1
// models. The names are ordinary text, so a message can imitate the frame, as in Llama 2's; what
// ends a turn is a blank line, so those inside a message are closed up.
class RwkvWorld final : public TemplateBase {
 public:
  static std::unique_ptr<const ChatTemplate> Create(const Tokenizer& tokenizer) {
    return std::unique_ptr<const ChatTemplate>(new RwkvWorld(tokenizer));
  }

  std::string_view family() const override { return "rwkv-world"; }

  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages, bool continues,
                                              bool after_end_of_turn) const override {
    MNEME_RETURN_IF_ERROR(CheckMessages(messages));
    std::vector<TokenId> ids;
    if (!continues && tokenizer_.special().bos >= 0) ids.push_back(tokenizer_.special().bos);
    std::string text;
    if (continues && !after_end_of_turn) text = "\n\n";
    for (const ChatMessage& message : messages) {
      const std::string_view name = message.role == "system" ? "System"
                                    : message.role == "user" ? "User"
                                                             : "Assistant";
      absl::StrAppend(&text, std::string(name), ": ", WithoutBlankLines(message.content), "\n\n");
    }
    text += "Assistant:";
    MNEME_RETURN_IF_ERROR(AppendText(text, &ids));
    return ids;
  }

 private:
  using TemplateBase::TemplateBase;

  static std::string WithoutBlankLines(std::string_view content) {
    std::string closed;
    for (const char c : Trim(content)) {
      if (c == '\r' || (c == '\n' && closed.ends_with('\n'))) continue;
      closed.push_back(c);
    }
    return closed;
  }
};

// The template's source, or nothing.
absl::StatusOr<std::optional<std::string>> ReadTemplate(const Checkpoint& checkpoint) {
  constexpr std::string_view kKey = "tokenizer.chat_template";
  if (checkpoint.format() == Checkpoint::Format::kGguf) {
    if (!checkpoint.Has(kKey)) return std::nullopt;
    MNEME_ASSIGN_OR_RETURN(std::string source, checkpoint.GetString(kKey));
    return source;
  }
  MNEME_ASSIGN_OR_RETURN(const nlohmann::json config, ReadTokenizerConfig(checkpoint));
  if (config.is_object() && config.contains("chat_template")) {
    const nlohmann::json& value = config["chat_template"];
    if (value.is_string()) return value.get<std::string>();
    // Several named templates: [{"name": "default", "template": "..."}].
    if (value.is_array()) {
      for (const nlohmann::json& entry : value) {
        if (!entry.is_object() || !entry.contains("name") || !entry.contains("template")) continue;
        if (entry["name"] == "default" && entry["template"].is_string()) {
          return entry["template"].get<std::string>();
        }
      }
    }
    if (!value.is_null()) {
      return absl::InvalidArgumentError(
          "tokenizer_config.json: chat_template is neither a string nor a list with a default");
    }
  }
  auto file = checkpoint.ReadSideFile("chat_template.jinja", kMaxTemplateBytes);
  if (file.ok()) return *std::move(file);
  if (absl::IsNotFound(file.status())) return std::nullopt;
  return file.status();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ChatTemplate>> ChatTemplate::Create(
    const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  MNEME_ASSIGN_OR_RETURN(const std::optional<std::string> source, ReadTemplate(checkpoint));
  if (!source.has_value() || source->empty()) return nullptr;
  if (source->size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError("the chat template is over 1 MiB");
  }
  if (Contains(*source, "<|start_header_id|>") && Contains(*source, "<|eot_id|>")) {
    return Llama3::Create(*source, tokenizer);
  }
  if (Contains(*source, "<|im_start|>") && Contains(*source, "<|im_end|>")) {
    return ChatMl::Create(*source, tokenizer);
  }
  if (Contains(*source, "[INST]") && Contains(*source, "<<SYS>>")) {
    return Llama2::Create(tokenizer);
  }
  // Not a program but the name under which llama.cpp's converter knows the format.
  if (*source == "rwkv-world") return RwkvWorld::Create(tokenizer);
  return absl::UnimplementedError(
      "the chat template is of no known family (ChatML, Llama 2, Llama 3, rwkv-world)");
}

}  // namespace mneme::engine
