#include "client/cli/defaults.h"

#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/nearest.h"
#include "client/cli/user_folder.h"

namespace mneme::cli {

std::string DefaultsFile() {
  const std::string folder = UserFolder("XDG_CONFIG_HOME", ".config");
  return folder.empty() ? "" : folder + "/config.yaml";
}

absl::StatusOr<Defaults> ReadDefaults(const std::string& file) {
  Defaults defaults;
  std::error_code error;
  if (file.empty() || !std::filesystem::exists(file, error)) return defaults;
  const std::map<std::string, std::string*> fields = {
      {"server", &defaults.server},     {"tenant", &defaults.tenant},
      {"model", &defaults.model},       {"tls_ca", &defaults.tls_ca},
      {"tls_cert", &defaults.tls_cert}, {"tls_key", &defaults.tls_key},
      {"key_file", &defaults.key_file}};
  std::vector<std::string> keys;
  for (const auto& [key, unused] : fields) keys.push_back(key);
  auto bad = [&](const YAML::Mark& mark, const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, mark.is_null() ? "" : absl::StrCat(":", mark.line + 1), ": ", why));
  };
  try {
    const YAML::Node root = YAML::LoadFile(file);
    if (root.IsNull()) return defaults;
    if (!root.IsMap()) return bad(root.Mark(), "must be lines such as `model: NAME`");
    for (const auto& entry : root) {
      const std::string key = entry.first.as<std::string>();
      const auto field = fields.find(key);
      if (field == fields.end()) {
        return bad(entry.first.Mark(),
                   absl::StrCat("unknown key '", key, "'", DidYouMean(Nearest(key, keys))));
      }
      if (!entry.second.IsScalar()) return bad(entry.first.Mark(), key + " must be one value");
      *field->second = entry.second.Scalar();
    }
  } catch (const YAML::BadFile&) {
    return bad(YAML::Mark::null_mark(), "cannot be read");
  } catch (const YAML::Exception& e) {
    return bad(e.mark, e.msg);
  }
  return defaults;
}

}  // namespace mneme::cli
