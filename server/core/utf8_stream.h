// Whole characters out of tokens that may end inside one.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/tokenizer/tokenizer.h"

namespace mneme::server {

// The bytes of a character that `tokens`, read after a text that ends in `before`, leave unfinished
// at their end. `before` is what an earlier call returned. A token without bytes (a control token)
// ends a character.
std::string UnfinishedCharacter(const engine::Tokenizer& tokenizer, std::string_view before,
                                std::span<const engine::TokenId> tokens);

// Turns the bytes of tokens into whole UTF-8: a character that spans tokens appears when it is
// complete; bytes that can never become one appear as U+FFFD.
class Utf8Stream {
 public:
  // `begun`: of a character that is unfinished already.
  explicit Utf8Stream(std::string begun = "") : held_(std::move(begun)) {}
  // Text that is complete now.
  std::string Feed(std::string_view bytes);
  // U+FFFD for an unfinished character, if there is one.
  std::string Flush();
  bool pending() const { return !held_.empty(); }

 private:
  std::string held_;  // at most 3 bytes
};

}  // namespace mneme::server
