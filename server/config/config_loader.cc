#include "server/config/config_loader.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "memstore/state_store.h"
#include "server/config/foreign_variables.h"
#include "server/config/settings.h"
#include "server/core/resource_id.h"

namespace mneme::server {
namespace {

constexpr char kExamples[] = R"(EXAMPLES
  Serve one checkpoint; start-up says where sessions are kept:
    mneme-server --model smollm2=SmolLM2-135M-Instruct.Q4_1.gguf
  Keep them in ./data of the working directory instead:
    mneme-server --model smollm2=SmolLM2-135M-Instruct.Q4_1.gguf --store.path data
  In a PostgreSQL database, which several servers may share:
    mneme-server --model smollm2=SmolLM2-135M-Instruct.Q4_1.gguf \
                 --store.path 'postgresql://mneme@db.example/mneme?sslmode=verify-full'
  Two models, two threads, a 2,048 token window, any free port:
    mneme-server --model a=a.gguf --model b=b.gguf --engine.threads=2 \
                 --engine.window_tokens=2048 --listen.address=127.0.0.1:0
  The same from a file and the environment; see what holds and why, then leave:
    MNEME_ENGINE_THREADS=2 mneme-server --config mneme.yaml --print-config
  Two models, each on a GPU of its own:
    mneme-server --model a=a.gguf --model b=b.gguf,device=1
  One model, a copy on each of two GPUs:
    mneme-server --model a=a.gguf,device=0,device=1
  For other machines, over TLS, for those who have a key (`mneme keys create` makes one):
    mneme-server --config /etc/mneme.yaml --listen.address=0.0.0.0:7447 \
                 --listen.tls.cert=server.pem --listen.tls.key=server.key \
                 --auth.keys_file=keys.yaml
  Inside a container, behind a proxy that speaks TLS:
    mneme-server --config /etc/mneme.yaml --listen.address=0.0.0.0:7447 --listen.insecure

WHERE A SETTING COMES FROM (highest first)
  the flag --engine.threads=2, the variable MNEME_ENGINE_THREADS=2, the file given by --config
  (or MNEME_CONFIG):
    models: {smollm2: /models/smollm2.gguf, b: {path: /models/b.gguf, device: 1}}
    engine: {threads: 2}
  and the default shown above. Models: --model NAME=PATH[,device=N] or
  MNEME_MODELS=a=a.gguf,b=b.gguf,device=1.
  A name that is not known is an error in each of them, but for variables of the client.

EXIT CODES
  0 ok   1 failure   2 usage or configuration   3 model file   4 store   5 port in use
SIGNALS
  SIGTERM drains (drain.*), SIGINT drains without the pre-stop delay, a second one ends running turns.
  SIGHUP reads auth.keys_file, TLS files and log_level again, all or nothing, and logs which other
  settings have changed and need a restart.
)";

absl::Status Usage(std::string message) { return absl::InvalidArgumentError(std::move(message)); }

std::string DidYouMean(std::string_view key, std::string_view prefix,
                       const std::vector<std::string>& more_keys) {
  const std::string nearest = NearestKey(key, more_keys);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", std::string(prefix), nearest, "?");
}

bool HasSettingsBelow(const std::string& section) {
  return std::any_of(Settings().begin(), Settings().end(), [&](const Setting& setting) {
    return absl::StartsWith(setting.key, section + ".");
  });
}

// Values of one source by key, with where each was written.
struct Found {
  std::string value;
  std::string origin;  // "flag", "environment MNEME_X", "mneme.yaml:3"
};

struct Source {
  std::map<std::string, Found> values;
  std::vector<std::pair<ModelConfig, std::string>> models;  // with origin
};

// What may stand beside a model's path.
constexpr char kDeviceKey[] = "device";

absl::Status SetModelOption(ModelConfig& model, const std::string& key, const std::string& value,
                            const std::string& origin) {
  if (key != kDeviceKey) {
    return Usage(absl::StrCat(origin, ": model ", model.name, ": unknown key \"", key,
                              "\", expected ", kDeviceKey));
  }
  int device = 0;
  if (!absl::SimpleAtoi(value, &device) || device < 0) {
    return Usage(absl::StrCat(origin, ": model ", model.name, ": ", kDeviceKey,
                              " must be a whole number of at least 0, is \"", value, "\""));
  }
  if (std::ranges::count(model.devices, device) > 0) {
    return Usage(absl::StrCat(origin, ": model ", model.name, ": ", kDeviceKey, " ", device,
                              " is given twice"));
  }
  model.devices.push_back(device);
  return absl::OkStatus();
}

// Nothing was said: the first device.
ModelConfig WithDevices(ModelConfig model) {
  if (model.devices.empty()) model.devices = {0};
  return model;
}

// NAME=PATH, then KEY=VALUE behind commas. A comma that no KEY= follows is one of the path.
absl::StatusOr<ModelConfig> ParseModel(const std::string& text, const std::string& origin) {
  const size_t equals = text.find('=');
  const std::vector<std::string> parts =
      absl::StrSplit(text.substr(equals == std::string::npos ? 0 : equals + 1), ',');
  if (equals == std::string::npos || equals == 0 || parts[0].empty()) {
    return Usage(absl::StrCat(origin,
                              ": a model must be written NAME=PATH or NAME=PATH,device=N, "
                              "is \"",
                              text, "\""));
  }
  ModelConfig model{.name = text.substr(0, equals), .path = parts[0], .devices = {}};
  bool has_options = false;
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::pair<std::string, std::string> option =
        absl::StrSplit(parts[i], absl::MaxSplits('=', 1));
    const auto& [key, value] = option;
    const bool has_value = parts[i].find('=') != std::string::npos;
    if (!has_value && !has_options && key != kDeviceKey) {
      absl::StrAppend(&model.path, ",", parts[i]);
      continue;
    }
    if (!has_value) {
      return Usage(absl::StrCat(origin, ": model ", model.name, ": expected ", kDeviceKey,
                                "=N behind the path, is \"", parts[i], "\""));
    }
    has_options = true;
    MNEME_RETURN_IF_ERROR(SetModelOption(model, key, value, origin));
  }
  return WithDevices(std::move(model));
}

// "a=a.gguf,b=b.gguf,device=1": what begins with an option's key is of the model before.
absl::StatusOr<std::vector<ModelConfig>> ParseModels(const std::string& text,
                                                     const std::string& origin) {
  std::vector<std::string> entries;
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const bool is_option = absl::StartsWith(part, absl::StrCat(kDeviceKey, "="));
    if (is_option && entries.empty()) {
      return Usage(absl::StrCat(origin, ": ", std::string(part), " must stand behind its model"));
    }
    if (is_option) {
      absl::StrAppend(&entries.back(), ",", part);
    } else {
      entries.emplace_back(part);
    }
  }
  std::vector<ModelConfig> models;
  for (const std::string& entry : entries) {
    MNEME_ASSIGN_OR_RETURN(ModelConfig model, ParseModel(entry, origin));
    models.push_back(std::move(model));
  }
  return models;
}

// Of the file: NAME: PATH, or NAME: {path: PATH, device: N} with one device or a list. `where` says
// the place of a node.
absl::StatusOr<ModelConfig> ReadModel(const std::string& name, const YAML::Node& node,
                                      const std::function<std::string(const YAML::Node&)>& where) {
  if (node.IsScalar()) return ModelConfig{.name = name, .path = node.Scalar()};
  if (!node.IsMap()) {
    return Usage(absl::StrCat(where(node), ": models: ", name,
                              " must be a path, or {path: PATH, device: N}"));
  }
  ModelConfig model{.name = name, .devices = {}};
  std::set<std::string> given;
  for (const auto& entry : node) {
    const std::string key = entry.first.as<std::string>();
    const bool is_list = key == kDeviceKey && entry.second.IsSequence();
    const std::vector<YAML::Node> values =
        is_list ? entry.second.as<std::vector<YAML::Node>>() : std::vector{entry.second};
    if (!std::ranges::all_of(values, [](const YAML::Node& value) { return value.IsScalar(); })) {
      return Usage(absl::StrCat(where(entry.first), ": models: ", name, ": ", key,
                                " must be a single value"));
    }
    if (!given.insert(key).second) {
      return Usage(
          absl::StrCat(where(entry.first), ": models: ", name, ": ", key, " is written twice"));
    }
    for (const YAML::Node& value : values) {
      if (key == "path") {
        model.path = value.Scalar();
      } else {
        MNEME_RETURN_IF_ERROR(SetModelOption(model, key, value.Scalar(), where(entry.first)));
      }
    }
  }
  return WithDevices(std::move(model));
}

absl::StatusOr<Source> ReadEnvironment(const std::vector<std::string>& environment,
                                       std::string* config_path) {
  std::map<std::string, std::string> keys;  // by variable
  for (const Setting& setting : Settings()) keys[EnvironmentName(setting.key)] = setting.key;
  Source source;
  for (const std::string& entry : environment) {
    const size_t equals = entry.find('=');
    if (!absl::StartsWith(entry, "MNEME_") || equals == std::string::npos) continue;
    const std::string name = entry.substr(0, equals);
    const std::string value = entry.substr(equals + 1);
    const std::string origin = absl::StrCat("environment ", name);
    if (name == "MNEME_CONFIG") {
      *config_path = value;
    } else if (name == "MNEME_MODELS") {
      MNEME_ASSIGN_OR_RETURN(std::vector<ModelConfig> models, ParseModels(value, origin));
      for (ModelConfig& model : models) source.models.emplace_back(std::move(model), origin);
    } else if (auto key = keys.find(name); key != keys.end()) {
      source.values[key->second] = {value, origin};
    } else if (!IsForeignVariable(name, value)) {
      // As a key, so that MNEME_THREADS finds engine.threads.
      std::string key = absl::AsciiStrToLower(name.substr(std::string_view("MNEME_").size()));
      if (const size_t underscore = key.find('_'); underscore != key.npos) key[underscore] = '.';
      const std::string nearest = NearestKey(key, {"models", "config"});
      return Usage(absl::StrCat(
          "unknown environment variable ", name,
          nearest.empty() ? "; --help shows every setting"
                          : absl::StrCat("; did you mean ", EnvironmentName(nearest), "?")));
    }
  }
  return source;
}

absl::StatusOr<Source> ReadFile(const std::string& path) {
  auto at = [&](const YAML::Mark& mark) {
    return mark.is_null() ? path : absl::StrCat(path, ":", mark.line + 1);
  };
  Source source;
  std::vector<std::string> sections{"models"};
  for (const Setting& setting : Settings()) {
    sections.push_back(setting.key.substr(0, setting.key.find('.')));
  }
  try {
    const YAML::Node root = YAML::LoadFile(path);
    if (root.IsNull()) return source;
    if (!root.IsMap()) return Usage(absl::StrCat(path, ": must be a mapping of sections"));
    auto add = [&](const std::string& key, const YAML::Node& name,
                   const YAML::Node& value) -> absl::Status {
      const std::string where = at(name.Mark());
      if (FindSetting(key) == nullptr) {
        return Usage(
            absl::StrCat(where, ": unknown key \"", key, "\"", DidYouMean(key, "", {"models"})));
      }
      if (!value.IsScalar()) {
        return Usage(absl::StrCat(where, ": ", key, ": must be a single value"));
      }
      if (!source.values.emplace(key, Found{value.Scalar(), where}).second) {
        return Usage(absl::StrCat(where, ": ", key, ": is written twice"));
      }
      return absl::OkStatus();
    };
    // Sections in sections, too: listen: {tls: {cert: ...}}.
    std::function<absl::Status(const std::string&, const YAML::Node&)> add_all =
        [&](const std::string& prefix, const YAML::Node& entries) -> absl::Status {
      for (const auto& entry : entries) {
        const std::string key = absl::StrCat(prefix, ".", entry.first.as<std::string>());
        MNEME_RETURN_IF_ERROR(entry.second.IsMap() && FindSetting(key) == nullptr &&
                                      HasSettingsBelow(key)
                                  ? add_all(key, entry.second)
                                  : add(key, entry.first, entry.second));
      }
      return absl::OkStatus();
    };
    for (const auto& section : root) {
      const std::string name = section.first.as<std::string>();
      const std::string where = at(section.first.Mark());
      if (name == "models") {
        if (!section.second.IsMap()) {
          return Usage(absl::StrCat(where, ": models: must be a mapping NAME: PATH"));
        }
        for (const auto& model : section.second) {
          MNEME_ASSIGN_OR_RETURN(
              ModelConfig read, ReadModel(model.first.as<std::string>(), model.second,
                                          [&](const YAML::Node& node) { return at(node.Mark()); }));
          source.models.emplace_back(std::move(read), at(model.first.Mark()));
        }
      } else if (section.second.IsMap()) {
        if (std::find(sections.begin(), sections.end(), name) == sections.end()) {
          return Usage(absl::StrCat(where, ": unknown section \"", name, "\"",
                                    DidYouMean(name, "", sections)));
        }
        MNEME_RETURN_IF_ERROR(add_all(name, section.second));
      } else {
        MNEME_RETURN_IF_ERROR(add(name, section.first, section.second));
      }
    }
  } catch (const YAML::BadFile&) {
    return Usage(absl::StrCat("--config ", path, ": cannot be read"));
  } catch (const YAML::Exception& e) {
    return Usage(absl::StrCat(at(e.mark), ": ", e.msg));
  }
  return source;
}

struct CommandLine {
  Source source;
  std::string config_path;
  bool print_config = false;
  bool help = false;
  bool version = false;
  std::string help_text;
};

absl::StatusOr<CommandLine> ReadArguments(const std::vector<std::string>& arguments) {
  CommandLine line;
  CLI::App app(
      "mneme-server: language models with persistent sessions over gRPC. A session is a name and "
      "a\n"
      "fixed-size state: it survives restarts, and reading more does not make it larger.",
      "mneme-server");
  app.set_help_flag();  // our own flag: a plain value, no exception
  app.footer(kExamples);
  app.allow_extras();
  std::vector<std::string> models;
  app.add_option("--model", models, "a checkpoint to serve as models/NAME; may be repeated")
      ->type_name("NAME=PATH[,device=N]")
      ->allow_extra_args(false);  // one value each time
  app.add_option("--config", line.config_path, "configuration file (YAML)")->type_name("FILE");
  app.add_flag("--print-config", line.print_config,
               "print every setting with its origin, and leave");
  app.add_flag("--help,-h", line.help, "print this text, and leave");
  app.add_flag("--version", line.version, "print the version, and leave");

  const Config defaults;
  std::map<std::string, std::string> texts;
  for (const Setting& setting : Settings()) {
    const std::string section = setting.key.substr(0, setting.key.find('.'));
    CLI::Option* option = nullptr;
    if (setting.kind == Setting::Kind::kSwitch) {
      option = app.add_flag("--" + setting.key + "{true}", texts[setting.key], setting.help);
    } else {
      option = app.add_option("--" + setting.key, texts[setting.key], setting.help)
                   ->type_name(std::string(KindName(setting.kind)));
    }
    const std::string shown = setting.get(defaults);
    option->default_str(shown.empty() ? "\"\"" : shown);
    option->group(section == setting.key ? "Options" : section);
  }
  // The parser wants its arguments last first, and takes "--key=" for a key without a value, whose
  // value is then the next argument; to us it means the empty text.
  std::vector<std::string> reversed;
  for (auto argument = arguments.rbegin(); argument != arguments.rend(); ++argument) {
    if (absl::StartsWith(*argument, "--") && argument->find('=') == argument->size() - 1) {
      reversed.emplace_back();
      reversed.push_back(argument->substr(0, argument->size() - 1));
    } else {
      reversed.push_back(*argument);
    }
  }
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& e) {
    return Usage(absl::StrCat(e.what(), "; --help shows every flag"));
  }
  for (const std::string& extra : app.remaining()) {
    const std::string name(absl::StripPrefix(extra.substr(0, extra.find('=')), "--"));
    if (!absl::StartsWith(extra, "-")) {
      return Usage(absl::StrCat("unexpected argument \"", extra, "\"; flags start with --"));
    }
    return Usage(absl::StrCat(
        "unknown flag --", name,
        DidYouMean(name, "--", {"model", "config", "print-config", "help", "version"})));
  }
  for (const Setting& setting : Settings()) {
    if (app.count("--" + setting.key) == 0) continue;
    line.source.values[setting.key] = {texts[setting.key], absl::StrCat("flag --", setting.key)};
  }
  for (const std::string& model : models) {
    MNEME_ASSIGN_OR_RETURN(ModelConfig parsed, ParseModel(model, "--model"));
    line.source.models.emplace_back(std::move(parsed), "flag --model");
  }
  if (line.help) line.help_text = app.help();
  return line;
}

// Whoever can reach the server from another machine must be kept from listening in, and be known,
// unless that is allowed explicitly.
absl::Status CheckListeners(const Config& config, std::vector<std::string>* warnings) {
  const Config::Listen::Tls& tls = config.listen.tls;
  if (tls.cert.empty() != tls.key.empty()) {
    return Usage("listen.tls.cert and listen.tls.key must be given together");
  }
  if (!tls.client_ca.empty() && tls.cert.empty()) {
    return Usage("listen.tls.client_ca needs listen.tls.cert and listen.tls.key");
  }
  if (tls.require_client_cert && tls.client_ca.empty()) {
    return Usage("listen.tls.require_client_cert needs listen.tls.client_ca");
  }
  struct Listener {
    const char* key;
    const std::string& address;
    bool encrypts, knows_callers;
  };
  const Listener listeners[] = {
      {"listen.address", config.listen.address, !tls.cert.empty(),
       tls.require_client_cert || !config.auth.keys_file.empty()},
      {"listen.metrics_address", config.listen.metrics_address, false,
       !config.auth.keys_file.empty()},
  };
  for (const auto& [key, address, encrypts, knows_callers] : listeners) {
    if (address.empty() || IsLoopbackAddress(address) || (encrypts && knows_callers)) continue;
    const std::string what =
        absl::StrCat(key, " (", address, ") is reachable from other machines, without ",
                     encrypts        ? "keys"
                     : knows_callers ? "TLS"
                                     : "TLS or keys");
    if (!config.listen.insecure) {
      return Usage(absl::StrCat(what, "; use 127.0.0.1, or allow it by --listen.insecure"));
    }
    warnings->push_back(what);
  }
  return absl::OkStatus();
}

absl::Status CheckCombinations(const Config& config, std::vector<std::string>* warnings) {
  if (config.models.empty()) {
    return Usage("no model to serve; give --model NAME=PATH (or models: in the file)");
  }
  std::set<std::string> names;
  for (const ModelConfig& model : config.models) {
    if (!IsValidId(model.name)) {
      return Usage(absl::StrCat("model name \"", model.name,
                                "\" must be 1 to 63 of a-z, 0-9 and -, starting with a letter and "
                                "ending with a letter or digit"));
    }
    if (!names.insert(model.name).second) {
      return Usage(absl::StrCat("model \"", model.name, "\" is given twice"));
    }
    if (model.path.empty()) return Usage(absl::StrCat("model \"", model.name, "\" has no path"));
  }
  for (const auto& [field, numbers] : config.sampling) {
    for (const auto& [model, number] : numbers) {
      if (model.empty() || names.contains(model)) continue;
      return Usage(absl::StrCat("sampling.", field, " is given for \"", model,
                                "\", which is no model of this server"));
    }
  }
  if (config.listen.address.empty()) return Usage("listen.address must not be empty");
  const bool uri = memstore::IsPostgresUri(config.store.path);
  if (config.store.kind == "postgres" && !uri) {
    return Usage(
        "store.kind is postgres, but store.path is no URI: give --store.path "
        "postgresql://USER@HOST/DATABASE");
  }
  if (config.store.kind == "rocksdb" && uri) {
    return Usage(
        "store.path is the URI of a PostgreSQL database, but store.kind is rocksdb; leave "
        "store.kind out, or make it postgres");
  }
  if (config.store.kind == "rocksdb" && config.store.path.empty()) {
    return Usage(
        "no place for sessions: neither XDG_STATE_HOME nor HOME is an absolute path; give "
        "--store.path");
  }
  if (config.limits.max_step_tokens < config.limits.prefill_chunk_tokens) {
    return Usage(absl::StrCat("limits.max_step_tokens (", config.limits.max_step_tokens,
                              ") must be at least limits.prefill_chunk_tokens (",
                              config.limits.prefill_chunk_tokens, ")"));
  }
  if (config.engine.window_tokens > 0 && config.engine.sink_tokens >= config.engine.window_tokens) {
    return Usage(absl::StrCat("engine.sink_tokens (", config.engine.sink_tokens,
                              ") must be less than engine.window_tokens (",
                              config.engine.window_tokens, ")"));
  }
  return CheckListeners(config, warnings);
}

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "mneme";
  return name;
}

// A folder of the user's own, so that the server keeps its sessions whatever directory it is
// started in; "" if there is none. A service gives its own (deploy/mneme.service, Dockerfile).
std::string DefaultStorePath(const std::vector<std::string>& environment) {
  auto variable = [&](std::string_view name) -> std::string {
    for (const std::string& entry : environment) {
      if (entry.starts_with(name) && entry[name.size()] == '=')
        return entry.substr(name.size() + 1);
    }
    return "";
  };
  // The XDG Base Directory Specification: relative paths are to be ignored.
  if (const std::string state = variable("XDG_STATE_HOME"); absl::StartsWith(state, "/")) {
    return absl::StrCat(state, "/mneme/store");
  }
  if (const std::string home = variable("HOME"); absl::StartsWith(home, "/")) {
    return absl::StrCat(home, "/.local/state/mneme/store");
  }
  return "";
}

std::string PrintConfig(const Config& config, const std::map<std::string, std::string>& origins,
                        const std::string& models_origin) {
  std::string out;
  auto line = [&](const std::string& text, const std::string& origin) {
    absl::StrAppend(&out, text, std::string(text.size() < 46 ? 46 - text.size() : 1, ' '), "# ",
                    origin, "\n");
  };
  // YAML again, so that it can be kept as a file.
  auto quoted = [](const std::string& value) {
    YAML::Emitter emitter;
    emitter << YAML::DoubleQuoted << value;
    return std::string(emitter.c_str());
  };
  line("models:", models_origin);
  for (const ModelConfig& model : config.models) {
    const std::string path = quoted(model.path);
    absl::StrAppend(&out, "  ", model.name, ": ",
                    model.devices == std::vector{0}
                        ? path
                        : absl::StrCat("{path: ", path, ", device: [",
                                       absl::StrJoin(model.devices, ", "), "]}"),
                    "\n");
  }
  std::string section;
  for (const Setting& setting : Settings()) {
    std::string value = setting.get(config);
    if (setting.key == "store.path") value = memstore::MaskPostgresUri(value);
    const bool may_be_empty =
        setting.kind == Setting::Kind::kText || setting.kind == Setting::Kind::kNumbers;
    if (may_be_empty) value = quoted(value);
    const size_t dot = setting.key.find('.');
    std::string text;
    if (dot == std::string::npos) {
      text = absl::StrCat(setting.key, ": ", value);
    } else {
      if (setting.key.substr(0, dot) != section) {
        section = setting.key.substr(0, dot);
        absl::StrAppend(&out, section, ":\n");
      }
      text = absl::StrCat("  ", setting.key.substr(dot + 1), ": ", value);
    }
    line(text, origins.at(setting.key));
  }
  return out;
}

}  // namespace

std::vector<std::string> SettingsThatNeedRestart(const Config& running, const Config& wanted) {
  std::vector<std::string> keys;
  const auto same = [](const ModelConfig& a, const ModelConfig& b) {
    return a.name == b.name && a.path == b.path && a.devices == b.devices;
  };
  if (!std::equal(running.models.begin(), running.models.end(), wanted.models.begin(),
                  wanted.models.end(), same)) {
    keys.push_back("models");
  }
  for (const Setting& setting : Settings()) {
    if (setting.key == "log_level") continue;
    if (setting.get(running) != setting.get(wanted)) keys.push_back(setting.key);
  }
  return keys;
}

bool IsLoopbackAddress(const std::string& address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) {
    return true;
  }
  const std::string host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" || absl::StartsWith(host, "127.");
}

absl::StatusOr<LoadedConfig> LoadConfig(const std::vector<std::string>& arguments,
                                        const std::vector<std::string>& environment) {
  LoadedConfig loaded;
  MNEME_ASSIGN_OR_RETURN(CommandLine line, ReadArguments(arguments));
  if (line.help || line.version) {
    loaded.print_and_exit = true;
    loaded.output = line.help ? line.help_text : absl::StrCat("mneme-server ", MNEME_VERSION, "\n");
    return loaded;
  }
  std::string config_path;
  MNEME_ASSIGN_OR_RETURN(Source env, ReadEnvironment(environment, &config_path));
  if (!line.config_path.empty()) config_path = line.config_path;
  Source file;
  if (!config_path.empty()) {
    MNEME_ASSIGN_OR_RETURN(file, ReadFile(config_path));
  }

  const Source* const lowest_first[] = {&file, &env, &line.source};
  std::map<std::string, std::string> origins;
  for (const Setting& setting : Settings()) origins[setting.key] = "default";
  std::string models_origin = "default";
  for (const Source* source : lowest_first) {
    // Every value is checked, also one that a higher source overrides.
    for (const auto& [key, found] : source->values) {
      if (absl::Status status = FindSetting(key)->set(loaded.config, found.value); !status.ok()) {
        return Usage(absl::StrCat(found.origin, ": ", key, " ", status.message()));
      }
      origins[key] = found.origin;
    }
    if (source->models.empty()) continue;
    loaded.config.models.clear();
    for (const auto& [model, origin] : source->models) {
      loaded.config.models.push_back(model);
      models_origin = origin;
    }
  }
  if (loaded.config.replica.name.empty()) loaded.config.replica.name = HostName();
  if (origins["store.kind"] == "default" && memstore::IsPostgresUri(loaded.config.store.path)) {
    loaded.config.store.kind = "postgres";
    origins["store.kind"] = "store.path";
  }
  if (loaded.config.store.path.empty() && loaded.config.store.kind != "postgres") {
    loaded.config.store.path = DefaultStorePath(environment);
    if (loaded.config.store.kind == "rocksdb" && std::filesystem::exists("data/CURRENT")) {
      loaded.warnings.push_back(absl::StrCat(
          "./data holds the sessions of an earlier version, and is not used: sessions are kept in ",
          loaded.config.store.path, "; --store.path data goes on with the former"));
    }
  }
  if (line.print_config) {
    loaded.print_and_exit = true;
    loaded.output = PrintConfig(loaded.config, origins, models_origin);
    return loaded;
  }
  MNEME_RETURN_IF_ERROR(CheckCombinations(loaded.config, &loaded.warnings));
  return loaded;
}

}  // namespace mneme::server
