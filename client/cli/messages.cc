#include "client/cli/messages.h"

namespace mneme::cli {

void Fill(const TurnMessages& messages, v1::GenerateRequest& request) {
  const auto add = [&](const char* role, const std::string& content) {
    v1::Message& message = *request.mutable_messages()->add_messages();
    message.set_role(role);
    message.set_content(content);
  };
  if (!messages.system.empty()) add("system", messages.system);
  add("user", messages.user);
  if (messages.answer_start.empty()) return;
  add("assistant", messages.answer_start);
  request.set_continue_final_message(true);
}

}  // namespace mneme::cli
