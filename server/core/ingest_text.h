// Cuts a streamed text into pieces that can be tokenised one by one.
//
// The tokens depend on the text alone, never on how it arrived: pieces end where the tokenizer says
// that a cut changes nothing. A run without such a place is cut kMaxRunBytes after its start, at a
// UTF-8 boundary, so memory stays bounded. To make that rule independent of the frames too, the
// tokenizer is never shown more than kMaxRunBytes at once.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/tokenizer/tokenizer.h"

namespace mneme::server {

class IngestText {
 public:
  static constexpr size_t kMaxRunBytes = 64 << 10;
  // Pieces are no longer than this where the text allows it: progress and commits happen between
  // pieces.
  static constexpr size_t kPieceBytes = 2 << 10;

  // `offset`: of the first byte that will come, in the whole text; a place where a piece ended.
  IngestText(const engine::Tokenizer& tokenizer, int64_t offset)
      : tokenizer_(tokenizer), consumed_(offset) {}

  // Offset in the whole text of the first byte that is not UTF-8, if there is one; the bytes before
  // it have been taken.
  std::optional<int64_t> Append(std::string_view bytes);
  // The next piece, "" if more text is needed. With `last` everything is handed out, and the text
  // must not end inside a character (see unfinished()).
  std::string NextPiece(bool last);

  // NextPiece looks through a short text again although little was added: nothing more may come.
  void LookAgain() { looked_at_ = 0; }

  bool unfinished() const { return !partial_.empty(); }
  int64_t received_bytes() const {
    return consumed_ + static_cast<int64_t>(text_.size() - begin_ + partial_.size());
  }
  // Where the pieces handed out end.
  int64_t consumed_bytes() const { return consumed_; }

 private:
  const engine::Tokenizer& tokenizer_;
  std::string text_;  // whole UTF-8; pieces before begin_ were handed out
  size_t begin_ = 0;
  size_t looked_at_ = 0;  // bytes from begin_ in which no cut was found
  std::string partial_;   // an unfinished character
  int64_t consumed_;
};

}  // namespace mneme::server
