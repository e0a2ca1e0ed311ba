// The session that a command names, made if need be.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/cli/context.h"

namespace mneme::cli {

struct OpenedSession {
  v1::Session session;
  bool created = false;
};

enum class IfAbsent { kFail, kCreate };

// `name`: full. A session keeps its model: kFailedPrecondition if `model`, the command's flag,
// names another one. A new session takes `model`, or else the default.
absl::StatusOr<OpenedSession> OpenSession(client::Client& client, const Context& context,
                                          const std::string& name, const std::string& model,
                                          IfAbsent if_absent);

// kAlreadyExists if there is one.
absl::StatusOr<OpenedSession> CreateSession(client::Client& client, const Context& context,
                                            const std::string& name, const std::string& model);

}  // namespace mneme::cli
