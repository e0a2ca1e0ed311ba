#include "server/core/utf8_stream.h"

#include <utility>

#include "engine/core/utf8.h"

namespace mneme::server {

std::string Utf8Stream::Feed(std::string_view bytes) {
  held_.append(bytes);
  const size_t whole = held_.size() - engine::UnfinishedUtf8Bytes(held_);
  std::string text = engine::ReplaceInvalidUtf8(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
  return text;
}

std::string Utf8Stream::Flush() { return engine::ReplaceInvalidUtf8(std::exchange(held_, "")); }

}  // namespace mneme::server
