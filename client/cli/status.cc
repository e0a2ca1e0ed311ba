// mneme status: whether the server takes work, for scripts, images and orchestrators.
#include <iostream>

#include "client/cli/context.h"
#include "client/cli/json.h"

namespace mneme::cli {
namespace {

int ShowStatus(client::Client& client, const Context& context) {
  const absl::StatusOr<bool> serving = client.IsServing();
  if (!serving.ok()) return context.Fail(serving.status());
  const char* const status = *serving ? "SERVING" : "NOT_SERVING";
  if (context.json()) {
    std::cout << Dump(Json{{"server", context.server}, {"status", status}}) << "\n";
  } else {
    std::cout << status << "\n";
  }
  return *serving ? kOk : kUnavailable;
}

}  // namespace

void AddStatus(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("status", "Say whether the server takes work");
  command->footer(R"(
Prints SERVING and exits with 0, or NOT_SERVING and 5 while the server drains. Exits with 5, too, if
no server answers.

Examples:
  mneme status
  until mneme status >/dev/null 2>&1; do sleep 1; done      wait for a server
  HEALTHCHECK CMD ["mneme", "status"]                       in a Dockerfile)");
  OnRun(command, context, [&context](client::Client& c) { return ShowStatus(c, context); });
}

}  // namespace mneme::cli
