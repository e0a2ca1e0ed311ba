// What to tell where a session meets a server that is not as the one it was made on: what the
// session needs, what is there instead, and what to do. Metadata has both values of what differs.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/state/snapshot.h"
#include "server/core/config.h"
#include "server/core/model_registry.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

using ModelMap = std::map<std::string, std::unique_ptr<Model>>;

// What is kept with a session, so that it can be told later.
storage::CheckpointInfo CheckpointInfoOf(const v1::Model& model);
storage::StateSettings StateSettingsOf(const Config::Engine& engine);

// FAILED_PRECONDITION MODEL_NOT_LOADED: no model has the session's model's name.
absl::Status ModelGone(const storage::StoredSession& session, const ModelMap& models);

// FAILED_PRECONDITION MODEL_MISMATCH: under the name of the session's model is another checkpoint.
absl::Status OtherCheckpoint(const storage::StoredSession& session, const Model& present,
                             const ModelMap& models);

// FAILED_PRECONDITION MODEL_MISMATCH: `parsed`, a manifest that was read or the reader's refusal of
// its version, is of a format that this server does not continue.
absl::Status OtherFormat(const absl::StatusOr<engine::SnapshotManifest>& parsed);

// FAILED_PRECONDITION MODEL_MISMATCH: the state of `point` is laid out in another way than those of
// `present`.
absl::Status OtherLayout(const storage::Point& point, const engine::SnapshotManifest& manifest,
                         const Model& present);

}  // namespace mneme::server
