// What a person sends in a chat, out of the lines that are typed:
//
//   a line                                   a message, or a command if it begins with '/'
//   lines that end in '\', and one more      a message of several lines
//   """, lines, """                          the same; nothing in between has a meaning of its own
//   several lines at once, as pasted         a message as it is
#pragma once

#include <optional>
#include <string>

namespace mneme::cli {

struct TypedMessage {
  std::string text;
  bool command = false;
};

class TypedMessageReader {
 public:
  // One more line without its end; newlines in it were pasted. The message, if it is whole now; an
  // empty one for a blank line.
  std::optional<TypedMessage> Add(const std::string& line);
  // True if a message has begun that another line goes on with.
  bool waiting() const { return in_block_ || !joined_.empty(); }
  void Clear();

 private:
  std::optional<TypedMessage> AddToBlock(const std::string& line);

  bool in_block_ = false;
  std::string joined_;  // the lines so far, each with its newline
};

}  // namespace mneme::cli
