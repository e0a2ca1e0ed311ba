#include "engine/tokenizer/chat_template.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/checkpoint_tokenizer.h"
#include "engine/tokenizer/template_expression.h"
#include "engine/tokenizer/template_frames.h"
#include "engine/tokenizer/template_outline.h"
#include "engine/tokenizer/white_space.h"

namespace mneme::engine {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
// What folders of RWKV's World models call token 0; their vocabulary has no spelling for it.
constexpr std::string_view kWorldEndOfText = "<|rwkv_tokenizer_end_of_text|>";

bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

// Python's str.rstrip().
std::string_view TrimEnd(std::string_view text) {
  while (!text.empty()) {
    const Utf8Character last = DecodeLastUtf8(text);
    if (!IsPythonSpace(last.code_point)) break;
    text.remove_suffix(last.size_bytes);
  }
  return text;
}

// Python's str.strip(), which is also Jinja's trim.
std::string_view Trim(std::string_view text) {
  while (!text.empty()) {
    const Utf8Character first = DecodeUtf8(text);
    if (!IsPythonSpace(first.code_point)) break;
    text.remove_prefix(first.size_bytes);
  }
  return TrimEnd(text);
}

// A content as the template writes it.
std::string_view Styled(std::string_view content, const FrameStyle& style) {
  return style.trims ? Trim(content) : content;
}

absl::Status BadMessage(size_t index, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("message ", index, " ", std::string(why)));
}

// The text between two control tokens.
class Text {
 public:
  struct Content {
    std::string role;
    size_t begin = 0, end = 0;  // bytes; begin < end
  };

  void AddFrame(std::string_view text) { text_.append(text); }
  void AddContent(std::string_view role, std::string_view text) {
    text_.append(text);
    if (!text.empty()) {
      contents_.push_back({std::string(role), text_.size() - text.size(), text_.size()});
    }
  }

  const std::string& str() const { return text_; }
  const std::vector<Content>& contents() const { return contents_; }

 private:
  std::string text_;
  std::vector<Content> contents_;
};

// The tokens of a conversation, appended in order.
class Rendering {
 public:
  explicit Rendering(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Add(TokenId control) { ids_.push_back(control); }
  // As one string: pieces may join across its parts.
  absl::Status Add(const Text& text) {
    MNEME_ASSIGN_OR_RETURN(
        const std::vector<TokenId> part,
        tokenizer_.Encode(text.str(), /*parse_special=*/false, /*at_start=*/true));
    FindContents(text, part);
    ids_.insert(ids_.end(), part.begin(), part.end());
    return absl::OkStatus();
  }

  std::vector<TokenId> TakeIds() { return std::move(ids_); }
  std::vector<ContentSpan> TakeContents() { return std::move(contents_); }

 private:
  void FindContents(const Text& text, std::span<const TokenId> part);

  const Tokenizer& tokenizer_;
  std::vector<TokenId> ids_;
  std::vector<ContentSpan> contents_;
};

void Rendering::FindContents(const Text& text, std::span<const TokenId> part) {
  if (text.contents().empty() || part.empty()) return;
  std::vector<size_t> ends;  // of each token, in bytes
  size_t bytes = 0;
  for (const TokenId id : part) ends.push_back(bytes += tokenizer_.TokenBytes(id).size());
  // SentencePiece puts a space in front; a tokenizer that changes more than that has no bytes of
  // the frame to tell apart.
  const size_t shift = bytes - text.str().size();
  if (bytes < text.str().size() || shift > 1) {
    contents_.push_back({text.contents().front().role, ids_.size(), ids_.size() + part.size()});
    return;
  }
  size_t from = 0;
  for (const Text::Content& content : text.contents()) {
    const size_t begin = content.begin + shift, end = content.end + shift;
    const auto first =
        std::upper_bound(ends.begin() + static_cast<ptrdiff_t>(from), ends.end(), begin) -
        ends.begin();
    const auto last = std::lower_bound(ends.begin() + first, ends.end(), end) - ends.begin();
    const size_t starts = first == 0 ? 0 : ends[first - 1];
    contents_.push_back({content.role, ids_.size() + first, ids_.size() + last + 1,
                         begin > starts ? begin - starts : 0, ends[last] - end});
    from = last + 1;
    if (from == ends.size()) return;
  }
}

// Everything that the families share: checks, and the tokens' collection.
class TemplateBase : public ChatTemplate {
 public:
  absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages,
                                              const RenderOptions& options,
                                              std::vector<ContentSpan>* contents) const final {
    MNEME_RETURN_IF_ERROR(CheckMessages(messages, options));
    Rendering out(tokenizer_);
    MNEME_RETURN_IF_ERROR(Write(messages, options, out));
    if (contents != nullptr) *contents = out.TakeContents();
    return out.TakeIds();
  }

 protected:
  explicit TemplateBase(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  virtual absl::Status Write(std::span<const ChatMessage> messages, const RenderOptions& options,
                             Rendering& out) const = 0;

  static absl::Status CheckMessages(std::span<const ChatMessage> messages,
                                    const RenderOptions& options) {
    if (messages.empty()) return absl::InvalidArgumentError("there are no messages");
    for (size_t i = 0; i < messages.size(); ++i) {
      const std::string& role = messages[i].role;
      if (role != "system" && role != "user" && role != "assistant") {
        return BadMessage(i, "has a role other than system, user and assistant");
      }
      if (!IsValidUtf8(messages[i].content)) return BadMessage(i, "is not valid UTF-8");
    }
    if (!options.continue_final_message) return absl::OkStatus();
    if (messages.back().role != "assistant") {
      return BadMessage(messages.size() - 1, "cannot be continued: it is not the assistant's");
    }
    if (Trim(messages.back().content).empty()) {
      return BadMessage(messages.size() - 1, "cannot be continued: it is empty");
    }
    return absl::OkStatus();
  }

  // The messages that are closed, and the content with which the assistant's begins that is not.
  struct Conversation {
    std::span<const ChatMessage> closed;
    std::string_view open;
  };
  static Conversation Split(std::span<const ChatMessage> messages, const RenderOptions& options) {
    if (!options.continue_final_message) return {messages, ""};
    return {messages.first(messages.size() - 1), messages.back().content};
  }

  static absl::Status AddFrame(std::string_view text, Rendering& out) {
    Text frame;
    frame.AddFrame(text);
    return out.Add(frame);
  }

  const Tokenizer& tokenizer_;
};

// What a template may write for a special token; "" if there is none.
std::string Spelling(const Tokenizer& tokenizer, TokenId id) {
  return id < 0 ? "" : tokenizer.TokenBytes(id, /*show_special=*/true);
}

// The id of a control token that a family needs.
absl::StatusOr<TokenId> ControlToken(const Tokenizer& tokenizer, std::string_view spelling) {
  const TokenId id = tokenizer.FindPiece(spelling);
  if (id < 0 || !tokenizer.TokenBytes(id).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("it uses ", std::string(spelling), ", which is no control token here"));
  }
  return id;
}

// <|im_start|>ROLE\nTEXT<|im_end|>\n
class ChatMl final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(TemplateOutline outline,
                                                                    const Tokenizer& tokenizer) {
    std::unique_ptr<ChatMl> chat(new ChatMl(tokenizer));
    MNEME_ASSIGN_OR_RETURN(
        chat->style_,
        ReadFrames(std::move(outline), {"ChatML", "<|im_start|>", "\n", "<|im_end|>\n"},
                   Spelling(tokenizer, tokenizer.special().bos)));
    MNEME_ASSIGN_OR_RETURN(chat->start_, ControlToken(tokenizer, "<|im_start|>"));
    MNEME_ASSIGN_OR_RETURN(chat->end_, ControlToken(tokenizer, "<|im_end|>"));
    return chat;
  }

  std::string_view family() const override { return "chatml"; }

  absl::Status Write(std::span<const ChatMessage> messages, const RenderOptions& options,
                     Rendering& out) const override {
    if (options.continues) {
      if (!options.after_end_of_turn) out.Add(end_);
      MNEME_RETURN_IF_ERROR(AddFrame("\n", out));
    } else {
      if (style_.begins_with_bos) out.Add(tokenizer_.special().bos);
      if (style_.default_system.has_value() && messages.front().role != "system") {
        MNEME_RETURN_IF_ERROR(AddMessage("system", *style_.default_system, out));
      }
    }
    const auto [closed, open] = Split(messages, options);
    for (const ChatMessage& message : closed) {
      MNEME_RETURN_IF_ERROR(AddMessage(message.role, Styled(message.content, style_), out));
    }
    return AddOpen("assistant", Styled(open, style_), out);
  }

 private:
  using TemplateBase::TemplateBase;

  absl::Status AddOpen(const std::string& role, std::string_view content, Rendering& out) const {
    out.Add(start_);
    Text text;
    text.AddFrame(absl::StrCat(role, "\n"));
    text.AddContent(role, content);
    return out.Add(text);
  }
  absl::Status AddMessage(const std::string& role, std::string_view content, Rendering& out) const {
    MNEME_RETURN_IF_ERROR(AddOpen(role, content, out));
    out.Add(end_);
    return AddFrame("\n", out);
  }

  TokenId start_ = -1;
  TokenId end_ = -1;
  FrameStyle style_;
};

// <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>
class Llama3 final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(TemplateOutline outline,
                                                                    const Tokenizer& tokenizer) {
    std::unique_ptr<Llama3> chat(new Llama3(tokenizer));
    MNEME_ASSIGN_OR_RETURN(chat->style_, ReadFrames(std::move(outline),
                                                    {"Llama 3", "<|start_header_id|>",
                                                     "<|end_header_id|>\n\n", "<|eot_id|>"},
                                                    Spelling(tokenizer, tokenizer.special().bos)));
    MNEME_ASSIGN_OR_RETURN(chat->header_, ControlToken(tokenizer, "<|start_header_id|>"));
    MNEME_ASSIGN_OR_RETURN(chat->header_end_, ControlToken(tokenizer, "<|end_header_id|>"));
    MNEME_ASSIGN_OR_RETURN(chat->end_, ControlToken(tokenizer, "<|eot_id|>"));
    return chat;
  }

  std::string_view family() const override { return "llama3"; }

  absl::Status Write(std::span<const ChatMessage> messages, const RenderOptions& options,
                     Rendering& out) const override {
    if (options.continues) {
      if (!options.after_end_of_turn) out.Add(end_);
    } else {
      if (style_.begins_with_bos) out.Add(tokenizer_.special().bos);
      if (style_.default_system.has_value() && messages.front().role != "system") {
        MNEME_RETURN_IF_ERROR(AddOpen("system", *style_.default_system, out));
        out.Add(end_);
      }
    }
    const auto [closed, open] = Split(messages, options);
    for (const ChatMessage& message : closed) {
      MNEME_RETURN_IF_ERROR(AddOpen(message.role, Styled(message.content, style_), out));
      out.Add(end_);
    }
    return AddOpen("assistant", Styled(open, style_), out);
  }

 private:
  using TemplateBase::TemplateBase;

  absl::Status AddOpen(const std::string& role, std::string_view content, Rendering& out) const {
    out.Add(header_);
    MNEME_RETURN_IF_ERROR(AddFrame(role, out));
    out.Add(header_end_);
    Text text;
    text.AddFrame("\n\n");
    text.AddContent(role, content);
    return out.Add(text);
  }

  TokenId header_ = -1;
  TokenId header_end_ = -1;
  TokenId end_ = -1;
  FrameStyle style_;
};

// BOS [INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nUSER [/INST] ASSISTANT EOS. The brackets are ordinary
// text, so here (and only here) a message can imitate the frame: that is the model's own format.
class Llama2 final : public TemplateBase {
 public:
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(const TemplateOutline& outline,
                                                                    const Tokenizer& tokenizer) {
    const std::string bos = Spelling(tokenizer, tokenizer.special().bos);
    const std::string eos = Spelling(tokenizer, tokenizer.special().eos);
    // The system message is put into the first content, whosever that is; it is the user's.
    const std::string content(kContent);
    const std::string plain(kTrimmedContent);
    const std::string with_system =
        TrimmedText(absl::StrCat("<<SYS>>\n", content, "\n<</SYS>>\n\n", content));
    MNEME_RETURN_IF_ERROR(CheckTexts(
        outline, "Llama 2",
        {{absl::StrCat(bos, "[INST] ", with_system, " [/INST]")},
         {absl::StrCat(bos, "[INST] ", plain, " [/INST]")},
         {absl::StrCat(" ", plain, " ", eos), absl::StrCat(" ", with_system, " ", eos)}}));
    if (tokenizer.special().bos < 0 || tokenizer.special().eos < 0) {
      return absl::InvalidArgumentError(
          "it is Llama 2's, but the tokenizer has no bos or no eos token");
    }
    return std::unique_ptr<const ChatTemplate>(new Llama2(tokenizer));
  }

  std::string_view family() const override { return "llama2"; }

  absl::Status Write(std::span<const ChatMessage> messages, const RenderOptions& options,
                     Rendering& out) const override {
    const SpecialTokens& special = tokenizer_.special();
    if (options.continues && !options.after_end_of_turn) out.Add(special.eos);
    Text pending;  // since the last control token
    const ChatMessage* system = nullptr;
    bool user_is_due = true;
    for (size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role == "system") {
        if (i != 0 || options.continues) {
          return BadMessage(i, "is a system message, which can only start a conversation");
        }
        system = &message;
        continue;
      }
      if ((message.role == "user") != user_is_due) {
        return BadMessage(i, "breaks the alternation of user and assistant");
      }
      user_is_due = !user_is_due;
      if (message.role == "user") {
        out.Add(special.bos);
        pending.AddFrame("[INST] ");
        AddUser(std::exchange(system, nullptr), message, pending);
        pending.AddFrame(" [/INST]");
      } else {
        pending.AddFrame(" ");
        pending.AddContent("assistant", Trim(message.content));
        if (options.continue_final_message && i + 1 == messages.size()) break;
        pending.AddFrame(" ");
        MNEME_RETURN_IF_ERROR(out.Add(pending));
        out.Add(special.eos);
        pending = Text();
      }
    }
    if (user_is_due && !options.continue_final_message) {
      return BadMessage(messages.size() - 1, "leaves the assistant nothing to answer");
    }
    return out.Add(pending);
  }

 private:
  using TemplateBase::TemplateBase;

  // The system message, if there is one, is part of the user's, and they are trimmed together.
  static void AddUser(const ChatMessage* system, const ChatMessage& user, Text& out) {
    if (system == nullptr) return out.AddContent("user", Trim(user.content));
    out.AddFrame("<<SYS>>\n");
    out.AddContent("system", system->content);
    const std::string rest = absl::StrCat("\n<</SYS>>\n\n", user.content);
    const size_t frame_bytes = rest.size() - user.content.size();
    const std::string_view trimmed = TrimEnd(rest);
    out.AddFrame(trimmed.substr(0, frame_bytes));
    if (trimmed.size() > frame_bytes) out.AddContent("user", trimmed.substr(frame_bytes));
  }
};

// User: TEXT\n\nAssistant: TEXT\n\n, after token 0, which begins a document: RWKV's World and G1
// models. The names are ordinary text, so a message can imitate the frame, as in Llama 2's; what
// ends a turn is a blank line, so those inside a message are closed up. An answer's thoughts are
// not read again.
class RwkvWorld final : public TemplateBase {
 public:
  static std::unique_ptr<const ChatTemplate> Create(const Tokenizer& tokenizer) {
    return std::unique_ptr<const ChatTemplate>(new RwkvWorld(tokenizer));
  }

  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(TemplateOutline outline,
                                                                    const Tokenizer& tokenizer) {
    constexpr std::string_view kFamily = "RWKV World";
    for (const std::string& bos :
         {Spelling(tokenizer, tokenizer.special().bos), std::string(kWorldEndOfText)}) {
      MNEME_RETURN_IF_ERROR(RemoveBos(kFamily, bos, &outline).status());
    }
    auto frames = [](const std::string& name, std::initializer_list<std::string_view> contents) {
      std::vector<std::string> texts;
      for (std::string_view content : contents) {
        texts.push_back(name + ": " + std::string(content) + "\n\n");
      }
      return texts;
    };
    const std::vector<std::vector<std::string>> texts = {
        frames("System", {kContent, kTrimmedContent}),
        frames("User", {kContent, kTrimmedContent}),
        frames("Assistant", {kContent, kTrimmedContent, kAnswer, kTrimmedAnswer}),
        {"Assistant:"}};
    MNEME_RETURN_IF_ERROR(CheckTexts(outline, kFamily, texts));
    return Create(tokenizer);
  }

  std::string_view family() const override { return "rwkv-world"; }

  absl::Status Write(std::span<const ChatMessage> messages, const RenderOptions& options,
                     Rendering& out) const override {
    if (!options.continues && tokenizer_.special().bos >= 0) out.Add(tokenizer_.special().bos);
    Text text;
    if (options.continues && !options.after_end_of_turn) text.AddFrame("\n\n");
    const auto [closed, open] = Split(messages, options);
    for (const ChatMessage& message : closed) {
      const std::string_view name = message.role == "system" ? "System"
                                    : message.role == "user" ? "User"
                                                             : "Assistant";
      const std::string_view content =
          message.role == "assistant" ? WithoutThoughts(message.content) : message.content;
      text.AddFrame(name);
      text.AddFrame(": ");
      text.AddContent(message.role, WithoutBlankLines(content));
      text.AddFrame("\n\n");
    }
    text.AddFrame("Assistant:");
    if (!open.empty()) {
      text.AddFrame(" ");
      // The answer's own thoughts: it may be in the middle of them.
      text.AddContent("assistant", WithoutBlankLines(open));
    }
    return out.Add(text);
  }

 private:
  using TemplateBase::TemplateBase;

  static std::string_view WithoutThoughts(std::string_view content) {
    constexpr std::string_view kEnd = "</think>";
    const size_t end = content.rfind(kEnd);
    return end == content.npos ? content : content.substr(end + kEnd.size());
  }

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

absl::StatusOr<std::unique_ptr<const ChatTemplate>> Recognise(const Checkpoint& checkpoint,
                                                              const Tokenizer& tokenizer) {
  MNEME_ASSIGN_OR_RETURN(const std::optional<std::string> source, ReadTemplate(checkpoint));
  if (!source.has_value() || source->empty()) return nullptr;
  if (source->size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError("it is over 1 MiB");
  }
  // Not a program but the name under which llama.cpp knows the format.
  if (*source == "rwkv-world") return RwkvWorld::Create(tokenizer);

  // A family is guessed by what only it writes, and then the whole program must be of it.
  auto has = [&](std::string_view part) { return source->find(part) != std::string::npos; };
  const bool llama3 = has("<|start_header_id|>") && has("<|eot_id|>");
  const bool chatml = has("<|im_start|>") && has("<|im_end|>");
  const bool llama2 = has("[INST]") && has("<<SYS>>");
  const bool world = has("User: ") && has("Assistant:");
  if (!llama3 && !chatml && !llama2 && !world) {
    return absl::UnimplementedError(
        "it is of no known family (ChatML, Llama 2, Llama 3, RWKV World)");
  }
  const SpecialTokens& special = tokenizer.special();
  MNEME_ASSIGN_OR_RETURN(TemplateOutline outline,
                         ReadTemplateOutline(*source, Spelling(tokenizer, special.bos),
                                             Spelling(tokenizer, special.eos)));
  if (llama3) return Llama3::Create(std::move(outline), tokenizer);
  if (chatml) return ChatMl::Create(std::move(outline), tokenizer);
  if (llama2) return Llama2::Create(outline, tokenizer);
  return RwkvWorld::Create(std::move(outline), tokenizer);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ChatTemplate>> ChatTemplate::Create(
    const Checkpoint& checkpoint, const Tokenizer& tokenizer) {
  auto chat = Recognise(checkpoint, tokenizer);
  if (chat.ok()) return chat;
  return absl::Status(chat.status().code(),
                      absl::StrCat("its chat template is not one this server can render: ",
                                   chat.status().message()));
}

}  // namespace mneme::engine
