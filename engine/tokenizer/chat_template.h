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

// Where a message's content lies among the tokens. A token may belong to the content and to what
// the template writes around it: then some of its bytes are the template's.
struct ContentSpan {
  std::string role;           // also "system" for the template's own default
  size_t begin = 0, end = 0;  // tokens; begin < end
  size_t lead_bytes = 0;      // of token `begin`, before the content
  size_t trail_bytes = 0;     // of token `end - 1`, behind the content
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
  // `contents`, if given, becomes where the contents lie, in order; empty ones lie nowhere.
  virtual absl::StatusOr<std::vector<TokenId>> Render(
      std::span<const ChatMessage> messages, const RenderOptions& options,
      std::vector<ContentSpan>* contents = nullptr) const = 0;
};

}  // namespace mneme::engine
