#include "server/config/settings.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "engine/kernels/kernels.h"
#include "server/config/byte_size.h"
#include "server/core/sampling_fields.h"

namespace mneme::server {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

std::string Text(std::string_view value) { return std::string(value); }

absl::Status Bad(std::string_view expected, std::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("must be ", Text(expected), ", is \"", Text(value), "\""));
}

absl::Status CheckRange(int64_t number, int64_t min, int64_t max, std::string_view value) {
  if (number >= min && number <= max) return absl::OkStatus();
  return Bad(
      max == kMax ? absl::StrCat("at least ", min) : absl::StrCat("between ", min, " and ", max),
      value);
}

// `field` maps a Config to the member; called with const and mutable ones.
template <typename Field>
Setting TextSetting(std::string key, std::string help, Field field,
                    std::vector<std::string> choices = {}, bool may_be_empty = false) {
  if (!choices.empty()) help += absl::StrCat(" (", absl::StrJoin(choices, " | "), ")");
  return {std::move(key), Setting::Kind::kText, std::move(help),
          [field, choices, may_be_empty](Config& config, std::string_view value) {
            const bool known = choices.empty() || (may_be_empty && value.empty()) ||
                               std::find(choices.begin(), choices.end(), value) != choices.end();
            if (!known) {
              return Bad(absl::StrCat("one of ", absl::StrJoin(choices, ", ")), value);
            }
            field(config) = Text(value);
            return absl::OkStatus();
          },
          [field](const Config& config) { return field(config); }};
}

template <typename Field>
Setting IntegerSetting(std::string key, std::string help, int64_t min, int64_t max, Field field) {
  return {std::move(key), Setting::Kind::kInteger, std::move(help),
          [=](Config& config, std::string_view value) {
            int64_t number = 0;
            if (!absl::SimpleAtoi(Text(value), &number)) return Bad("a whole number", value);
            if (absl::Status status = CheckRange(number, min, max, value); !status.ok()) {
              return status;
            }
            field(config) = number;
            return absl::OkStatus();
          },
          [field](const Config& config) { return absl::StrCat(field(config)); }};
}

template <typename Field>
Setting BytesSetting(std::string key, std::string help, int64_t min, int64_t max, Field field) {
  return {std::move(key), Setting::Kind::kBytes, std::move(help),
          [=](Config& config, std::string_view value) {
            const std::optional<int64_t> number = ParseByteSize(value);
            if (!number) return Bad(kByteSizeForm, value);
            if (absl::Status status = CheckRange(*number, min, max, value); !status.ok()) {
              return status;
            }
            field(config) = *number;
            return absl::OkStatus();
          },
          [field](const Config& config) {
            const int64_t bytes = field(config);
            if (bytes > 0 && bytes % (1 << 30) == 0) return absl::StrCat(bytes >> 30, "GiB");
            if (bytes > 0 && bytes % (1 << 20) == 0) return absl::StrCat(bytes >> 20, "MiB");
            if (bytes > 0 && bytes % (1 << 10) == 0) return absl::StrCat(bytes >> 10, "KiB");
            return absl::StrCat(bytes);
          }};
}

// `field` is in milliseconds.
template <typename Field>
Setting DurationSetting(std::string key, std::string help, absl::Duration min, Field field) {
  return {std::move(key), Setting::Kind::kDuration, std::move(help),
          [=](Config& config, std::string_view value) {
            absl::Duration duration;
            if (!absl::ParseDuration(Text(value), &duration) ||
                duration > absl::Hours(24 * 366 * 100)) {
              return Bad("a time with its unit such as 500ms, 30s, 5m or 24h", value);
            }
            if (duration < min) {
              return Bad(absl::StrCat("at least ", absl::FormatDuration(min)), value);
            }
            field(config) = absl::ToInt64Milliseconds(duration);
            return absl::OkStatus();
          },
          [field](const Config& config) {
            return absl::FormatDuration(absl::Milliseconds(field(config)));
          }};
}

template <typename Field>
Setting SwitchSetting(std::string key, std::string help, Field field) {
  return {std::move(key), Setting::Kind::kSwitch, std::move(help),
          [field](Config& config, std::string_view value) {
            if (value != "true" && value != "false") return Bad("true or false", value);
            field(config) = value == "true";
            return absl::OkStatus();
          },
          [field](const Config& config) { return field(config) ? "true" : "false"; }};
}

// "0.7,small=0.5" -> {"": 0.7, "small": 0.5}
absl::StatusOr<std::map<std::string, double>> ParseNumbers(std::string_view value,
                                                           const SamplingField& field) {
  std::map<std::string, double> out;
  const std::vector<std::string> entries = absl::StrSplit(Text(value), ',', absl::SkipEmpty());
  for (const std::string& entry : entries) {
    const size_t equals = entry.find('=');
    const std::string model = equals == entry.npos ? "" : entry.substr(0, equals);
    double number = 0;
    if (equals == 0 ||
        !absl::SimpleAtod(equals == entry.npos ? entry : entry.substr(equals + 1), &number)) {
      return Bad("a number, or MODEL=NUMBER, separated by commas", value);
    }
    if (!field.Accepts(number)) {
      return absl::InvalidArgumentError(absl::StrCat(field.Expected(), ", is \"", entry, "\""));
    }
    if (!out.emplace(model, number).second) {
      return Bad("one number for each model and one for all others", value);
    }
  }
  return out;
}

// `what` of a request that does not say it itself.
Setting SamplingSetting(const SamplingField& field, std::string_view what) {
  const std::string name = field.name;
  return {
      absl::StrCat("sampling.", name), Setting::Kind::kNumbers,
      absl::StrCat(Text(what), " of requests; empty = the checkpoint's own, else ", field.fallback),
      [name, &field](Config& config, std::string_view value) -> absl::Status {
        auto numbers = ParseNumbers(value, field);
        if (!numbers.ok()) return numbers.status();
        config.sampling[name] = *std::move(numbers);
        return absl::OkStatus();
      },
      [name](const Config& config) {
        const auto numbers = config.sampling.find(name);
        if (numbers == config.sampling.end()) return std::string();
        return absl::StrJoin(numbers->second, ",", [](std::string* out, const auto& entry) {
          const auto& [model, number] = entry;
          absl::StrAppend(out, model, model.empty() ? "" : "=", number);
        });
      }};
}

// The member of a Config or const Config.
#define MNEME_FIELD(member) \
  [](auto& c) -> auto& { return c.member; }

std::vector<std::string> BackendNames() {
  std::vector<std::string> names = engine::BackendNames();
  names.insert(names.begin(), kAutoBackend);
  return names;
}

std::vector<Setting> MakeSettings() {
  const auto& [temperature, top_p, top_k, min_p, repetition, presence, frequency, window] =
      kSamplingFields;
  return {
      TextSetting("engine.backend",
                  "what computes; auto = a GPU if this machine has one that cuda can use, else cpu",
                  MNEME_FIELD(engine.backend), BackendNames()),
      TextSetting("engine.contract",
                  "numbers in products of quantised weights: int8 is fast, f32 exact",
                  MNEME_FIELD(engine.contract), {"int8", "f32"}),
      TextSetting("engine.kv_dtype", "type of stored keys and values", MNEME_FIELD(engine.kv_dtype),
                  {"f16", "f32"}),
      TextSetting(
          "engine.simd_target",
          "pins the SIMD target, so that unlike machines agree bit for bit; empty = the best",
          MNEME_FIELD(engine.simd_target), engine::AvailableSimdTargets(), /*may_be_empty=*/true),
      IntegerSetting("engine.threads",
                     "threads of the engine; 0 = one per processor that affinity and the CPU quota "
                     "of the cgroup leave",
                     0, 1024, MNEME_FIELD(engine.threads)),
      TextSetting("engine.overflow",
                  "more tokens than window models have room for: slide the window, or keep "
                  "everything and end turns there with CONTEXT_LIMIT (memory grows with the text)",
                  MNEME_FIELD(engine.overflow), {"slide", "error"}),
      IntegerSetting("engine.window_tokens",
                     "attention window of window models, their context limit if overflow is error; "
                     "0 = the model's trained context",
                     0, 1 << 24, MNEME_FIELD(engine.window_tokens)),
      IntegerSetting("engine.sink_tokens", "first tokens that never leave the window", 0, 1 << 16,
                     MNEME_FIELD(engine.sink_tokens)),

      TextSetting("listen.address", "gRPC address; port 0 takes any free one and prints it",
                  MNEME_FIELD(listen.address)),
      TextSetting("listen.metrics_address",
                  "address of GET /metrics, /healthz and /readyz; empty = off",
                  MNEME_FIELD(listen.metrics_address)),
      SwitchSetting("listen.insecure", "allow addresses other than loopback, without TLS or keys",
                    MNEME_FIELD(listen.insecure)),
      TextSetting("listen.tls.cert",
                  "certificate chain of listen.address, a PEM file; with it TLS alone is spoken",
                  MNEME_FIELD(listen.tls.cert)),
      TextSetting("listen.tls.key", "its private key, a PEM file without passphrase",
                  MNEME_FIELD(listen.tls.key)),
      TextSetting("listen.tls.client_ca",
                  "PEM file of the authorities whose certificates clients may show",
                  MNEME_FIELD(listen.tls.client_ca)),
      SwitchSetting("listen.tls.require_client_cert", "refuse clients that show no certificate",
                    MNEME_FIELD(listen.tls.require_client_cert)),

      TextSetting("auth.keys_file",
                  "YAML file of the keys and client certificates that may call, which `mneme keys` "
                  "edits; empty = everybody may, as tenant default",
                  MNEME_FIELD(auth.keys_file)),

      TextSetting("store.kind", "where sessions live", MNEME_FIELD(store.kind),
                  {"rocksdb", "postgres", "memory"}),
      TextSetting("store.path",
                  "directory of the rocksdb store, made if absent; empty = mneme/store in "
                  "$XDG_STATE_HOME or ~/.local/state; or postgresql://USER@HOST/DATABASE, which "
                  "makes store.kind postgres",
                  MNEME_FIELD(store.path)),
      IntegerSetting("store.postgres.pool_size", "connections to PostgreSQL at most", 1, 1000,
                     MNEME_FIELD(store.postgres.pool_size)),
      DurationSetting("store.postgres.statement_timeout",
                      "a statement that takes longer is ended; every wait for PostgreSQL is "
                      "bounded by it",
                      absl::Milliseconds(100), MNEME_FIELD(store.postgres.statement_timeout_ms)),
      IntegerSetting("store.postgres.synchronous_standbys",
                     "a turn is durable once so many standbys have it too; PostgreSQL's "
                     "synchronous_standby_names must ask for as many",
                     0, 64, MNEME_FIELD(store.postgres.synchronous_standbys)),

      BytesSetting("limits.max_request_bytes", "largest request message", 64 << 10, 1 << 30,
                   MNEME_FIELD(limits.max_request_bytes)),
      IntegerSetting("limits.max_input_tokens", "of one call; longer texts are ingested", 1, kMax,
                     MNEME_FIELD(limits.max_input_tokens)),
      IntegerSetting("limits.max_output_tokens", "highest max_output_tokens of a request", 1, kMax,
                     MNEME_FIELD(limits.max_output_tokens)),
      IntegerSetting("limits.max_running_streams", "turns and ingests that run at once on a device",
                     1, 4096, MNEME_FIELD(limits.max_running_streams)),
      IntegerSetting("limits.max_queued_requests",
                     "waiting calls, the same share of each model; more are refused", 0, 4096,
                     MNEME_FIELD(limits.max_queued_requests)),
      BytesSetting("limits.state_memory_bytes",
                   "a device's memory for session states; 0 = half of it", 0, kMax,
                   MNEME_FIELD(limits.state_memory_bytes)),
      IntegerSetting("limits.prefix_memory_percent",
                     "share of limits.state_memory_bytes for what conversations begin with alike, "
                     "which a tenant's other calls need not read again; 0 = off",
                     0, 90, MNEME_FIELD(limits.prefix_memory_percent)),
      IntegerSetting("limits.prefill_chunk_tokens", "of one sequence in one engine step", 1, 65536,
                     MNEME_FIELD(limits.prefill_chunk_tokens)),
      IntegerSetting("limits.max_step_tokens", "of all sequences in one engine step", 1, 65536,
                     MNEME_FIELD(limits.max_step_tokens)),
      DurationSetting("limits.slow_client_timeout",
                      "a stream whose client reads nothing for so long is ended",
                      absl::Milliseconds(1), MNEME_FIELD(limits.slow_client_timeout_ms)),
      IntegerSetting("limits.max_unsent_tokens", "unread output of a stream before its turn waits",
                     1, 1 << 20, MNEME_FIELD(limits.max_unsent_tokens)),

      SamplingSetting(temperature, "temperature, 0 is greedy,"),
      SamplingSetting(top_p, "probability mass kept, 1 is all,"),
      SamplingSetting(top_k, "likeliest tokens kept, 0 is all,"),
      SamplingSetting(min_p, "least probability kept, as a share of the likeliest token's,"),
      SamplingSetting(repetition, "divisor for what was said, 1 is off,"),
      SamplingSetting(presence, "penalty for having been said, 0 is off,"),
      SamplingSetting(frequency, "penalty for each time it was said, 0 is off,"),
      SamplingSetting(window, "tokens that penalties look back"),

      DurationSetting("sessions.undelete_window",
                      "how long a deleted session can come back; 0s = not at all",
                      absl::ZeroDuration(), MNEME_FIELD(sessions.undelete_window_ms)),
      DurationSetting("sessions.sweep_interval", "pause between looks for expired sessions",
                      absl::Milliseconds(1), MNEME_FIELD(sessions.sweep_interval_ms)),
      DurationSetting("sessions.ingest_commit_interval",
                      "an ingest makes its progress durable at least so often",
                      absl::Milliseconds(1), MNEME_FIELD(sessions.ingest_commit_interval_ms)),

      DurationSetting("generations.keep",
                      "how long the output of a generation that has ended can be read again; 0s = "
                      "not at all",
                      absl::ZeroDuration(), MNEME_FIELD(generations.keep_ms)),
      BytesSetting("generations.keep_bytes",
                   "memory for such output, of each tenant; the oldest goes first", 0, kMax,
                   MNEME_FIELD(generations.keep_bytes)),

      TextSetting("replica.name", "this server's name, in x-served-by; empty = the host's",
                  MNEME_FIELD(replica.name)),
      DurationSetting(
          "replica.lease_ttl",
          "of a store that servers share: how long a silent one keeps the sessions it writes",
          absl::Milliseconds(2), MNEME_FIELD(replica.lease_ttl_ms)),
      DurationSetting("replica.lease_renew", "how often it says that it is there",
                      absl::Milliseconds(1), MNEME_FIELD(replica.lease_renew_ms)),

      DurationSetting("drain.pre_stop_delay",
                      "after SIGTERM: still serving, but NOT_SERVING to health checks",
                      absl::ZeroDuration(), MNEME_FIELD(drain.pre_stop_delay_ms)),
      DurationSetting("drain.timeout", "then: how long running turns may go on",
                      absl::ZeroDuration(), MNEME_FIELD(drain.timeout_ms)),

      TextSetting("log_level", "what goes to standard error", MNEME_FIELD(log_level),
                  {"trace", "debug", "info", "warn", "error"}),
  };
}

#undef MNEME_FIELD

// Levenshtein; keys are short.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

const std::vector<Setting>& Settings() {
  static const auto* const settings = new std::vector<Setting>(MakeSettings());
  return *settings;
}

const Setting* FindSetting(std::string_view key) {
  for (const Setting& setting : Settings()) {
    if (setting.key == key) return &setting;
  }
  return nullptr;
}

std::string NearestKey(std::string_view key, const std::vector<std::string>& more_keys) {
  std::string best;
  size_t best_distance = std::max<size_t>(3, key.size() / 3) + 1;
  auto consider = [&](std::string_view candidate, size_t distance) {
    if (distance >= best_distance) return;
    best_distance = distance;
    best = std::string(candidate);
  };
  for (const Setting& setting : Settings()) {
    consider(setting.key, EditDistance(key, setting.key));
    // "threads" means engine.threads.
    const size_t dot = setting.key.find('.');
    if (dot != std::string::npos) {
      consider(setting.key, EditDistance(key, std::string_view(setting.key).substr(dot + 1)) + 1);
    }
  }
  for (const std::string& candidate : more_keys) consider(candidate, EditDistance(key, candidate));
  return best;
}

std::string EnvironmentName(std::string_view key) {
  std::string name = "MNEME_";
  for (char c : key) {
    name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

std::string_view KindName(Setting::Kind kind) {
  switch (kind) {
    case Setting::Kind::kText:
      return "TEXT";
    case Setting::Kind::kInteger:
      return "NUMBER";
    case Setting::Kind::kNumbers:
      return "NUMBER|MODEL=NUMBER,...";
    case Setting::Kind::kBytes:
      return "BYTES";
    case Setting::Kind::kDuration:
      return "TIME";
    case Setting::Kind::kSwitch:
      return "true|false";
  }
  return "";
}

}  // namespace mneme::server
