#include "server/core/model_mismatch.h"

#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

using Metadata = std::map<std::string, std::string>;

// "SmolLM2 135M Instruct (llama, Q4_1)"; "" of sessions from before it was kept.
std::string Describe(const storage::CheckpointInfo& info) {
  if (info.architecture().empty()) return "";
  return absl::StrCat(info.description().empty() ? "a checkpoint" : info.description(), " (",
                      info.architecture(), ", ", info.weight_type(), ")");
}

// The model that has the session's checkpoint, "" if none has.
std::string SameCheckpoint(const storage::StoredSession& session, const ModelMap& models) {
  for (const auto& [name, model] : models) {
    if (model->engine->model_fingerprint() == session.model_fingerprint()) return name;
  }
  return "";
}

// "models/smollm2" -> "smollm2", as --model takes it.
std::string Id(const std::string& model) { return model.substr(model.find('/') + 1); }

std::string Remedy(const storage::StoredSession& session, const std::string& same,
                   Metadata& metadata) {
  if (same.empty()) {
    return absl::StrCat("start the server with that checkpoint as --model ", Id(session.model()),
                        "=PATH");
  }
  metadata["same_checkpoint"] = same;
  return absl::StrCat(same, " is the session's checkpoint: start the server with it as --model ",
                      Id(session.model()), "=PATH");
}

// Of the settings that shape a state.
struct Value {
  const char* setting;
  std::string text;
};
std::vector<Value> Values(const storage::StateSettings& settings) {
  return {{"window_tokens", absl::StrCat(settings.window_tokens())},
          {"sink_tokens", absl::StrCat(settings.sink_tokens())},
          {"overflow", settings.overflow()},
          {"kv_dtype", settings.kv_dtype()}};
}

absl::Status Mismatch(std::string message, Metadata metadata) {
  return Error(absl::StatusCode::kFailedPrecondition, reason::kModelMismatch, std::move(message),
               std::move(metadata));
}

}  // namespace

storage::CheckpointInfo CheckpointInfoOf(const v1::Model& model) {
  storage::CheckpointInfo out;
  out.set_description(model.description());
  out.set_architecture(model.architecture());
  out.set_weight_type(model.weight_type());
  return out;
}

storage::StateSettings StateSettingsOf(const Config::Engine& engine) {
  storage::StateSettings out;
  out.set_window_tokens(engine.window_tokens);
  out.set_sink_tokens(engine.sink_tokens);
  out.set_overflow(engine.overflow);
  out.set_kv_dtype(engine.kv_dtype);
  return out;
}

absl::Status ModelGone(const storage::StoredSession& session, const ModelMap& models) {
  const std::string loaded = absl::StrJoin(
      models, ", ", [](std::string* out, const auto& model) { out->append(model.first); });
  Metadata metadata = {{"session_model", session.model()}, {"loaded_models", loaded}};
  const std::string checkpoint = Describe(session.checkpoint());
  const std::string remedy = Remedy(session, SameCheckpoint(session, models), metadata);
  return WithResource(
      Error(absl::StatusCode::kFailedPrecondition, reason::kModelNotLoaded,
            absl::StrCat("the session was made with ", session.model(),
                         checkpoint.empty() ? "" : absl::StrCat(", ", checkpoint),
                         ", which is not loaded; this server has ", loaded, "; ", remedy),
            std::move(metadata)),
      "mneme.v1.Model", session.model());
}

absl::Status OtherCheckpoint(const storage::StoredSession& session, const Model& present,
                             const ModelMap& models) {
  const std::string was = Describe(session.checkpoint());
  const std::string is = Describe(CheckpointInfoOf(present.info));
  Metadata metadata = {
      {"session_fingerprint", absl::BytesToHexString(session.model_fingerprint())},
      {"model_fingerprint", absl::BytesToHexString(present.engine->model_fingerprint())},
      {"session_checkpoint", was},
      {"model_checkpoint", is}};
  const std::string remedy = Remedy(session, SameCheckpoint(session, models), metadata);
  return Mismatch(
      absl::StrCat("the session was made with another checkpoint under the name ", session.model(),
                   ": ", was.empty() ? "with" : absl::StrCat(was, ","), " fingerprint ",
                   metadata["session_fingerprint"].substr(0, 12), "; now it is ", is,
                   ", fingerprint ", metadata["model_fingerprint"].substr(0, 12), "; ", remedy),
      metadata);
}

absl::Status OtherFormat(const absl::StatusOr<engine::SnapshotManifest>& parsed) {
  constexpr char kRemedy[] =
      "use the version of the server that wrote it, or read its text by ReadTranscript into a new "
      "session";
  Metadata metadata = {{"server_format", absl::StrCat(engine::kSnapshotFormat)}};
  if (!parsed.ok()) {
    return Mismatch(absl::StrCat("the session's state cannot be continued: ",
                                 parsed.status().message(), "; ", kRemedy),
                    std::move(metadata));
  }
  metadata["session_format"] = absl::StrCat(parsed->format_version);
  metadata["session_numerics_id"] = parsed->identity.numerics_id;
  return Mismatch(
      absl::StrCat("the session's state was stored in format ", parsed->format_version, " by ",
                   parsed->identity.numerics_id, "; this server continues format ",
                   engine::kSnapshotFormat, "; ", kRemedy),
      std::move(metadata));
}

absl::Status OtherLayout(const storage::Point& point, const engine::SnapshotManifest& manifest,
                         const Model& present) {
  const std::vector<Value> here = Values(present.settings);
  Metadata metadata;
  std::vector<std::string> differences;
  if (point.has_settings()) {
    const std::vector<Value> there = Values(point.settings());
    for (size_t i = 0; i < here.size(); ++i) {
      if (there[i].text == here[i].text) continue;
      metadata[absl::StrCat("session_", there[i].setting)] = there[i].text;
      metadata[absl::StrCat("server_", here[i].setting)] = here[i].text;
      differences.push_back(absl::StrCat("engine.", here[i].setting, " ", there[i].text, " (here ",
                                         here[i].text, ")"));
    }
    if (!differences.empty()) {
      return Mismatch(
          absl::StrCat("the session's state was made with ", absl::StrJoin(differences, ", "),
                       "; start the server with the session's"),
          std::move(metadata));
    }
    metadata = {{"session_numerics_id", manifest.identity.numerics_id},
                {"server_numerics_id", present.engine->numerics_id()}};
    return Mismatch(absl::StrCat("the session's state was made by another build of the server, ",
                                 manifest.identity.numerics_id, ", and this one, ",
                                 present.engine->numerics_id(),
                                 ", lays states out in another way; use that build, or make a new "
                                 "session"),
                    std::move(metadata));
  }
  // Stored before the settings were kept.
  for (const Value& value : here) {
    metadata[absl::StrCat("server_", value.setting)] = value.text;
    differences.push_back(absl::StrCat("engine.", value.setting, " ", value.text));
  }
  return Mismatch(
      absl::StrCat("the session's state was made with other settings than this server "
                   "has, ",
                   absl::StrJoin(differences, ", "), "; start the server with those it had then"),
      std::move(metadata));
}

}  // namespace mneme::server
