#include "client/cli/labels.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mneme::cli {

absl::Status AddLabels(const std::vector<std::string>& labels, v1::Session& session) {
  for (const std::string& label : labels) {
    std::vector<std::string> kv = absl::StrSplit(label, absl::MaxSplits('=', 1));
    if (kv.size() != 2 || kv[0].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("bad label '", label, "': expected KEY=VALUE"));
    }
    (*session.mutable_labels())[kv[0]] = kv[1];
  }
  return absl::OkStatus();
}

}  // namespace mneme::cli
