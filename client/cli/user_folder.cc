#include "client/cli/user_folder.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace mneme::cli {

std::string UserFolder(const char* variable, const char* fallback) {
  if (const char* base = std::getenv(variable); base != nullptr && *base == '/') {
    return absl::StrCat(base, "/mneme");
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return absl::StrCat(home, "/", fallback, "/mneme");
  }
  return "";
}

}  // namespace mneme::cli
