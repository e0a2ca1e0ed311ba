// What a Jinja expression of a chat template may be, found out without running the template.
//
// Only what a plain conversation gives a template has a value: messages of a role and a content,
// the spellings of BOS and EOS, add_generation_prompt. Tools, documents and every name that nobody
// sets are absent, as in transformers' apply_chat_template() without further arguments.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::engine {

// Stand for a message's fields in texts. No template may hold these characters itself.
inline constexpr char kRoleMark = '\x01';
inline constexpr char kContentMark = '\x02';
inline constexpr char kAnswerMark = '\x03';  // the content after its last "</think>"
inline constexpr char kTrimOpen = '\x04';    // what follows, up to kTrimClose, is stripped of space
inline constexpr char kTrimClose = '\x05';
// A content and an answer as they are, and without white space at their ends.
inline constexpr std::string_view kContent = "\x02";
inline constexpr std::string_view kTrimmedContent = "\x04\x02\x05";
inline constexpr std::string_view kAnswer = "\x03";
inline constexpr std::string_view kTrimmedAnswer = "\x04\x03\x05";

// `text` without white space at its ends.
std::string TrimmedText(const std::string& text);

// One thing that an expression may be.
struct TemplateThing {
  enum class Kind {
    kUnknown,
    kUndefined,
    kNone,
    kFalse,
    kTrue,
    kNumber,  // `text` spells it
    kText,
    kList,           // of the texts in `items`
    kMessages,       // all of the conversation
    kLaterMessages,  // all but the first, or only some
    kMessage,
    kNamespace,  // its members are the variables "NAME.member", where `text` is NAME
    kMethod,     // `text` is of what, `items` holds the name
    kParts,      // the content, split at "</think>"
    kBuiltin,    // `text` is the name
  };
  Kind kind = Kind::kUnknown;
  std::string text;
  std::vector<std::string> items;

  bool operator==(const TemplateThing&) const = default;
};

// All that an expression may be; never empty.
using TemplateValue = std::vector<TemplateThing>;
using TemplateVariables = std::map<std::string, TemplateValue, std::less<>>;

enum class Truth { kFalse, kTrue, kEither };

Truth TruthOf(const TemplateValue& value);

// Adds to `value` what `other` may be and it may not yet; a value that may be too much is unknown.
void Unite(TemplateValue* value, const TemplateValue& other);

// The word, string or operator that begins `code` after white space, "" at the end. Removes both.
std::string_view TakeTemplateToken(std::string_view* code);

// Evaluates one expression at the start of `*code` and removes it. Members that namespace(...) sets
// are put into `variables`. False if this is no expression that can be followed.
bool EvaluateTemplateExpression(std::string_view* code, TemplateVariables* variables,
                                TemplateValue* value);

}  // namespace mneme::engine
