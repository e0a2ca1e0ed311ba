// Text <-> token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme::engine {

class Checkpoint;

using TokenId = int32_t;

struct SpecialTokens {
  TokenId bos = -1;  // -1: none
  TokenId eos = -1;
  TokenId unk = -1;
  TokenId pad = -1;
  bool add_bos = false;                    // whether the model wants BOS at position 0
  std::vector<TokenId> end_of_generation;  // eos, end of turn, end of message; ascending, unique
};

// Immutable and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads the tokenizer that the checkpoint carries: GGUF metadata, or tokenizer.json,
  // tokenizer.model or RWKV's World vocabulary beside a safetensors file. `vocab_size` is the
  // number of embedding rows; ids never reach it. UNIMPLEMENTED names a tokenizer or pre-tokenizer
  // kind that is not supported.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Create(const Checkpoint& checkpoint,
                                                                 int64_t vocab_size);

  // `text` must be valid UTF-8 (INVALID_ARGUMENT otherwise; the raw byte tokenizer takes any
  // bytes). Never adds BOS. With parse_special false, text that looks like a control token is
  // ordinary text. `at_start`: whether the text begins a document (SentencePiece's leading space
  // depends on it).
  virtual absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text, bool parse_special,
                                                      bool at_start) const = 0;

  // The bytes of one token, as they appear in the middle of a text; may be part of a UTF-8
  // sequence. Control tokens have no bytes unless `show_special`. `id` must be in [0, vocab_size).
  virtual std::string TokenBytes(TokenId id, bool show_special = false) const = 0;
  // Concatenation of TokenBytes; SentencePiece drops one leading space when `at_start`.
  std::string Decode(std::span<const TokenId> ids, bool at_start = true) const;

  virtual int64_t vocab_size() const = 0;
  virtual const SpecialTokens& special() const = 0;
  // Id of a piece by its exact spelling ("<|im_start|>"), or -1.
  virtual TokenId FindPiece(std::string_view piece) const = 0;
  virtual std::string_view kind() const = 0;  // "bpe", "spm", "sentencepiece", "world", "bytes"

  // Where a streamed text can be cut so that encoding the parts equals encoding the whole: the
  // length of the longest prefix of `text` that ends at such a place, 0 if none is found. A prefix
  // that ends inside a UTF-8 sequence is never returned, nor (but by raw bytes and World) one that
  // ends inside a word. `text` may end inside a UTF-8 sequence.
  virtual size_t SafeSplit(std::string_view text) const = 0;

 protected:
  // Whether Decode drops one leading space at the start of a text.
  virtual bool drops_leading_space() const { return false; }
};

}  // namespace mneme::engine
