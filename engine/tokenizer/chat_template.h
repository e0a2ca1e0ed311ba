// A model's way of writing a conversation as text.
//
// Templates in checkpoints are untrusted Jinja programs: none is executed. A template is accepted
// if all that it can write in a conversation without tools is the way of a known family: ChatML,
// Llama 2, Llama 3, RWKV World (template_outline.h, template_frames.h). Any other is refused with
// the reason, because a model that reads a conversation in another form than it learned answers
// badly.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  // nullptr if the checkpoint carries no template. UNIMPLEMENTED says what in it is not of a known
  // family, INVALID_ARGUMENT what its tokenizer lacks. `tokenizer` must outlive the result.
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(const Checkpoint& checkpoint,
                                                                    const Tokenizer& tokenizer);

  virtual std::string_view family() const = 0;  // "chatml", "llama2", "llama3", "rwkv-world"

  // Token ids of `messages`, ending where the assistant is to speak. `continues` is false for the
  // first messages of a conversation (the template's default system message may be inserted, BOS is
  // included where the template has it) and true when the model has already read earlier turns;
  // then `after_end_of_turn` says whether the last token read was the one that closes a turn. If it
  // was not (the answer was cut off), the turn is closed first. Contents are never parsed for
  // control tokens. INVALID_ARGUMENT names the message with a role or an order that the template
  // refuses.
  virtual absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages,
                                                      bool continues,
                                                      bool after_end_of_turn) const = 0;
};

}  // namespace mneme::engine
