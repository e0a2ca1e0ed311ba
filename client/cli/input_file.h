// The file that a command reads.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "absl/status/statusor.h"

namespace mneme::cli {

// Opens a regular file; its size in bytes. An error is for people.
absl::StatusOr<int64_t> OpenInput(const std::string& path, std::ifstream& file);

}  // namespace mneme::cli
