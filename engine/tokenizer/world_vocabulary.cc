// The two written forms of a World vocabulary.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/world_tokenizer.h"

namespace mneme::engine {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Exactly `digits` hexadecimal digits at the front of `text`, which are removed; -1 otherwise.
int64_t TakeHex(std::string_view* text, size_t digits) {
  if (text->size() < digits) return -1;
  int64_t value = 0;
  for (size_t i = 0; i < digits; ++i) {
    const int digit = HexDigit((*text)[i]);
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  text->remove_prefix(digits);
  return value;
}

// A plain decimal number below 10^9; -1 otherwise.
int64_t ParseNumber(std::string_view text) {
  if (text.empty() || text.size() > 9 || (text.size() > 1 && text[0] == '0')) return -1;
  int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return -1;
    value = value * 10 + (c - '0');
  }
  return value;
}

absl::Status Bad(std::string_view what) { return absl::InvalidArgumentError(std::string(what)); }

// The bytes of a Python literal as repr() writes it: 'text', "text", b'bytes' or b"bytes".
absl::StatusOr<std::string> ParseLiteral(std::string_view literal) {
  const bool is_bytes = literal.starts_with('b');
  if (is_bytes) literal.remove_prefix(1);
  if (literal.size() < 2 || (literal.front() != '\'' && literal.front() != '"') ||
      literal.back() != literal.front()) {
    return Bad("no Python literal in quotes");
  }
  const char quote = literal.front();
  std::string_view rest = literal.substr(1, literal.size() - 2);
  std::string out;
  while (!rest.empty()) {
    const char c = rest.front();
    rest.remove_prefix(1);
    if (c == quote) return Bad("a quote inside the literal");
    if (c != '\\') {
      if (static_cast<unsigned char>(c) < 0x20) return Bad("a control character in the literal");
      if (is_bytes && static_cast<unsigned char>(c) >= 0x7F) {
        return Bad("a byte outside of ASCII in a bytes literal");
      }
      out.push_back(c);
      continue;
    }
    if (rest.empty()) return Bad("a literal that ends with a backslash");
    const char escape = rest.front();
    rest.remove_prefix(1);
    switch (escape) {
      case 'n':
        out.push_back('\n');
        continue;
      case 't':
        out.push_back('\t');
        continue;
      case 'r':
        out.push_back('\r');
        continue;
      case '\\':
      case '\'':
      case '"':
        out.push_back(escape);
        continue;
      default:
        break;
    }
    const size_t digits = escape == 'x' ? 2 : escape == 'u' ? 4 : escape == 'U' ? 8 : 0;
    if (digits == 0 || (is_bytes && escape != 'x')) {
      return Bad(absl::StrCat("the escape \\", std::string(1, escape),
                              ", which Python's repr() does not write here"));
    }
    const int64_t value = TakeHex(&rest, digits);
    if (value < 0) {
      return Bad(absl::StrCat("the escape \\", std::string(1, escape), " without its ", digits,
                              " hexadecimal digits"));
    }
    if (is_bytes) {
      out.push_back(static_cast<char>(value));
      continue;
    }
    // In text \xHH is a code point.
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      return Bad("an escape that is no Unicode character");
    }
    AppendUtf8(static_cast<char32_t>(value), &out);
  }
  if (!is_bytes && !IsValidUtf8(out)) return Bad("text that is not valid UTF-8");
  return out;
}

// What stands behind "line 7 has ...".
absl::Status ParseLine(std::string_view line, int64_t vocab_size, WorldVocabulary* vocabulary) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == line.npos || first == last) return Bad("no id, literal and length");
  const int64_t id = ParseNumber(line.substr(0, first));
  if (id < 1 || id >= vocab_size) {
    return Bad(absl::StrCat("no id from 1 to ", vocab_size - 1, " (the model's embedding rows)"));
  }
  const int64_t length = ParseNumber(line.substr(last + 1));
  if (length < 1) return Bad("no length");
  MNEME_ASSIGN_OR_RETURN(std::string piece, ParseLiteral(line.substr(first + 1, last - first - 1)));
  if (piece.size() != static_cast<uint64_t>(length)) {
    return Bad(absl::StrCat("a literal of ", piece.size(), " bytes and the length ", length));
  }
  const auto index = static_cast<size_t>(id);
  if (index >= vocabulary->pieces.size()) {
    vocabulary->pieces.resize(index + 1);
    vocabulary->types.resize(index + 1, PieceType::kUnused);
  }
  if (vocabulary->types[index] != PieceType::kUnused) {
    return Bad(absl::StrCat("the id ", id, ", which an earlier line has too"));
  }
  vocabulary->pieces[index] = std::move(piece);
  vocabulary->types[index] = PieceType::kNormal;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WorldVocabulary> ReadWorldVocabulary(std::string_view text, int64_t vocab_size) {
  WorldVocabulary vocabulary;
  vocabulary.pieces = {std::string(kWorldEndOfDocument)};
  vocabulary.types = {PieceType::kControl};
  vocabulary.special.bos = vocabulary.special.eos = 0;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const absl::Status status = ParseLine(line, vocab_size, &vocabulary);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, " has ", status.message()));
    }
  }
  return vocabulary;
}

absl::StatusOr<std::string> UnescapeWorldPiece(std::string_view escaped) {
  std::string out;
  while (!escaped.empty()) {
    const char c = escaped.front();
    escaped.remove_prefix(1);
    if (c != '\\') {
      out.push_back(c);
      continue;
    }
    if (escaped.empty()) return Bad("ends with a backslash");
    const char escape = escaped.front();
    escaped.remove_prefix(1);
    if (escape != 'x') {
      out.push_back(escape == 't' ? '\t' : escape == 'n' ? '\n' : escape == 'r' ? '\r' : escape);
      continue;
    }
    const int64_t value = TakeHex(&escaped, 2);
    if (value < 0) return Bad("has \\x without two hexadecimal digits");
    out.push_back(static_cast<char>(value));
  }
  return out;
}

}  // namespace mneme::engine
