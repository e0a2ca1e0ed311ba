// The table of settings: one line per setting drives flags, environment, file, --print-config and
// --help alike.
//
// The key "engine.threads" is the flag --engine.threads, the environment variable
// MNEME_ENGINE_THREADS and the file's engine: {threads: ...}.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/core/config.h"

namespace mneme::server {

struct Setting {
  // kNumbers: a number for every model, or MODEL=NUMBER, separated by commas.
  enum class Kind { kText, kInteger, kNumbers, kBytes, kDuration, kSwitch };

  std::string key;  // "engine.threads"
  Kind kind;
  std::string help;
  // Parses and checks `value`; the error reads after the key: "must be ..., is ...".
  std::function<absl::Status(Config&, std::string_view value)> set;
  // The inverse of `set`.
  std::function<std::string(const Config&)> get;
};

// Every setting but `models`, ordered by key's section as --help shows them.
const std::vector<Setting>& Settings();

// nullptr if there is none.
const Setting* FindSetting(std::string_view key);

// The valid key (settings, "models", "model", "config", ...) that is nearest to `key` by edit
// distance; "" if none is near.
std::string NearestKey(std::string_view key, const std::vector<std::string>& more_keys);

// "engine.threads" -> "MNEME_ENGINE_THREADS"
std::string EnvironmentName(std::string_view key);

// "integer", "size", ...; what --help shows for the value.
std::string_view KindName(Setting::Kind kind);

}  // namespace mneme::server
