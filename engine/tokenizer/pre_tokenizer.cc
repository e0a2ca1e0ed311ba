#include "engine/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/tokenizer/white_space.h"

namespace mneme::engine {
namespace {

constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

// White_Space, spelled out: PCRE2's \s also takes U+180E, which stopped being a space in Unicode
// 6.3.
#define WS                                                                            \
  R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f})" \
  R"(\x{205f}\x{3000})"

constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d)"
    R"(|[ ]?\p{L}+|[ ]?\p{N}+|[ ]?[^)" WS R"(\p{L}\p{N}]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS "]+";

#define LLAMA3_LIKE(digits)                                                          \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" digits R"(|[ ]?[^)" WS \
  R"(\p{L}\p{N}]+[\r\n]*|[)" WS R"(]*[\r\n]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS "]+"

constexpr char kLlama3[] = LLAMA3_LIKE(R"(\p{N}{1,3})");
constexpr char kQwen2[] = LLAMA3_LIKE(R"(\p{N})");

#undef LLAMA3_LIKE
#undef WS

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
using Code = std::unique_ptr<pcre2_code, CodeDeleter>;

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using MatchData = std::unique_ptr<pcre2_match_data, MatchDataDeleter>;

struct MatchContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
using MatchContext = std::unique_ptr<pcre2_match_context, MatchContextDeleter>;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

absl::StatusOr<Code> Compile(const char* pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (code == nullptr) {
    return absl::InternalError(
        absl::StrCat("pre-tokenizer pattern, offset ", offset, ": ", ErrorText(error)));
  }
  // Optional: without executable memory PCRE2 interprets, some five times slower.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

}  // namespace

struct PreTokenizer::Pcre {
  Code code;
  Code digit;  // only for kSmollm
  MatchContext context;

  // Splits text[begin, end) as if it were a text of its own.
  absl::Status SplitRange(std::string_view text, size_t begin, size_t end, pcre2_match_data* data,
                          absl::FunctionRef<void(std::string_view)> emit) const {
    while (begin < end) {
      const int rc = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), end, begin,
                                 PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, data, context.get());
      size_t next;
      if (rc > 0) {
        next = pcre2_get_ovector_pointer(data)[1];
      } else if (rc == PCRE2_ERROR_NOMATCH) {
        next = begin;
      } else {
        return absl::ResourceExhaustedError(absl::StrCat("pre-tokenizer: ", ErrorText(rc)));
      }
      // The patterns match at every place; should one not, a code point goes by itself.
      if (next <= begin) next = std::min(end, begin + DecodeUtf8(text.substr(begin)).size_bytes);
      emit(text.substr(begin, next - begin));
      begin = next;
    }
    return absl::OkStatus();
  }
};

PreTokenizer::PreTokenizer(PreTokenizerKind kind, std::unique_ptr<Pcre> pcre)
    : kind_(kind), pcre_(std::move(pcre)) {}

PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<const PreTokenizer>> PreTokenizer::Create(PreTokenizerKind kind) {
  auto pcre = std::make_unique<Pcre>();
  const char* pattern = kind == PreTokenizerKind::kLlama3  ? kLlama3
                        : kind == PreTokenizerKind::kQwen2 ? kQwen2
                                                           : kGpt2;
  MNEME_ASSIGN_OR_RETURN(pcre->code, Compile(pattern));
  if (kind == PreTokenizerKind::kSmollm) {
    MNEME_ASSIGN_OR_RETURN(pcre->digit, Compile(R"(\p{N})"));
  }
  pcre->context.reset(pcre2_match_context_create(nullptr));
  if (pcre->context == nullptr) return absl::ResourceExhaustedError("pre-tokenizer: no memory");
  pcre2_set_match_limit(pcre->context.get(), kMatchLimit);
  pcre2_set_heap_limit(pcre->context.get(), kHeapLimitKib);
  return std::unique_ptr<const PreTokenizer>(new PreTokenizer(kind, std::move(pcre)));
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 absl::FunctionRef<void(std::string_view)> emit) const {
  if (text.empty()) return absl::OkStatus();
  MatchData data(pcre2_match_data_create(1, nullptr));
  if (data == nullptr) return absl::ResourceExhaustedError("pre-tokenizer: no memory");
  if (kind_ != PreTokenizerKind::kSmollm) {
    return pcre_->SplitRange(text, 0, text.size(), data.get(), emit);
  }
  size_t begin = 0;
  while (begin < text.size()) {
    const int rc =
        pcre2_match(pcre_->digit.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    begin, PCRE2_NO_UTF_CHECK, data.get(), pcre_->context.get());
    if (rc == PCRE2_ERROR_NOMATCH) {
      return pcre_->SplitRange(text, begin, text.size(), data.get(), emit);
    }
    if (rc < 0) return absl::ResourceExhaustedError(absl::StrCat("pre-tokenizer: ", ErrorText(rc)));
    const size_t digit = pcre2_get_ovector_pointer(data.get())[0];
    const size_t after = pcre2_get_ovector_pointer(data.get())[1];
    MNEME_RETURN_IF_ERROR(pcre_->SplitRange(text, begin, digit, data.get(), emit));
    emit(text.substr(digit, after - digit));
    begin = after;
  }
  return absl::OkStatus();
}

// In every pattern whitespace follows a character that is no whitespace in one place only: Llama
// 3's and Qwen 2's line breaks after punctuation. Everywhere else a piece ends before the
// whitespace, whatever follows it; no pattern looks behind; and the only look-ahead concerns a run
// of whitespace, which the first part does not end with.
bool PreTokenizer::CutIsSafe(std::string_view text, size_t offset) const {
  if (offset == 0 || offset >= text.size()) return false;
  const char here = text[offset];
  if (here != ' ' && !(here >= '\t' && here <= '\r')) return false;
  const auto [kind, size, last] = DecodeLastUtf8(text.substr(0, offset));
  if (kind != Utf8Character::Kind::kWhole || IsWhiteSpace(last)) return false;
  if (kind_ == PreTokenizerKind::kGpt2 || kind_ == PreTokenizerKind::kSmollm) return true;
  const bool word =
      (last >= '0' && last <= '9') || (last >= 'A' && last <= 'Z') || (last >= 'a' && last <= 'z');
  return word || (here != '\r' && here != '\n');
}

}  // namespace mneme::engine
