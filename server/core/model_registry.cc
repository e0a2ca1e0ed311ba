#include "server/core/model_registry.h"

#include <algorithm>
#include <new>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "engine/core/status_macros.h"
#include "engine/kernels/kernels.h"
#include "server/core/errors.h"
#include "server/core/model_mismatch.h"
#include "server/core/resource_id.h"
#include "server/core/sampling_defaults.h"
#include "server/core/session_names.h"

namespace mneme::server {
namespace {

absl::Status At(const ModelConfig& model, const absl::Status& status) {
  return {status.code(), absl::StrCat("model ", model.name, ": ", status.message())};
}

absl::StatusOr<engine::EngineOptions> OptionsFor(const Config& config, const ModelConfig& model,
                                                 std::shared_ptr<engine::Device> device) {
  engine::EngineOptions options;
  options.checkpoint_path = model.path;
  options.device = std::move(device);
  if (config.engine.contract == "int8") {
    options.contract = engine::Contract::kInt8;
  } else if (config.engine.contract == "f32") {
    options.contract = engine::Contract::kF32;
  } else {
    return absl::InvalidArgumentError("engine.contract must be int8 or f32");
  }
  if (config.engine.kv_dtype == "f16") {
    options.arch.kv_dtype = engine::DType::kF16;
  } else if (config.engine.kv_dtype == "f32") {
    options.arch.kv_dtype = engine::DType::kF32;
  } else {
    return absl::InvalidArgumentError("engine.kv_dtype must be f16 or f32");
  }
  if (config.engine.overflow == "error") {
    options.arch.overflow = engine::ArchOptions::Overflow::kError;
  } else if (config.engine.overflow != "slide") {
    return absl::InvalidArgumentError("engine.overflow must be slide or error");
  }
  options.arch.window_tokens = config.engine.window_tokens;
  options.arch.sink_tokens = config.engine.sink_tokens;
  return options;
}

std::string DescribeDevice(const engine::Device& device) {
  return absl::StrCat(device.place(), " (", device.description(), ")");
}

v1::Model Describe(const Model& model) {
  const engine::ArchInfo& info = model.engine->info();
  v1::Model out;
  out.set_name(model.name);
  out.set_architecture(info.architecture);
  out.set_description(model.engine->model_name());
  out.set_fingerprint(absl::BytesToHexString(model.engine->model_fingerprint()));
  out.set_numerics_id(model.engine->numerics_id());
  out.set_device(absl::StrJoin(model.replicas, ", ", [](std::string* out, const Replica& replica) {
    absl::StrAppend(out, DescribeDevice(replica.device()));
  }));
  out.set_parameters(info.parameters);
  out.set_weight_bytes(info.weight_bytes);
  out.set_vocab_size(info.vocab_size);
  out.set_trained_context_tokens(info.trained_context_tokens);
  out.set_effective_context_tokens(info.effective_context_tokens);
  const engine::StateSchema& schema = model.engine->schema();
  out.set_context_limit_tokens(schema.position_limit());
  out.set_state_bytes(static_cast<int64_t>(schema.StateBytes(schema.position_limit())));
  out.set_fixed_state_bytes(static_cast<int64_t>(schema.size_bytes()));
  out.set_state_bytes_per_token(static_cast<int64_t>(schema.page_bytes()) / engine::kPageTokens);
  out.set_state_formula(info.state_formula);
  out.set_weight_type(std::string(engine::Traits(info.weight_dtype).name));
  out.set_has_chat_template(model.engine->chat_template() != nullptr);
  out.set_chat_template_problem(model.engine->chat_template_problem());
  return out;
}

// Pages the weights in and shows a broken model at start rather than in a user's first turn.
absl::Status WarmUp(engine::Engine& engine) {
  engine::State state = engine.CreateState();
  std::vector<float> logits(engine.info().vocab_size);
  const engine::TokenId token = std::max<engine::TokenId>(0, engine.tokenizer().special().bos);
  const engine::EngineSlice slice{
      .state = &state, .tokens = {&token, 1}, .num_logits = 1, .logits = logits.data()};
  return engine.Step({&slice, 1});
}

absl::Status ModelDenied() {
  return AccessDenied("this key may not use that model; list the models that it may");
}

}  // namespace

int64_t Model::SlotBytes(int64_t tokens) const {
  const int64_t read = context_limit() > 0 ? std::min(tokens, context_limit()) : 0;
  return static_cast<int64_t>(engine->schema().StateBytes(read) +
                              engine->hidden_size() * sizeof(float));
}

bool Model::IsEndOfGeneration(engine::TokenId token) const {
  const auto& ends = tokenizer().special().end_of_generation;
  return std::binary_search(ends.begin(), ends.end(), token);
}

// That a GPU is not there is no error where nobody asked for one by name; that there are GPUs, but
// not the one that a model is to be on, is.
absl::StatusOr<std::shared_ptr<engine::Device>> ModelRegistry::Device(const Config& config,
                                                                      int number) {
  std::shared_ptr<engine::Device>& device = devices_[number];
  if (device != nullptr) return device;
  const int threads = config.engine.threads;
  if (backend_.empty()) backend_ = config.engine.backend;
  if (backend_ == kAutoBackend) {
    auto gpu = engine::CreateDevice("cuda", threads, number);
    if (absl::IsInvalidArgument(gpu.status())) return gpu.status();
    if (gpu.ok()) {
      backend_ = "cuda";
      device = *std::move(gpu);
      return device;
    }
    // A server that was installed without the backend is as it was meant to be: nothing to tell.
    if (!absl::IsNotFound(gpu.status())) no_gpu_because_ = std::string(gpu.status().message());
    backend_ = "cpu";
  }
  auto made = engine::CreateDevice(backend_, threads, number);
  if (!made.ok()) {
    const std::string why = no_gpu_because_.empty() ? "" : "; no GPU: " + no_gpu_because_;
    return absl::Status(made.status().code(), absl::StrCat(made.status().message(), why));
  }
  device = *std::move(made);
  return device;
}

std::string ModelRegistry::DeviceDescription() const {
  std::string text = absl::StrJoin(devices_, ", ", [](std::string* out, const auto& entry) {
    absl::StrAppend(out, DescribeDevice(*entry.second));
  });
  if (!no_gpu_because_.empty()) absl::StrAppend(&text, "; no GPU: ", no_gpu_because_);
  return text;
}

absl::StatusOr<Replica> ModelRegistry::LoadReplica(const Config& config, const ModelConfig& entry,
                                                   int number, ModelMetrics& metrics) {
  // One device for all models on it: its threads and scratch are shared, and their passes take
  // turns.
  MNEME_ASSIGN_OR_RETURN(auto device, Device(config, number));
  MNEME_ASSIGN_OR_RETURN(const auto options, OptionsFor(config, entry, std::move(device)));
  Replica replica;
  try {
    MNEME_ASSIGN_OR_RETURN(replica.engine, engine::Engine::Load(options));
    MNEME_RETURN_IF_ERROR(WarmUp(*replica.engine));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("not enough memory");
  }
  replica.scheduler = std::make_unique<Scheduler>(
      *replica.engine,
      Scheduler::Limits{.prefill_chunk_tokens = config.limits.prefill_chunk_tokens,
                        .max_step_tokens = config.limits.max_step_tokens},
      metrics);
  return replica;
}

absl::StatusOr<std::unique_ptr<ModelRegistry>> ModelRegistry::Load(const Config& config,
                                                                   Metrics& metrics) {
  const std::string& target = config.engine.simd_target;
  if (!target.empty() && !engine::PinSimdTarget(target)) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine.simd_target is \"", target, "\"; this machine has ",
                     absl::StrJoin(engine::AvailableSimdTargets(), ", ")));
  }
  auto registry = std::make_unique<ModelRegistry>();
  for (const ModelConfig& entry : config.models) {
    if (!IsValidId(entry.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("model name \"", entry.name,
                       "\" must be 1 to 63 of a-z, 0-9 and '-', begin with a letter and not end "
                       "with '-'"));
    }
    auto model = std::make_unique<Model>();
    model->name = FullModelName(entry.name);
    model->metrics = &metrics.ForModel(entry.name);
    for (const int number : entry.devices) {
      auto replica = registry->LoadReplica(config, entry, number, *model->metrics);
      if (!replica.ok()) return At(entry, replica.status());
      model->replicas.push_back(*std::move(replica));
      model->engine = model->replicas.front().engine.get();
      const engine::Engine& other = *model->replicas.back().engine;
      if (other.numerics_id() != model->engine->numerics_id()) {
        return absl::InvalidArgumentError(
            absl::StrCat("model ", entry.name, ": its devices do not compute the same bits: ",
                         model->engine->numerics_id(), " and ", other.numerics_id()));
      }
    }
    model->info = Describe(*model);
    model->settings = StateSettingsOf(config.engine);
    auto sampling = SamplingDefaults(config.sampling, entry.name, model->engine->sampling_hints());
    if (!sampling.ok()) return At(entry, sampling.status());
    *model->info.mutable_default_sampling() = *std::move(sampling);
    for (const Replica& replica : model->replicas) {
      metrics.model_info
          .Add({{"model", entry.name},
                {"backend", std::string(replica.device().name())},
                {"device", replica.device().place()},
                {"architecture", model->info.architecture()},
                {"weight_type", model->info.weight_type()}})
          .Set(1);
    }
    const std::string name = model->name;
    if (!registry->models_.emplace(name, std::move(model)).second) {
      return absl::InvalidArgumentError(absl::StrCat("model ", entry.name, " is given twice"));
    }
  }
  return registry;
}

absl::StatusOr<const Model*> ModelRegistry::Find(const CallContext& context,
                                                 const std::string& name,
                                                 const std::string& field) const {
  FieldErrors errors;
  if (name.empty()) {
    std::vector<const Model*> usable;
    for (const auto& [full, model] : models_) {
      if (context.MayUseModel(full)) usable.push_back(model.get());
    }
    if (usable.empty()) return ModelDenied();
    if (usable.size() == 1) return usable.front();
    const std::string names = absl::StrJoin(usable, ", ", [](std::string* out, const Model* model) {
      absl::StrAppend(out, absl::StripPrefix(model->name, "models/"));
    });
    errors.Add(field, absl::StrCat("is required: this server has several models, ", names),
               reason::kFieldRequired);
    return errors.ToStatus();
  }
  const std::string full = FullModelName(name);
  if (!IsValidId(std::string_view(full).substr(full.find('/') + 1))) {
    errors.Add(field, "must be a model's id, or have the form models/{model}");
    return errors.ToStatus();
  }
  if (!context.MayUseModel(full)) return ModelDenied();
  auto found = models_.find(full);
  if (found == models_.end()) {
    return WithResource(Error(absl::StatusCode::kNotFound, reason::kModelNotFound,
                              "there is no such model; list the models that this server has"),
                        "mneme.v1.Model", full);
  }
  return found->second.get();
}

absl::StatusOr<const Model*> ModelRegistry::ForSession(
    const CallContext& context, const storage::StoredSession& session) const {
  if (!context.MayUseModel(session.model())) return ModelDenied();
  const auto found = models_.find(session.model());
  if (found == models_.end()) return ModelGone(session, models_);
  const Model& model = *found->second;
  if (model.engine->model_fingerprint() != session.model_fingerprint()) {
    return OtherCheckpoint(session, model, models_);
  }
  return &model;
}

}  // namespace mneme::server
