#include "engine/checkpoint/strict_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace mneme::engine {
namespace {

using nlohmann::json;

// Builds the document from nlohmann's events, so that every check happens before anything grows.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  explicit StrictBuilder(const JsonLimits& limits) : limits_(limits) {}

  json& root() { return root_; }
  const std::string& error() const { return error_; }

  bool null() override { return Add(json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return Add(json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t& text) override {
    return Add(json(value)) != nullptr;
  }
  bool string(string_t& value) override {
    return CheckString(value) && Add(json(std::move(value))) != nullptr;
  }
  bool binary(binary_t& value) override { return Fail("binary value"); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    if (!CheckString(value) || !Count()) return false;
    auto& object = open_.back()->get_ref<json::object_t&>();
    const auto [it, inserted] = object.emplace(value, nullptr);
    if (!inserted)
      return Fail(absl::StrCat("key \"", absl::CHexEscape(value.substr(0, 80)), "\" occurs twice"));
    slot_ = &it->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& e) override {
    // nlohmann's own text repeats the offending token, which may hold anything: only the place.
    return Fail(absl::StrCat("not valid JSON at byte ", position));
  }

 private:
  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }

  bool Count() {
    if (++num_values_ > limits_.max_values) {
      return Fail(absl::StrCat("more than ", limits_.max_values, " values"));
    }
    return true;
  }

  bool CheckString(const std::string& s) {
    if (s.size() <= limits_.max_string_bytes) return true;
    return Fail(absl::StrCat("a string of ", s.size(), " bytes, at most ", limits_.max_string_bytes,
                             " are allowed"));
  }

  json* Add(json value) {
    if (!Count()) return nullptr;
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      auto& array = open_.back()->get_ref<json::array_t&>();
      array.push_back(std::move(value));
      return &array.back();
    }
    *slot_ = std::move(value);
    return slot_;
  }

  bool Open(json value) {
    if (open_.size() >= limits_.max_depth) {
      return Fail(absl::StrCat("nested deeper than ", limits_.max_depth));
    }
    json* const added = Add(std::move(value));
    if (added == nullptr) return false;
    open_.push_back(added);
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  json root_;
  // The containers being filled, outermost first. Stable: a container's parent does not grow while
  // it is open.
  std::vector<json*> open_;
  json* slot_ = nullptr;  // where the value of the last key goes
  size_t num_values_ = 0;
  std::string error_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, std::string_view what,
                                               const JsonLimits& limits) {
  const auto refuse = [&](const std::string& message) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(what), ": ", message));
  };
  if (text.size() > limits.max_bytes) {
    return refuse(absl::StrCat("JSON of ", text.size(), " bytes, at most ", limits.max_bytes,
                               " are allowed"));
  }
  if (text.starts_with("\xEF\xBB\xBF")) return refuse("starts with a byte order mark");
  // nlohmann's lexer takes a NUL byte for the end of the text.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return refuse(absl::StrCat("NUL byte at byte ", at));
  }
  StrictBuilder builder(limits);
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return refuse(builder.error());
  return std::move(builder.root());
}

}  // namespace mneme::engine
