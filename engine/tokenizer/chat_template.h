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

struct RenderOptions {
  // The model has read earlier turns. False for the first messages of a conversation: the
  // template's default system message may be inserted, and BOS is included where it has it.
  bool continues = false;
  // With `continues`: the last token read closed a turn. Where it did not (the answer was cut
  // short), the turn is closed first.
  bool after_end_of_turn = false;
  // The last message, the assistant's, is not closed: the output goes on where its content ends.
  bool continue_final_message = false;
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  // nullptr if the checkpoint carries no template. UNIMPLEMENTED says what in it is not of a known
  // family, INVALID_ARGUMENT what its tokenizer lacks. `tokenizer` must outlive the result.
  static absl::StatusOr<std::unique_ptr<const ChatTemplate>> Create(const Checkpoint& checkpoint,
                                                                    const Tokenizer& tokenizer);

  virtual std::string_view family() const = 0;  // "chatml", "llama2", "llama3", "rwkv-world"

  // Token ids of `messages`, ending where the assistant is to speak or to go on. Contents are never
  // parsed for control tokens. INVALID_ARGUMENT names the message with a role or an order that the
  // template refuses, or that cannot be continued: only an assistant's with content can.
  virtual absl::StatusOr<std::vector<TokenId>> Render(std::span<const ChatMessage> messages,
                                                      const RenderOptions& options) const = 0;
};

}  // namespace mneme::engine
