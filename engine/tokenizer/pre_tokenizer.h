// Splits text into the pieces that byte-level BPE then merges inside: words, numbers, punctuation,
// runs of whitespace. One pattern per family of models, run by PCRE2 (std::regex has neither
// Unicode classes nor a bound on its recursion).
#pragma once

#include <memory>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace mneme::engine {

enum class PreTokenizerKind {
  kGpt2,    // GPT-2, GPT-NeoX
  kLlama3,  // numbers in groups of up to three
  kQwen2,   // as Llama 3, single digits
  kSmollm,  // every digit first cut out by itself, GPT-2's pattern between them
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<const PreTokenizer>> Create(PreTokenizerKind kind);

  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;
  ~PreTokenizer();

  // Calls `emit` with consecutive parts of `text`, which is valid UTF-8; together they are the
  // text. RESOURCE_EXHAUSTED if the pattern needs more than kMatchLimit steps for one piece (tens
  // of millions of whitespace characters in a row); some parts have been emitted then.
  absl::Status Split(std::string_view text, absl::FunctionRef<void(std::string_view)> emit) const;

  // Whether every text splits at `offset`, and its two parts split as they do inside the whole. The
  // answer may be false for such a place, never true for another.
  bool CutIsSafe(std::string_view text, size_t offset) const;

 private:
  struct Pcre;

  PreTokenizer(PreTokenizerKind kind, std::unique_ptr<Pcre> pcre);

  const PreTokenizerKind kind_;
  const std::unique_ptr<Pcre> pcre_;
};

}  // namespace mneme::engine
