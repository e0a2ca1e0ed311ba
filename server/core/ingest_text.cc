#include "server/core/ingest_text.h"

#include "engine/core/utf8.h"

namespace mneme::server {

std::optional<int64_t> IngestText::Append(std::string_view bytes) {
  text_.erase(0, begin_);
  begin_ = 0;
  partial_.append(bytes);
  const size_t valid = engine::ValidUtf8Bytes(partial_);
  text_.append(partial_, 0, valid);
  partial_.erase(0, valid);
  if (engine::UnfinishedUtf8Bytes(partial_) == partial_.size()) return std::nullopt;
  return consumed_ + static_cast<int64_t>(text_.size());
}

std::string IngestText::NextPiece(bool last) {
  const std::string_view pending = std::string_view(text_).substr(begin_);
  if (pending.empty()) return "";
  size_t cut = 0;
  if (pending.size() > kPieceBytes) cut = tokenizer_.SafeSplit(pending.substr(0, kPieceBytes));
  if (cut > 0) {
    // Small enough.
  } else if (pending.size() >= kMaxRunBytes) {
    const std::string_view window = pending.substr(0, kMaxRunBytes);
    cut = tokenizer_.SafeSplit(window);
    if (cut == 0) cut = engine::ValidUtf8Bytes(window);
  } else if (last) {
    cut = pending.size();
  } else if (pending.size() >= 2 * looked_at_) {
    // Looking again only when the text has doubled keeps many small frames linear.
    cut = tokenizer_.SafeSplit(pending);
    looked_at_ = pending.size();
  }
  if (cut == 0) return "";
  looked_at_ = 0;
  std::string piece(pending.substr(0, cut));
  begin_ += cut;
  consumed_ += static_cast<int64_t>(cut);
  return piece;
}

}  // namespace mneme::server
