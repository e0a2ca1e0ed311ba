#include "server/core/session_filter.h"

#include <cctype>

#include "engine/core/utf8.h"
#include "server/core/errors.h"
#include "server/core/session_names.h"

namespace mneme::server {
namespace {

constexpr size_t kMaxFilterBytes = 2048;

absl::Status Bad(std::string expected) {
  FieldErrors errors;
  errors.Add("filter", std::move(expected));
  return errors.ToStatus();
}

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool AtEnd() {
    while (!text_.empty() && std::isspace(static_cast<unsigned char>(text_.front()))) {
      text_.remove_prefix(1);
    }
    return text_.empty();
  }
  bool Take(char c) {
    if (AtEnd() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  // A run of letters, digits and "._-/", or a string in double quotes (with \" and \\).
  bool Word(std::string& out, bool& quoted) {
    out.clear();
    quoted = false;
    if (AtEnd()) return false;
    if (text_.front() == '"') {
      quoted = true;
      text_.remove_prefix(1);
      while (!text_.empty() && text_.front() != '"') {
        if (text_.front() == '\\' && text_.size() > 1) text_.remove_prefix(1);
        out += text_.front();
        text_.remove_prefix(1);
      }
      if (text_.empty()) return false;
      text_.remove_prefix(1);
      return true;
    }
    while (!text_.empty()) {
      const unsigned char c = static_cast<unsigned char>(text_.front());
      if (!std::isalnum(c) && c != '.' && c != '_' && c != '-' && c != '/' && c < 0x80) break;
      out += text_.front();
      text_.remove_prefix(1);
    }
    return !out.empty();
  }

 private:
  std::string_view text_;
};

}  // namespace

absl::StatusOr<SessionFilter> SessionFilter::Parse(std::string_view text) {
  if (text.size() > kMaxFilterBytes) return Bad("must have at most 2048 bytes");
  if (!engine::IsValidUtf8(text)) return Bad("must be UTF-8");
  SessionFilter filter;
  Scanner scanner(text);
  bool first = true;
  bool quoted;
  while (!scanner.AtEnd()) {
    std::string word;
    if (!first && (!scanner.Word(word, quoted) || quoted || word != "AND")) {
      return Bad("must join its terms by AND");
    }
    first = false;
    Term term;
    std::string key;
    if (!scanner.Word(key, quoted) || quoted || !scanner.Take('=') ||
        !scanner.Word(term.value, quoted)) {
      return Bad("must consist of terms like state = ACTIVE or labels.key = \"value\"");
    }
    if (key == "state") {
      term.kind = Term::Kind::kState;
      if (!v1::Session::State_Parse(term.value, &term.state)) {
        return Bad("compares state with a value that is none of its own");
      }
    } else if (key == "model") {
      term.kind = Term::Kind::kModel;
      term.value = FullModelName(term.value);
    } else if (key.starts_with("labels.") && key.size() > 7) {
      term.kind = Term::Kind::kLabel;
      term.key = key.substr(7);
    } else {
      return Bad("can compare state, model and labels.{key} only");
    }
    filter.terms_.push_back(std::move(term));
  }
  return filter;
}

bool SessionFilter::Matches(const v1::Session& session) const {
  for (const Term& term : terms_) {
    switch (term.kind) {
      case Term::Kind::kState:
        if (session.state() != term.state) return false;
        break;
      case Term::Kind::kModel:
        if (session.model() != term.value) return false;
        break;
      case Term::Kind::kLabel: {
        const auto found = session.labels().find(term.key);
        if (found == session.labels().end() || found->second != term.value) return false;
        break;
      }
    }
  }
  return true;
}

}  // namespace mneme::server
