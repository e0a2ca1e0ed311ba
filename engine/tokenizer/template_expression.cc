#include "engine/tokenizer/template_expression.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <set>

namespace mneme::engine {
namespace {

using Thing = TemplateThing;
using Kind = TemplateThing::Kind;
using Value = TemplateValue;

constexpr size_t kMaxAlternatives = 16;
constexpr size_t kMaxTextBytes = 8192;
constexpr int kMaxDepth = 64;
constexpr std::string_view kThinkEnd = "</think>";

bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool IsNamePart(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool IsMark(char c) { return c >= kRoleMark && c <= kTrimClose; }

bool HasMarks(std::string_view text) { return std::ranges::any_of(text, IsMark); }

Value Known(bool truth) { return {{.kind = truth ? Kind::kTrue : Kind::kFalse}}; }
Value Known(Truth truth) {
  if (truth == Truth::kEither) return {Thing{}};
  return Known(truth == Truth::kTrue);
}
Value Text(std::string text) { return {{.kind = Kind::kText, .text = std::move(text)}}; }

Truth Not(Truth truth) {
  if (truth == Truth::kEither) return truth;
  return truth == Truth::kTrue ? Truth::kFalse : Truth::kTrue;
}

bool IsRole(std::string_view text) {
  return text == "system" || text == "user" || text == "assistant";
}

// The text of a string token, quotes and escapes undone.
std::string Unquote(std::string_view token) {
  std::string text;
  for (size_t i = 1; i + 1 < token.size(); ++i) {
    if (token[i] != '\\' || i + 2 >= token.size()) {
      text.push_back(token[i]);
      continue;
    }
    const char escaped = token[++i];
    text.push_back(escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped == 'r' ? '\r' : escaped);
  }
  return text;
}

Truth TruthOfThing(const Thing& thing) {
  switch (thing.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
    case Kind::kFalse:
      return Truth::kFalse;
    case Kind::kTrue:
    case Kind::kMessages:
    case Kind::kMessage:
    case Kind::kNamespace:
    case Kind::kMethod:
    case Kind::kParts:
    case Kind::kBuiltin:
      return Truth::kTrue;
    case Kind::kText:
      if (thing.text.empty()) return Truth::kFalse;
      if (thing.text.find(kRoleMark) != std::string::npos) return Truth::kTrue;
      return std::ranges::all_of(thing.text, IsMark) ? Truth::kEither : Truth::kTrue;
    case Kind::kNumber:
      return thing.text == "0" ? Truth::kFalse : Truth::kTrue;
    case Kind::kList:
      return thing.items.empty() ? Truth::kFalse : Truth::kTrue;
    case Kind::kUnknown:
    case Kind::kLaterMessages:
      return Truth::kEither;
  }
  return Truth::kEither;
}

Truth Equal(const Thing& a, const Thing& b) {
  if (a.kind == Kind::kUnknown || b.kind == Kind::kUnknown) return Truth::kEither;
  if (a.kind == Kind::kText && b.kind == Kind::kText) {
    if (!HasMarks(a.text) && !HasMarks(b.text)) {
      return a.text == b.text ? Truth::kTrue : Truth::kFalse;
    }
    const std::string role(1, kRoleMark);
    if (a.text == role && !HasMarks(b.text) && !IsRole(b.text)) return Truth::kFalse;
    if (b.text == role && !HasMarks(a.text) && !IsRole(a.text)) return Truth::kFalse;
    return Truth::kEither;
  }
  auto is_constant = [](Kind kind) {
    return kind == Kind::kUndefined || kind == Kind::kNone || kind == Kind::kFalse ||
           kind == Kind::kTrue || kind == Kind::kText;
  };
  if (!is_constant(a.kind) || !is_constant(b.kind)) return Truth::kEither;
  return a.kind == b.kind ? Truth::kTrue : Truth::kFalse;
}

Truth Contains(const Thing& container, const Thing& item) {
  if (item.kind != Kind::kText) return Truth::kEither;
  if (container.kind == Kind::kMessage && !HasMarks(item.text)) {
    return item.text == "role" || item.text == "content" ? Truth::kTrue : Truth::kFalse;
  }
  if (container.kind == Kind::kList && item.text == std::string(1, kRoleMark) &&
      std::ranges::none_of(container.items, IsRole)) {
    return Truth::kFalse;
  }
  return Truth::kEither;
}

// What holds of all things that were looked at.
class Verdict {
 public:
  void Add(Truth truth) {
    may_hold_ |= truth != Truth::kFalse;
    may_fail_ |= truth != Truth::kTrue;
  }
  Truth truth() const {
    if (may_hold_ && may_fail_) return Truth::kEither;
    return may_hold_ ? Truth::kTrue : Truth::kFalse;
  }

 private:
  bool may_hold_ = false;
  bool may_fail_ = false;
};

template <typename Relation>
Truth OfPairs(const Value& a, const Value& b, Relation relation) {
  Verdict verdict;
  for (const Thing& x : a) {
    for (const Thing& y : b) verdict.Add(relation(x, y));
  }
  return verdict.truth();
}

// Texts put together. A text and anything that is no text make an error in Jinja, so such pairs do
// not count.
Value Concatenate(const Value& a, const Value& b) {
  Value out;
  for (const Thing& x : a) {
    for (const Thing& y : b) {
      if (x.kind == Kind::kText && y.kind == Kind::kText &&
          x.text.size() + y.text.size() <= kMaxTextBytes) {
        Unite(&out, Text(x.text + y.text));
      } else if (x.kind == y.kind || x.kind == Kind::kUnknown || y.kind == Kind::kUnknown) {
        Unite(&out, {Thing{}});
      }
    }
  }
  if (out.empty()) out.emplace_back();
  return out;
}

// `thing` is TEST.
Truth Is(const Thing& thing, std::string_view test) {
  if (thing.kind == Kind::kUnknown) return Truth::kEither;
  auto known = [](bool truth) { return truth ? Truth::kTrue : Truth::kFalse; };
  if (test == "defined") return known(thing.kind != Kind::kUndefined);
  if (test == "undefined") return known(thing.kind == Kind::kUndefined);
  if (test == "none") return known(thing.kind == Kind::kNone);
  if (test == "string") return known(thing.kind == Kind::kText);
  if (test == "mapping") return known(thing.kind == Kind::kMessage);
  if (test == "true") return known(thing.kind == Kind::kTrue);
  if (test == "false") return known(thing.kind == Kind::kFalse);
  if (test == "number") return known(thing.kind == Kind::kNumber);
  if (thing.kind == Kind::kText && test == "iterable") return Truth::kTrue;
  return Truth::kEither;
}

const std::set<std::string_view>& Builtins() {
  static const auto& names = *new std::set<std::string_view>{
      "namespace", "range", "dict", "cycler", "joiner", "raise_exception", "strftime_now"};
  return names;
}

class Evaluator {
 public:
  Evaluator(std::string_view code, TemplateVariables* variables)
      : code_(code), variables_(*variables) {}

  bool Run(Value* value) {
    *value = Conditional();
    return !failed_;
  }
  std::string_view rest() const { return code_; }

 private:
  std::string_view Peek() const {
    std::string_view code = code_;
    return TakeTemplateToken(&code);
  }
  bool Take(std::string_view token) {
    std::string_view code = code_;
    if (TakeTemplateToken(&code) != token) return false;
    code_ = code;
    return true;
  }
  void Expect(std::string_view token) {
    if (!Take(token)) failed_ = true;
  }
  Value Fail() {
    failed_ = true;
    return {Thing{}};
  }

  Value Conditional() {
    if (failed_ || ++depth_ > kMaxDepth) return Fail();
    Value value = Or();
    if (Take("if")) {
      const Truth truth = TruthOf(Or());
      const Value other = Take("else") ? Conditional() : Value{{.kind = Kind::kUndefined}};
      if (truth == Truth::kFalse) value = other;
      if (truth == Truth::kEither) Unite(&value, other);
    }
    --depth_;
    return value;
  }

  // As in Python, `or` and `and` give one of their sides.
  Value Or() {
    Value value = And();
    while (!failed_ && Take("or")) {
      const Value right = And();
      const Truth truth = TruthOf(value);
      if (truth == Truth::kFalse) value = right;
      if (truth == Truth::kEither) {
        value = TruthOf(right) == Truth::kTrue ? Known(true) : Value{Thing{}};
      }
    }
    return value;
  }

  Value And() {
    Value value = Negation();
    while (!failed_ && Take("and")) {
      const Value right = Negation();
      const Truth truth = TruthOf(value);
      if (truth == Truth::kTrue) value = right;
      if (truth == Truth::kEither) {
        value = TruthOf(right) == Truth::kFalse ? Known(false) : Value{Thing{}};
      }
    }
    return value;
  }

  Value Negation() {
    bool negated = false;
    while (Take("not")) negated = !negated;
    const Value value = Comparison();
    return negated ? Known(Not(TruthOf(value))) : value;
  }

  Value Comparison() {
    Value value = Sum();
    while (!failed_) {
      if (Take("==")) {
        value = Known(OfPairs(value, Sum(), Equal));
      } else if (Take("!=")) {
        value = Known(Not(OfPairs(value, Sum(), Equal)));
      } else if (Take("in")) {
        value = Known(OfPairs(Sum(), value, Contains));
      } else if (Peek() == "not") {
        Take("not");
        Expect("in");
        value = Known(Not(OfPairs(Sum(), value, Contains)));
      } else if (Take("<") || Take(">") || Take("<=") || Take(">=")) {
        Sum();
        value = {Thing{}};
      } else {
        break;
      }
    }
    return value;
  }

  Value Sum() {
    Value value = Product();
    while (!failed_) {
      if (Take("+") || Take("~")) {
        value = Concatenate(value, Product());
      } else if (Take("-")) {
        Product();
        value = {Thing{}};
      } else {
        break;
      }
    }
    return value;
  }

  Value Product() {
    Value value = Unary();
    while (!failed_ && (Take("*") || Take("/") || Take("//") || Take("%") || Take("**"))) {
      Unary();
      value = {Thing{}};
    }
    return value;
  }

  Value Unary() {
    if (!Take("-")) return Postfix();
    Value value = Postfix();
    if (value.size() != 1 || value[0].kind != Kind::kNumber) return {Thing{}};
    value[0].text.insert(value[0].text.begin(), '-');
    return value;
  }

  Value Postfix() {
    Value value = Primary();
    while (!failed_) {
      if (Take(".")) {
        value = Members(value, std::string(TakeName()));
      } else if (Take("[")) {
        value = Subscript(value);
      } else if (Take("(")) {
        value = Call(value);
      } else if (Take("|")) {
        value = Filter(value);
      } else if (Take("is")) {
        value = Test(value);
      } else {
        break;
      }
    }
    return value;
  }

  std::string_view TakeName() {
    const std::string_view name = TakeTemplateToken(&code_);
    if (name.empty() || !IsNameStart(name[0])) failed_ = true;
    return name;
  }

  Value Primary() {
    const std::string_view token = TakeTemplateToken(&code_);
    if (token.empty()) return Fail();
    if (token[0] == '\'' || token[0] == '"') {
      std::string text = Unquote(token);
      while (Peek().starts_with('\'') || Peek().starts_with('"')) {
        text += Unquote(TakeTemplateToken(&code_));
      }
      return Text(std::move(text));
    }
    if (std::isdigit(static_cast<unsigned char>(token[0])) != 0) {
      return {{.kind = Kind::kNumber, .text = std::string(token)}};
    }
    if (token == "(" || token == "[") return List(token == "(" ? ")" : "]");
    if (token == "{") return Fail();
    if (!IsNameStart(token[0])) return Fail();
    return Name(token);
  }

  Value Name(std::string_view name) const {
    if (name == "true" || name == "True") return Known(true);
    if (name == "false" || name == "False") return Known(false);
    if (name == "none" || name == "None") return {{.kind = Kind::kNone}};
    if (const auto it = variables_.find(name); it != variables_.end()) return it->second;
    if (Builtins().contains(name)) return {{.kind = Kind::kBuiltin, .text = std::string(name)}};
    return {{.kind = Kind::kUndefined}};
  }

  // What stands in brackets: one expression, or a list.
  Value List(std::string_view close) {
    Thing list{.kind = Kind::kList};
    bool is_list = close == "]";
    bool is_known = true;
    Value first;
    while (!failed_ && !Take(close)) {
      const Value item = Conditional();
      if (first.empty()) first = item;
      is_known &= item.size() == 1 && item[0].kind == Kind::kText;
      if (is_known) list.items.push_back(item[0].text);
      if (Take(",")) {
        is_list = true;
      } else {
        Expect(close);
        break;
      }
    }
    if (failed_) return Fail();
    if (!is_list && !first.empty()) return first;
    return is_known ? Value{list} : Value{Thing{}};
  }

  Value Members(const Value& value, const std::string& name) const {
    Value out;
    for (const Thing& thing : value) Unite(&out, Member(thing, name));
    return out;
  }

  Value Member(const Thing& thing, const std::string& name) const {
    switch (thing.kind) {
      case Kind::kMessage:
        if (name == "role") return Text(std::string(1, kRoleMark));
        if (name == "content") return Text(std::string(1, kContentMark));
        if (name == "get") return {{.kind = Kind::kMethod, .text = "", .items = {name}}};
        return {{.kind = Kind::kUndefined}};
      case Kind::kText:
        return {{.kind = Kind::kMethod, .text = thing.text, .items = {name}}};
      case Kind::kNamespace: {
        const auto it = variables_.find(thing.text + "." + name);
        return it == variables_.end() ? Value{{.kind = Kind::kUndefined}} : it->second;
      }
      case Kind::kUndefined:
      case Kind::kNone:
        return {{.kind = Kind::kUndefined}};
      default:
        return {Thing{}};
    }
  }

  // After "[".
  Value Subscript(const Value& value) {
    std::string slice[3];  // begin, end, step
    int parts = 0;
    Value index;
    while (!failed_ && !Take("]")) {
      if (Take(":")) {
        if (++parts > 2) return Fail();
        continue;
      }
      index = Conditional();
      slice[parts] = index.size() == 1 && index[0].kind == Kind::kNumber ? index[0].text : "?";
    }
    if (failed_ || (parts == 0 && index.empty())) return Fail();
    const bool from_start = slice[0].empty() || slice[0] == "0";
    const bool to_end = slice[1].empty() && (slice[2].empty() || slice[2] == "1");
    Value out;
    for (const Thing& thing : value) {
      const bool messages = thing.kind == Kind::kMessages || thing.kind == Kind::kLaterMessages;
      if (parts == 0 && index.size() == 1 && index[0].kind == Kind::kText) {
        Unite(&out, Member(thing, index[0].text));
      } else if (parts == 0 && messages) {
        Unite(&out, {{.kind = Kind::kMessage}});
      } else if (thing.kind == Kind::kUndefined || (messages && from_start && to_end)) {
        Unite(&out, {thing});
      } else if (messages && slice[0] == "1" && to_end) {
        Unite(&out, {{.kind = Kind::kLaterMessages}});
      } else if (parts == 0 && thing.kind == Kind::kParts && slice[0] == "-1") {
        Unite(&out, Text(std::string(1, kAnswerMark)));
      } else {
        Unite(&out, {Thing{}});
      }
    }
    return out;
  }

  struct Arguments {
    std::vector<Value> values;
    std::map<std::string, Value> named;
  };

  // After "(".
  Arguments TakeArguments() {
    Arguments arguments;
    while (!failed_ && !Take(")")) {
      std::string_view code = code_;
      const std::string name(TakeTemplateToken(&code));
      if (!name.empty() && IsNameStart(name[0]) && TakeTemplateToken(&code) == "=") {
        code_ = code;
        arguments.named[name] = Conditional();
      } else {
        arguments.values.push_back(Conditional());
      }
      if (!Take(",")) {
        Expect(")");
        break;
      }
    }
    return arguments;
  }

  Value Call(const Value& function) {
    const Arguments arguments = TakeArguments();
    Value out;
    for (const Thing& callee : function) Unite(&out, CallOne(callee, arguments));
    return out;
  }

  Value CallOne(const Thing& callee, const Arguments& arguments) {
    if (callee.kind == Kind::kBuiltin && callee.text == "raise_exception") return Text("");
    if (callee.kind == Kind::kBuiltin && callee.text == "namespace") {
      // Its place in the program tells one namespace from another.
      const std::string id =
          "namespace " + std::to_string(reinterpret_cast<uintptr_t>(code_.data()));
      for (const auto& [name, value] : arguments.named) Unite(&variables_[id + "." + name], value);
      return {{.kind = Kind::kNamespace, .text = id}};
    }
    if (callee.kind != Kind::kMethod) return {Thing{}};
    const std::string& method = callee.items[0];
    const bool one = arguments.values.size() == 1 && arguments.values[0].size() == 1 &&
                     arguments.values[0][0].kind == Kind::kText && arguments.named.empty();
    const std::string argument = one ? arguments.values[0][0].text : "";
    if (method == "strip" && arguments.values.empty()) return Text(TrimmedText(callee.text));
    if (method == "split" && argument == kThinkEnd && callee.text == kContent) {
      return {{.kind = Kind::kParts}};
    }
    if (method == "get" && one) return Member({.kind = Kind::kMessage}, argument);
    return {Thing{}};
  }

  // After "|".
  Value Filter(const Value& value) {
    const std::string name(TakeName());
    Arguments arguments;
    if (Take("(")) arguments = TakeArguments();
    Value out;
    for (const Thing& thing : value) {
      if (name == "trim" && thing.kind == Kind::kText && arguments.values.empty()) {
        Unite(&out, Text(TrimmedText(thing.text)));
      } else if ((name == "default" || name == "d") && !arguments.values.empty()) {
        Unite(&out, thing.kind == Kind::kUndefined ? arguments.values[0] : Value{thing});
      } else {
        Unite(&out, {Thing{}});
      }
    }
    return out;
  }

  // After "is".
  Value Test(const Value& value) {
    const bool negated = Take("not");
    const std::string name(TakeName());
    if (Take("(")) TakeArguments();
    Verdict verdict;
    for (const Thing& thing : value) verdict.Add(Is(thing, name));
    return Known(negated ? Not(verdict.truth()) : verdict.truth());
  }

  std::string_view code_;
  TemplateVariables& variables_;
  int depth_ = 0;
  bool failed_ = false;
};

}  // namespace

std::string TrimmedText(const std::string& text) {
  if (text == std::string(1, kRoleMark)) return text;
  if (HasMarks(text)) return kTrimOpen + text + kTrimClose;
  const size_t begin = text.find_first_not_of(" \t\n\r\f\v");
  if (begin == text.npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\n\r\f\v") + 1 - begin);
}

Truth TruthOf(const TemplateValue& value) {
  Verdict verdict;
  for (const Thing& thing : value) verdict.Add(TruthOfThing(thing));
  return verdict.truth();
}

void Unite(TemplateValue* value, const TemplateValue& other) {
  for (const Thing& thing : other) {
    if (std::ranges::find(*value, thing) == value->end()) value->push_back(thing);
  }
  if (value->size() > kMaxAlternatives) *value = {Thing{}};
}

std::string_view TakeTemplateToken(std::string_view* code) {
  while (!code->empty() && std::isspace(static_cast<unsigned char>(code->front())) != 0) {
    code->remove_prefix(1);
  }
  if (code->empty()) return {};
  size_t size = 1;
  const char first = code->front();
  if (first == '\'' || first == '"') {
    while (size < code->size() && (*code)[size] != first) size += (*code)[size] == '\\' ? 2 : 1;
    size = std::min(size + 1, code->size());
  } else if (IsNamePart(first)) {
    while (size < code->size() && IsNamePart((*code)[size])) ++size;
  } else {
    for (const std::string_view wide : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (code->starts_with(wide)) size = wide.size();
    }
  }
  const std::string_view token = code->substr(0, size);
  code->remove_prefix(size);
  return token;
}

bool EvaluateTemplateExpression(std::string_view* code, TemplateVariables* variables,
                                TemplateValue* value) {
  Evaluator evaluator(*code, variables);
  const bool ok = evaluator.Run(value);
  *code = evaluator.rest();
  return ok;
}

}  // namespace mneme::engine
