// The models that this server has loaded, each with its engine and its batch.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "mneme/v1/models.pb.h"
#include "server/core/call_context.h"
#include "server/core/config.h"
#include "server/core/metrics.h"
#include "server/core/prefix_cache.h"
#include "server/core/scheduler.h"
#include "server/core/state_cache.h"
#include "server/core/storage.pb.h"

namespace mneme::server {

// A model on one device: its engine, which only the scheduler steps.
struct Replica {
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<Scheduler> scheduler;  // destroyed before the engine
  StateCache* states = nullptr;          // of the device
  PrefixCache* prefixes = nullptr;       // likewise

  const engine::Device& device() const { return engine->device(); }
};

// Immutable.
struct Model {
  std::string name;                  // models/{model}
  std::vector<Replica> replicas;     // at least one; they compute the same bits
  engine::Engine* engine = nullptr;  // the first one's: for what they have alike
  ModelMetrics* metrics = nullptr;   // of the Metrics that Load was given
  v1::Model info;
  storage::StateSettings settings;  // that its states are made with

  const engine::Tokenizer& tokenizer() const { return engine->tokenizer(); }
  // The most tokens that a session of this model may read; 0: any number.
  int64_t context_limit() const { return engine->schema().position_limit(); }
  // A state that has read up to `tokens`, its hidden row included.
  int64_t SlotBytes(int64_t tokens) const;
  bool IsEndOfGeneration(engine::TokenId token) const;
};

class ModelRegistry {
 public:
  // Loads every model and runs one token through it. Errors name the model and what was wrong.
  static absl::StatusOr<std::unique_ptr<ModelRegistry>> Load(const Config& config,
                                                             Metrics& metrics);

  // `name` may be short, or empty if there is exactly one model that the caller may use. Errors:
  // FIELD_REQUIRED, FIELD_INVALID (malformed) or NOT_FOUND MODEL_NOT_FOUND, naming `field`;
  // ACCESS_DENIED if the caller may not use it, whether there is one or not.
  absl::StatusOr<const Model*> Find(const CallContext& context, const std::string& name,
                                    const std::string& field) const;
  // Of a stored session: MODEL_NOT_LOADED if the name is gone, MODEL_MISMATCH if the checkpoint
  // behind it is another one, model_mismatch.h; ACCESS_DENIED as above.
  absl::StatusOr<const Model*> ForSession(const CallContext& context,
                                          const storage::StoredSession& session) const;
  // Where they run, by number: all of one backend.
  const std::map<int, std::shared_ptr<engine::Device>>& devices() const { return devices_; }
  // "cuda:0 (NVIDIA H200), cuda:1 (NVIDIA H200)"; or "cpu (host, avx3)", and why no GPU was taken
  // where the backend for them is installed.
  std::string DeviceDescription() const;
  // Ordered by name.
  const std::map<std::string, std::unique_ptr<Model>>& models() const { return models_; }

 private:
  // Made for the first model that is to be there.
  absl::StatusOr<std::shared_ptr<engine::Device>> Device(const Config& config, int number);
  // Engine and batch of `entry` on device `number`, warm.
  absl::StatusOr<Replica> LoadReplica(const Config& config, const ModelConfig& entry, int number,
                                      ModelMetrics& metrics);

  std::string backend_;  // once the first device is there
  std::map<int, std::shared_ptr<engine::Device>> devices_;
  std::string no_gpu_because_;
  std::map<std::string, std::unique_ptr<Model>> models_;
};

}  // namespace mneme::server
