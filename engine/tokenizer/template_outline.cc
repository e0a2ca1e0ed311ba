#include "engine/tokenizer/template_outline.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/template_expression.h"

namespace mneme::engine {
namespace {

using Kind = TemplateThing::Kind;

// The longest template of any public model has 20 KB. The limits bound the time that a hostile one
// takes, not what it may say.
constexpr size_t kMaxSourceBytes = size_t{64} << 10;
constexpr size_t kMaxVariables = 64;
constexpr int kMaxNesting = 64;
constexpr size_t kMaxShownBytes = 48;

std::string_view TrimLeft(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n\r");
  return begin == text.npos ? std::string_view() : text.substr(begin);
}
std::string_view TrimRight(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\n\r");
  return last == text.npos ? std::string_view() : text.substr(0, last + 1);
}

absl::Status Refuse(std::string_view what) {
  return absl::UnimplementedError(absl::StrCat("it ", std::string(what)));
}

struct Part {
  enum class Kind { kText, kOutput, kTag };
  Kind kind;
  std::string_view text;  // what is written, or the code between the braces
};

// Cuts a program into its parts and takes white space away as transformers' settings ask
// (trim_blocks, lstrip_blocks) and as minus signs do. Comments are left out.
absl::StatusOr<std::vector<Part>> CutTemplate(std::string_view source) {
  std::vector<Part> parts;
  bool strip_next = false;    // after "-%}"
  bool newline_next = false;  // after a tag, whose line end is not written
  size_t i = 0;
  while (i < source.size()) {
    size_t open = source.find('{', i);
    while (open != source.npos &&
           (open + 1 == source.size() ||
            std::string_view("{%#").find(source[open + 1]) == std::string_view::npos)) {
      open = source.find('{', open + 1);
    }
    std::string_view text = source.substr(i, open == source.npos ? open : open - i);
    if (strip_next) {
      text = TrimLeft(text);
    } else if (newline_next && text.starts_with('\n')) {
      text.remove_prefix(1);
    }
    if (open == source.npos) {
      if (!text.empty()) parts.push_back({Part::Kind::kText, text});
      break;
    }
    const char kind = source[open + 1];
    const bool strips = open + 2 < source.size() && source[open + 2] == '-';
    const bool keeps = open + 2 < source.size() && source[open + 2] == '+';
    if (strips) {
      text = TrimRight(text);
    } else if (kind != '{' && !keeps) {
      // Indentation in front of a tag is not written.
      const size_t last = text.find_last_not_of(" \t");
      const bool whole_line = last == text.npos
                                  ? text.data() == source.data() || *(text.data() - 1) == '\n'
                                  : text[last] == '\n';
      if (whole_line) text = text.substr(0, last == text.npos ? 0 : last + 1);
    }
    if (!text.empty()) parts.push_back({Part::Kind::kText, text});

    // The end of the braces, strings passed over.
    const char close = kind == '{' ? '}' : kind;
    const size_t begin = open + 2 + (strips || keeps ? 1 : 0);
    size_t end = begin;
    while (end < source.size() && !source.substr(end).starts_with(std::string{close, '}'})) {
      if (kind != '#' && (source[end] == '\'' || source[end] == '"')) {
        const char quote = source[end++];
        while (end < source.size() && source[end] != quote) end += source[end] == '\\' ? 2 : 1;
      }
      ++end;
    }
    if (end >= source.size()) return Refuse("ends inside of braces");
    strip_next = end > begin && source[end - 1] == '-';
    newline_next = kind != '{';
    if (kind != '#') {
      parts.push_back({kind == '{' ? Part::Kind::kOutput : Part::Kind::kTag,
                       source.substr(begin, end - begin - (strip_next ? 1 : 0))});
    }
    i = end + 2;
  }
  return parts;
}

// Walks the parts. Namespaces live on from one turn of a loop to the next, so their members are
// only complete after a first walk, and a second one takes the writes.
class Walk {
 public:
  Walk(std::vector<Part> parts, TemplateVariables variables)
      : parts_(std::move(parts)), initial_(std::move(variables)), variables_(initial_) {}

  absl::StatusOr<TemplateOutline> Run() {
    for (int turn = 0; turn < 2; ++turn) {
      TemplateVariables start = initial_;
      for (const auto& [name, value] : variables_) {
        if (IsMember(name)) start[name] = value;
      }
      variables_ = std::move(start);
      outline_ = {};
      next_ = 0;
      MNEME_RETURN_IF_ERROR(Block({}, /*taken=*/true));
    }
    return std::move(outline_);
  }

 private:
  static bool IsMember(std::string_view name) { return name.find('.') != name.npos; }

  absl::Status Unexpected() const {
    return Refuse(
        absl::StrCat("has {% ", ShowOutlineText(Code()), " %}, which this server cannot follow"));
  }

  // The tag at hand, and its first word.
  std::string_view Code() const { return TrimRight(TrimLeft(parts_[next_].text)); }
  std::string_view Word() const {
    std::string_view code = Code();
    return TakeTemplateToken(&code);
  }

  absl::StatusOr<TemplateValue> Evaluate(std::string_view code) {
    std::string_view rest = code;
    TemplateValue value;
    if (!EvaluateTemplateExpression(&rest, &variables_, &value) || !TrimLeft(rest).empty()) {
      return Refuse(absl::StrCat("has an expression that this server cannot follow: ",
                                 ShowOutlineText(TrimLeft(code))));
    }
    return value;
  }

  // Up to a tag that begins with one of `ends`, which is left at hand, or the end of the program.
  absl::Status Block(std::initializer_list<std::string_view> ends, bool taken) {
    if (++nesting_ > kMaxNesting) return Refuse("is nested too deeply");
    for (; next_ < parts_.size(); ++next_) {
      const Part& part = parts_[next_];
      if (part.kind == Part::Kind::kTag) {
        if (std::ranges::find(ends, Word()) != ends.end()) break;
        MNEME_RETURN_IF_ERROR(Tag(taken));
      } else if (taken) {
        MNEME_RETURN_IF_ERROR(part.kind == Part::Kind::kText ? Write({std::string(part.text)})
                                                             : Output(part.text));
      }
    }
    --nesting_;
    if (next_ == parts_.size() && ends.size() > 0) return Refuse("ends inside of a block");
    return absl::OkStatus();
  }

  absl::Status Tag(bool taken) {
    const std::string_view word = Word();
    if (word == "if") return If(taken);
    if (word == "for") return For(taken);
    if (word == "set") return Set(taken);
    if (word == "macro") return Macro();
    // transformers marks the assistant's part with it, for training.
    if (word == "generation" || word == "endgeneration") return absl::OkStatus();
    if (!taken) return absl::OkStatus();
    return Refuse(absl::StrCat("uses {% ", ShowOutlineText(word), " %}"));
  }

  absl::Status If(bool taken) {
    TemplateVariables after;  // what variables may be after any branch
    bool has_after = false;
    auto leave_branch = [&](TemplateVariables before) {
      if (has_after) {
        Merge(&after, variables_);
      } else {
        after = std::move(variables_);
        has_after = true;
      }
      variables_ = std::move(before);
    };
    Truth reached = taken ? Truth::kTrue : Truth::kFalse;  // whether this branch is looked at
    while (true) {
      std::string_view condition = Code();
      const std::string_view word = TakeTemplateToken(&condition);
      Truth holds = Truth::kTrue;
      if (word != "else" && reached != Truth::kFalse) {
        MNEME_ASSIGN_OR_RETURN(const TemplateValue value, Evaluate(condition));
        holds = TruthOf(value);
      }
      const bool enters = reached != Truth::kFalse && holds != Truth::kFalse;
      const bool is_certain = reached == Truth::kTrue && holds == Truth::kTrue;
      TemplateVariables before = variables_;
      if (enters && word != "else") Narrow(condition);
      if (enters && !is_certain) ++conditions_;
      ++next_;
      MNEME_RETURN_IF_ERROR(Block({"elif", "else", "endif"}, enters));
      if (enters && !is_certain) --conditions_;
      if (enters) {
        leave_branch(std::move(before));
        reached = holds == Truth::kTrue ? Truth::kFalse : Truth::kEither;
      }
      if (Word() == "endif") break;
    }
    if (reached != Truth::kFalse) leave_branch({});
    if (has_after) variables_ = std::move(after);
    return absl::OkStatus();
  }

  // Inside `if NAME`, `if NAME is defined` and `if NAME != nothing` the name is not what is false.
  void Narrow(std::string_view condition) {
    const std::string_view name = TakeTemplateToken(&condition);
    std::string member;
    std::string_view rest = condition;
    if (TakeTemplateToken(&rest) == ".") {
      member = std::string(TakeTemplateToken(&rest));
      condition = rest;
    }
    const std::string test(TrimRight(TrimLeft(condition)));
    static const auto& kTests = *new std::set<std::string, std::less<>>{
        "", "is defined", "is not none", "!= ''", "!= \"\"", "!= false", "!= none"};
    auto it = variables_.find(name);
    if (!member.empty() && it != variables_.end() && it->second.size() == 1) {
      it = variables_.find(absl::StrCat(it->second[0].text, ".", member));
    }
    if (it == variables_.end() || !kTests.contains(test)) return;
    TemplateValue left;
    for (const TemplateThing& thing : it->second) {
      if (TruthOf({thing}) != Truth::kFalse) left.push_back(thing);
    }
    if (!left.empty()) it->second = std::move(left);
  }

  absl::Status For(bool taken) {
    std::string_view code = Code();
    TakeTemplateToken(&code);
    std::vector<std::string> names;
    TemplateValue over = {{.kind = Kind::kUndefined}};
    bool filters = false;
    if (taken) {
      std::string_view token = ",";
      while (token == ",") {
        names.emplace_back(TakeTemplateToken(&code));
        token = TakeTemplateToken(&code);
      }
      if (token != "in") return Unexpected();
      // `for x in list if condition`: the condition is no part of the list.
      const size_t condition = code.rfind(" if ");
      filters = condition != code.npos;
      MNEME_ASSIGN_OR_RETURN(over, Evaluate(code.substr(0, condition)));
    }
    const Kind kind = over.size() == 1 ? over[0].kind : Kind::kUnknown;
    const bool empty = kind == Kind::kUndefined || kind == Kind::kNone;
    bool messages = !over.empty();
    for (const TemplateThing& thing : over) {
      messages &= thing.kind == Kind::kMessages || thing.kind == Kind::kLaterMessages;
    }
    const TemplateVariables before = variables_;
    const int outer_conditions = conditions_;
    const bool outer_loop = in_message_loop_;
    const size_t writes = outline_.writes.size();
    if (!empty) {
      for (const std::string& name : names) {
        variables_[name] = {{.kind = messages ? Kind::kMessage : Kind::kUnknown}};
      }
      variables_["loop"] = {TemplateThing{}};
      if (messages && !in_message_loop_) {
        in_message_loop_ = true;
        conditions_ = filters ? 1 : 0;
      } else {
        ++conditions_;
      }
    }
    ++next_;
    MNEME_RETURN_IF_ERROR(Block({"else", "endfor"}, taken && !empty));
    conditions_ = outer_conditions;
    in_message_loop_ = outer_loop;
    if (messages && outline_.writes.size() > writes) {
      outline_.skips_messages |= filters || std::ranges::any_of(over, [](const auto& thing) {
                                   return thing.kind == Kind::kLaterMessages;
                                 });
    }
    // What a loop sets is gone after it, but for members of namespaces.
    TemplateVariables after = before;
    for (const auto& [name, value] : variables_) {
      if (IsMember(name)) Unite(&after[name], value);
    }
    variables_ = std::move(after);
    if (Word() == "else") {
      ++next_;
      return Block({"endfor"}, taken && empty);
    }
    return absl::OkStatus();
  }

  absl::Status Set(bool taken) {
    std::string_view code = Code();
    TakeTemplateToken(&code);
    std::string name(TakeTemplateToken(&code));
    std::string_view token = TakeTemplateToken(&code);
    if (taken && token == ".") {
      const auto it = variables_.find(name);
      const bool is_namespace = it != variables_.end() && it->second.size() == 1 &&
                                it->second[0].kind == Kind::kNamespace;
      if (!is_namespace) return Unexpected();
      name = absl::StrCat(it->second[0].text, ".", std::string(TakeTemplateToken(&code)));
      token = TakeTemplateToken(&code);
    }
    if (token.empty()) {  // {% set name %} ... {% endset %}
      ++next_;
      MNEME_RETURN_IF_ERROR(Block({"endset"}, /*taken=*/false));
      if (taken) variables_[name] = {TemplateThing{}};
      return absl::OkStatus();
    }
    if (!taken) return absl::OkStatus();
    if (token != "=") return Unexpected();
    MNEME_ASSIGN_OR_RETURN(const TemplateValue value, Evaluate(code));
    if (IsMember(name)) {
      Unite(&variables_[name], value);
    } else {
      variables_[name] = value;
    }
    if (variables_.size() > kMaxVariables) return Refuse("has too many variables");
    return absl::OkStatus();
  }

  absl::Status Macro() {
    std::string_view code = Code();
    TakeTemplateToken(&code);
    variables_[std::string(TakeTemplateToken(&code))] = {TemplateThing{}};
    ++next_;
    return Block({"endmacro"}, /*taken=*/false);
  }

  absl::Status Output(std::string_view code) {
    MNEME_ASSIGN_OR_RETURN(const TemplateValue value, Evaluate(code));
    std::vector<std::string> alternatives;
    for (const TemplateThing& thing : value) {
      if (thing.kind == Kind::kUndefined) {
        alternatives.emplace_back();
      } else if (thing.kind == Kind::kText) {
        alternatives.push_back(thing.text);
      } else {
        return Refuse(absl::StrCat("writes ", ShowOutlineText(TrimRight(TrimLeft(code))),
                                   ", which is more than roles and contents"));
      }
    }
    return Write(std::move(alternatives));
  }

  absl::Status Write(std::vector<std::string> alternatives) {
    if (alternatives.size() == 1 && alternatives[0].empty()) return absl::OkStatus();
    outline_.writes.push_back({.alternatives = std::move(alternatives),
                               .is_conditional = conditions_ > 0,
                               .is_in_message_loop = in_message_loop_});
    return absl::OkStatus();
  }

  static void Merge(TemplateVariables* into, const TemplateVariables& other) {
    for (const auto& [name, value] : other) {
      if (!into->contains(name)) (*into)[name] = {{.kind = Kind::kUndefined}};
      Unite(&(*into)[name], value);
    }
    for (auto& [name, value] : *into) {
      if (!other.contains(name)) Unite(&value, {{.kind = Kind::kUndefined}});
    }
  }

  const std::vector<Part> parts_;
  const TemplateVariables initial_;
  TemplateVariables variables_;
  TemplateOutline outline_;
  size_t next_ = 0;
  int nesting_ = 0;
  int conditions_ = 0;  // that may fail, around the part at hand, inside of the loop over messages
  bool in_message_loop_ = false;
};

}  // namespace

absl::StatusOr<TemplateOutline> ReadTemplateOutline(std::string_view source, std::string_view bos,
                                                    std::string_view eos) {
  if (source.size() > kMaxSourceBytes) return Refuse("is too long to be followed");
  if (!IsValidUtf8(source)) return Refuse("is not valid UTF-8");
  if (std::ranges::any_of(source, [](char c) { return c >= 0 && c <= kTrimClose; })) {
    return Refuse("holds control characters");
  }
  MNEME_ASSIGN_OR_RETURN(std::vector<Part> parts, CutTemplate(source));
  auto text = [](std::string_view spelling) {
    return TemplateValue{{.kind = Kind::kText, .text = std::string(spelling)}};
  };
  const TemplateValue unknown = {TemplateThing{}};
  return Walk(std::move(parts), {{"messages", {{.kind = Kind::kMessages}}},
                                 {"add_generation_prompt", {{.kind = Kind::kTrue}}},
                                 {"tools", {{.kind = Kind::kNone}}},
                                 {"documents", {{.kind = Kind::kNone}}},
                                 {"bos_token", text(bos)},
                                 {"eos_token", text(eos)},
                                 {"unk_token", unknown},
                                 {"pad_token", unknown},
                                 {"additional_special_tokens", unknown}})
      .Run();
}

std::string ShowOutlineText(std::string_view text) {
  std::string shown;
  for (const char c : text) {
    if (shown.size() >= kMaxShownBytes) {
      shown.resize(shown.size() - UnfinishedUtf8Bytes(shown));
      return shown + "...";
    }
    switch (c) {
      case kRoleMark:
        shown += "ROLE";
        break;
      case kContentMark:
      case kAnswerMark:
        shown += "CONTENT";
        break;
      case kTrimOpen:
      case kTrimClose:
        break;
      case '\n':
        shown += "\\n";
        break;
      default:
        shown.push_back(c);
    }
  }
  return shown;
}

}  // namespace mneme::engine
