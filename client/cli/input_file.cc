#include "client/cli/input_file.h"

#include <filesystem>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace mneme::cli {

absl::StatusOr<int64_t> OpenInput(const std::string& path, std::ifstream& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(
        absl::StrCat(path, " is not a file that can be read (use '-' for stdin)"));
  }
  file.open(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  return static_cast<int64_t>(std::filesystem::file_size(path, error));
}

}  // namespace mneme::cli
