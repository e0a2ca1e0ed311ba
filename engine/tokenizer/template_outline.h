// What a chat template writes, found out without running it.
//
// A checkpoint's template is an untrusted Jinja program, so none is executed; yet writing a
// conversation by the rules of a known family is right only if the program would write the same.
// The outline walks the program once, in source order. What only a conversation with tools,
// documents or images reaches is passed over, both sides of any other condition are taken, and
// marks (template_expression.h) stand where a message's fields go.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme::engine {

struct TemplateOutline {
  // What one place of the program may write: all of it, at one time or another.
  struct Write {
    std::vector<std::string> alternatives;
    bool is_conditional = false;  // may write nothing
    bool is_in_message_loop = false;
  };
  std::vector<Write> writes;
  bool skips_messages = false;  // some loop leaves messages out, such as the first
};

// The spellings of BOS and EOS ("" where there is none) are what bos_token and eos_token write.
// UNIMPLEMENTED says what in the program cannot be followed.
absl::StatusOr<TemplateOutline> ReadTemplateOutline(std::string_view source, std::string_view bos,
                                                    std::string_view eos);

// The first characters of `text` for a message to people: marks spelled out, escapes for controls.
std::string ShowOutlineText(std::string_view text);

}  // namespace mneme::engine
