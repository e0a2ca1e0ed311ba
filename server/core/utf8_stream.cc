#include "server/core/utf8_stream.h"

#include <algorithm>
#include <utility>

#include "engine/core/utf8.h"

namespace mneme::server {

std::string UnfinishedCharacter(const engine::Tokenizer& tokenizer, std::string_view before,
                                std::span<const engine::TokenId> tokens) {
  std::string text(before);
  // Every token has a byte at least, and no unfinished character more than three.
  for (const engine::TokenId token : tokens.last(std::min<size_t>(tokens.size(), 3))) {
    const std::string bytes = tokenizer.TokenBytes(token);
    text = bytes.empty() ? "" : text + bytes;
  }
  return text.substr(text.size() - engine::UnfinishedUtf8Bytes(text));
}

std::string Utf8Stream::Feed(std::string_view bytes) {
  held_.append(bytes);
  const size_t whole = held_.size() - engine::UnfinishedUtf8Bytes(held_);
  std::string text = engine::ReplaceInvalidUtf8(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
  return text;
}

std::string Utf8Stream::Flush() { return engine::ReplaceInvalidUtf8(std::exchange(held_, "")); }

}  // namespace mneme::server
