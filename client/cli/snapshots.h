// Snapshots as they are shown: by `mneme snapshots list`, and by `mneme sessions snapshots`.
#pragma once

#include <string>

#include "client/cli/context.h"

namespace mneme::cli {

// All of session `name`, newest first. Returns the exit code.
int ListSnapshots(client::Client& client, const Context& context, const std::string& name);

}  // namespace mneme::cli
