// Logs as one JSON object per line on standard error.
#pragma once

#include <string>

namespace mneme::server {

// Makes spdlog's default logger write {"time":...,"level":...,"message":...}. A message that is
// itself a JSON object is merged in instead. `level`: trace, debug, info, warn or error.
void InitJsonLog(const std::string& level);
// From now on.
void SetLogLevel(const std::string& level);

}  // namespace mneme::server
