#include "server/core/server_core.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/mutex.h"
#include "engine/core/status_macros.h"
#include "server/core/admin.h"
#include "server/core/device_status.h"
#include "server/core/generate.h"
#include "server/core/ingest.h"
#include "server/core/parts.h"
#include "server/core/read_transcript.h"
#include "server/core/session_export.h"
#include "server/core/session_names.h"
#include "server/core/sessions.h"
#include "server/core/snapshots.h"
#include "server/core/tokens.h"

namespace mneme::server {
namespace {

// Sessions that one sweep deals with: small, so that it never delays a turn for long.
constexpr int kSweepBatch = 20;

// What nobody has begun with for so long is not kept, whatever the memory.
constexpr auto kPrefixIdle = std::chrono::minutes(10);

// Beyond the limits, so that those who refuse say which one it is.
constexpr size_t kSpareTurnThreads = 16;

absl::Status CheckConfig(const Config& config) {
  const auto at_least_one = [](int64_t value, const char* name) {
    return value >= 1 ? absl::OkStatus()
                      : absl::InvalidArgumentError(absl::StrCat(name, " must be at least 1"));
  };
  const Config::Limits& limits = config.limits;
  MNEME_RETURN_IF_ERROR(at_least_one(limits.max_input_tokens, "limits.max_input_tokens"));
  MNEME_RETURN_IF_ERROR(at_least_one(limits.max_output_tokens, "limits.max_output_tokens"));
  MNEME_RETURN_IF_ERROR(at_least_one(limits.max_running_streams, "limits.max_running_streams"));
  MNEME_RETURN_IF_ERROR(at_least_one(limits.prefill_chunk_tokens, "limits.prefill_chunk_tokens"));
  MNEME_RETURN_IF_ERROR(at_least_one(limits.max_step_tokens, "limits.max_step_tokens"));
  MNEME_RETURN_IF_ERROR(at_least_one(limits.max_unsent_tokens, "limits.max_unsent_tokens"));
  if (limits.max_queued_requests < 0 || limits.state_memory_bytes < 0) {
    return absl::InvalidArgumentError(
        "limits.max_queued_requests and limits.state_memory_bytes must not be negative");
  }
  if (config.sessions.undelete_window_ms < 0 || config.sessions.sweep_interval_ms < 1 ||
      config.sessions.ingest_commit_interval_ms < 1) {
    return absl::InvalidArgumentError(
        "sessions.undelete_window_ms must not be negative, sessions.sweep_interval_ms and "
        "sessions.ingest_commit_interval_ms must be positive");
  }
  if (config.generations.keep_ms < 0 || config.generations.keep_bytes < 0) {
    return absl::InvalidArgumentError(
        "generations.keep and generations.keep_bytes must not be negative");
  }
  if (config.replica.lease_renew_ms < 1 ||
      config.replica.lease_ttl_ms < 2 * config.replica.lease_renew_ms) {
    return absl::InvalidArgumentError(
        absl::StrCat("replica.lease_ttl is ", config.replica.lease_ttl_ms,
                     " ms, expected at least twice replica.lease_renew, which is ",
                     config.replica.lease_renew_ms, " ms"));
  }
  return absl::OkStatus();
}

// For the states of the models on `device`, which have its budget to themselves.
absl::Status AddCache(Parts& parts, engine::Device& device) {
  const Config::Limits& limits = parts.config.limits;
  const engine::Memory& memory = device.memory();
  const int64_t all =
      limits.state_memory_bytes > 0 ? limits.state_memory_bytes : memory.CapacityBytes() / 2;
  int64_t most = 0;  // of one state
  std::vector<std::string> names;
  std::vector<Replica*> replicas;
  for (const auto& [name, model] : parts.models->models()) {
    const auto here = std::ranges::find_if(
        model->replicas, [&](const Replica& replica) { return &replica.device() == &device; });
    if (here == model->replicas.end()) continue;
    names.push_back(name);
    replicas.push_back(&*here);
    const int64_t largest = model->SlotBytes(model->context_limit());
    if (largest > all) {
      return absl::InvalidArgumentError(
          absl::StrCat("limits.state_memory_bytes is ", all, ", one state of ", name, " needs ",
                       largest, "; raise it or choose a smaller engine.window_tokens"));
    }
    most = std::max(most, largest);
  }
  // Where memory is so short that the share holds no state, sessions have it all.
  int64_t for_prefixes = all / 100 * limits.prefix_memory_percent;
  if (for_prefixes < most || all - for_prefixes < most) for_prefixes = 0;
  const auto share = static_cast<int64_t>(parts.models->models().size());
  const TierMetrics tier = parts.metrics.Tier(memory.OnHost() ? "host" : device.place());
  StateCache* const cache = parts.states.Add(std::make_unique<StateCache>(
      all - for_prefixes, static_cast<int>(limits.max_running_streams),
      static_cast<int>((limits.max_queued_requests + share - 1) / share), names, tier,
      parts.metrics, parts.tenants));
  PrefixCache* const prefixes =
      parts.prefixes.Add(std::make_unique<PrefixCache>(for_prefixes, tier.prefix_state_bytes));
  for (Replica* replica : replicas) {
    replica->states = cache;
    replica->prefixes = prefixes;
  }
  return absl::OkStatus();
}

// Whether every device of `model` has failed, `device` being the last of them in order.
bool LostWith(const Model& model, const engine::Device& device) {
  return &model.replicas.back().device() == &device &&
         std::ranges::none_of(model.replicas,
                              [](const Replica& replica) { return replica.device().Fault().ok(); });
}

class ServerCoreImpl final : public ServerCore {
 public:
  static absl::StatusOr<std::unique_ptr<ServerCore>> Make(
      const Config& config, std::unique_ptr<memstore::StateStore> store) {
    MNEME_RETURN_IF_ERROR(CheckConfig(config));
    auto core = std::make_unique<ServerCoreImpl>();
    Parts& parts = core->parts_;
    parts.config = config;
    MNEME_ASSIGN_OR_RETURN(parts.models, ModelRegistry::Load(config, parts.metrics));
    for (const auto& [number, device] : parts.models->devices()) {
      MNEME_RETURN_IF_ERROR(AddCache(parts, *device));
    }
    parts.sessions = std::make_unique<SessionStore>(
        std::move(store), config.sessions.undelete_window_ms,
        LeaseTable::Options{.owner = absl::StrCat(config.replica.name, "/", MakeUid()),
                            .ttl = absl::Milliseconds(config.replica.lease_ttl_ms),
                            .renew_every = absl::Milliseconds(config.replica.lease_renew_ms)},
        parts.metrics);
    MNEME_RETURN_IF_ERROR(parts.sessions->Start());
    parts.storage = std::make_unique<TenantStorage>(*parts.sessions, parts.metrics);
    parts.requests = std::make_unique<RequestMemory>(*parts.sessions);
    parts.generations = std::make_unique<GenerationTable>(
        GenerationTable::Options{
            .keep = absl::Milliseconds(config.generations.keep_ms),
            .keep_bytes = config.generations.keep_bytes,
            .max_turns =
                static_cast<size_t>(config.num_devices() * config.limits.max_running_streams +
                                    config.limits.max_queued_requests) +
                kSpareTurnThreads},
        parts.metrics);
    core->sweeper_ = std::thread([impl = core.get()] { impl->Sweep(); });
    return core;
  }

  ~ServerCoreImpl() override {
    {
      MutexLock lock(&mutex_);
      stop_ = true;
      wake_.NotifyAll();
    }
    if (sweeper_.joinable()) sweeper_.join();
  }

  absl::StatusOr<v1::ListModelsResponse> ListModels(CallContext& context,
                                                    const v1::ListModelsRequest& request) override {
    return Count(DoListModels(context, request));
  }
  absl::StatusOr<v1::Model> GetModel(CallContext& context,
                                     const v1::GetModelRequest& request) override {
    return Count(DoGetModel(context, request));
  }
  absl::StatusOr<v1::Session> CreateSession(CallContext& context,
                                            const v1::CreateSessionRequest& request) override {
    return Count(Once(context, request, server::CreateSession));
  }
  absl::StatusOr<v1::Session> GetSession(CallContext& context,
                                         const v1::GetSessionRequest& request) override {
    return Count(server::GetSession(parts_, context, request));
  }
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(
      CallContext& context, const v1::ListSessionsRequest& request) override {
    return Count(server::ListSessions(parts_, context, request));
  }
  absl::StatusOr<v1::Session> UpdateSession(CallContext& context,
                                            const v1::UpdateSessionRequest& request) override {
    return Count(Once(context, request, server::UpdateSession));
  }
  absl::StatusOr<v1::Session> DeleteSession(CallContext& context,
                                            const v1::DeleteSessionRequest& request) override {
    return Count(Once(context, request, server::DeleteSession));
  }
  absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
      CallContext& context, const v1::BatchDeleteSessionsRequest& request) override {
    return Count(server::BatchDeleteSessions(parts_, context, request));
  }
  absl::StatusOr<v1::Session> UndeleteSession(CallContext& context,
                                              const v1::UndeleteSessionRequest& request) override {
    return Count(Once(context, request, server::UndeleteSession));
  }
  absl::StatusOr<v1::ForkSessionResponse> ForkSession(
      CallContext& context, const v1::ForkSessionRequest& request) override {
    return Count(Once(context, request, server::ForkSession));
  }
  absl::StatusOr<v1::RewindSessionResponse> RewindSession(
      CallContext& context, const v1::RewindSessionRequest& request) override {
    return Count(Once(context, request, server::RewindSession));
  }
  absl::StatusOr<v1::Snapshot> CreateSnapshot(CallContext& context,
                                              const v1::CreateSnapshotRequest& request) override {
    return Count(Once(context, request, server::CreateSnapshot));
  }
  absl::StatusOr<v1::Snapshot> GetSnapshot(CallContext& context,
                                           const v1::GetSnapshotRequest& request) override {
    return Count(server::GetSnapshot(parts_, context, request));
  }
  absl::StatusOr<v1::Snapshot> DeleteSnapshot(CallContext& context,
                                              const v1::DeleteSnapshotRequest& request) override {
    return Count(Once(context, request, server::DeleteSnapshot));
  }
  absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(
      CallContext& context, const v1::ListSnapshotsRequest& request) override {
    return Count(server::ListSnapshots(parts_, context, request));
  }
  absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(
      CallContext& context, const v1::ReadTranscriptRequest& request) override {
    return Count(server::ReadTranscript(parts_, context, request));
  }
  absl::StatusOr<std::unique_ptr<Ingest>> StartIngest(
      CallContext& context, const v1::IngestRequest::Start& start) override {
    return Count(server::StartIngest(parts_, context, start));
  }
  absl::Status ExportSession(CallContext& context, const v1::ExportSessionRequest& request,
                             ExportSink& sink) override {
    return Count(server::ExportSession(parts_, context, request, sink));
  }
  absl::StatusOr<std::unique_ptr<Import>> StartImport(
      CallContext& context, const v1::ImportSessionRequest::Start& start) override {
    return Count(server::StartImport(parts_, context, start));
  }

  absl::Status Generate(CallContext& context, const v1::GenerateRequest& request,
                        TurnSink& sink) override {
    return Count(server::Generate(parts_, context, request, sink));
  }
  absl::Status ResumeGeneration(CallContext& context, const v1::ResumeGenerationRequest& request,
                                TurnSink& sink) override {
    return Count(server::ResumeGeneration(parts_, context, request, sink));
  }
  absl::StatusOr<v1::GenerationInfo> GetGeneration(
      CallContext& context, const v1::GetGenerationRequest& request) override {
    return server::GetGeneration(parts_, context, request);
  }
  absl::StatusOr<v1::CancelGenerationResponse> CancelGeneration(
      CallContext& context, const v1::CancelGenerationRequest& request) override {
    return server::CancelGeneration(parts_, context, request);
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(CallContext& context,
                                                const v1::TokenizeRequest& request) override {
    return Count(server::Tokenize(parts_, context, request));
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(CallContext& context,
                                                    const v1::DetokenizeRequest& request) override {
    return Count(server::Detokenize(parts_, context, request));
  }
  absl::StatusOr<v1::ScoreResponse> Score(CallContext& context,
                                          const v1::ScoreRequest& request) override {
    return Count(server::Score(parts_, context, request));
  }

  absl::StatusOr<v1::ServerInfo> GetServerInfo(CallContext&,
                                               const v1::GetServerInfoRequest&) override {
    return server::GetServerInfo(parts_);
  }
  absl::StatusOr<v1::Loads> GetLoads(CallContext&, const v1::GetLoadsRequest&) override {
    return server::GetLoads(parts_);
  }

  std::string DeviceDescription() const override { return parts_.models->DeviceDescription(); }
  std::vector<std::string> ModelNames() const override {
    std::vector<std::string> names;
    for (const auto& [name, model] : parts_.models->models()) names.push_back(name);
    return names;
  }
  std::vector<DeviceFault> DeviceFaults() const override {
    std::vector<DeviceFault> faults;
    for (const auto& [number, device] : parts_.models->devices()) {
      const absl::Status status = CheckDevice(*device);
      if (status.ok()) continue;
      faults.push_back({device->place(), std::string(status.message()), {}});
      for (const auto& [name, model] : parts_.models->models()) {
        if (LostWith(*model, *device)) faults.back().models.push_back(name);
      }
    }
    return faults;
  }
  absl::Status CheckStore() override { return parts_.sessions->Probe(); }

  void StartDrain() override { parts_.draining = true; }
  int64_t RunningCalls() const override { return parts_.calls.size(); }
  void PreemptAll() override { parts_.calls.CancelAll(CallContext::Cancel::kShutdown); }
  Metrics& metrics() override { return parts_.metrics; }

 private:
  absl::StatusOr<v1::ListModelsResponse> DoListModels(const CallContext& context,
                                                      const v1::ListModelsRequest& request) {
    MNEME_ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
    const std::string scope = absl::StrCat("models ", context.tenant);
    std::string after;
    if (!request.page_token().empty()) {
      MNEME_ASSIGN_OR_RETURN(after, ReadPageToken(scope, request.page_token()));
    }
    v1::ListModelsResponse response;
    const auto& models = parts_.models->models();
    for (auto it = models.upper_bound(after); it != models.end(); ++it) {
      if (!context.MayUseModel(it->first)) continue;
      if (response.models_size() == page_size) {
        response.set_next_page_token(MakePageToken(scope, response.models(page_size - 1).name()));
        break;
      }
      *response.add_models() = it->second->info;
    }
    return response;
  }

  absl::StatusOr<v1::Model> DoGetModel(const CallContext& context,
                                       const v1::GetModelRequest& request) {
    if (request.name().empty()) {
      FieldErrors errors;
      errors.Add("name", "is required", reason::kFieldRequired);
      return errors.ToStatus();
    }
    MNEME_ASSIGN_OR_RETURN(const Model* model,
                           parts_.models->Find(context, request.name(), "name"));
    return model->info;
  }

  // `call`, or what it answered when it was made before.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Once(CallContext& context, const Request& request,
                                absl::StatusOr<Response> (*call)(Parts&, CallContext&,
                                                                 const Request&)) {
    MNEME_ASSIGN_OR_RETURN(RequestMemory::Outcome known,
                           parts_.requests->Begin(context, request.request_id(), request,
                                                  /*in_store=*/true));
    Response response;
    if (known.answer) {
      response.ParseFromString(*known.answer);
      return response;
    }
    if (known.done) {
      MNEME_RETURN_IF_ERROR(AnswerAnew(context, *known.done, response));
    } else {
      MNEME_ASSIGN_OR_RETURN(response, call(parts_, context, request));
    }
    known.claim.Answer(response.SerializeAsString());
    return response;
  }

  // The sessions that a call made or changed, as they are now.
  absl::StatusOr<std::vector<v1::Session>> SessionsOf(CallContext& context,
                                                      const storage::StoredRequest& done) {
    std::vector<v1::Session> sessions;
    for (const std::string& id : done.sessions()) {
      v1::GetSessionRequest get;
      get.set_name(SessionName{context.tenant, id}.str());
      auto session = server::GetSession(parts_, context, get);
      if (absl::IsNotFound(session.status())) {  // purged, perhaps by this very call
        session.emplace();
        session->set_name(get.name());
        session->set_state(v1::Session::DELETED);
      }
      MNEME_RETURN_IF_ERROR(session.status());
      sessions.push_back(*std::move(session));
    }
    return sessions;
  }
  absl::Status AnswerAnew(CallContext& context, const storage::StoredRequest& done,
                          v1::Session& out) {
    MNEME_ASSIGN_OR_RETURN(auto sessions, SessionsOf(context, done));
    out = sessions.at(0);
    return absl::OkStatus();
  }
  absl::Status AnswerAnew(CallContext& context, const storage::StoredRequest& done,
                          v1::RewindSessionResponse& out) {
    return AnswerAnew(context, done, *out.mutable_session());
  }
  absl::Status AnswerAnew(CallContext& context, const storage::StoredRequest& done,
                          v1::ForkSessionResponse& out) {
    MNEME_ASSIGN_OR_RETURN(auto sessions, SessionsOf(context, done));
    for (v1::Session& session : sessions) *out.add_sessions() = std::move(session);
    return absl::OkStatus();
  }

  // As it is now; one that is gone has its name left.
  absl::Status AnswerAnew(CallContext& context, const storage::StoredRequest& done,
                          v1::Snapshot& out) {
    v1::GetSnapshotRequest get;
    get.set_name(SnapshotName{{context.tenant, done.sessions(0)}, done.snapshot()}.str());
    auto snapshot = server::GetSnapshot(parts_, context, get);
    if (absl::IsNotFound(snapshot.status())) {
      snapshot.emplace();
      snapshot->set_name(get.name());
    }
    MNEME_ASSIGN_OR_RETURN(out, std::move(snapshot));
    return absl::OkStatus();
  }

  // Every call ends here: the sequences that it should have taken with it are counted.
  template <typename T>
  T Count(T result) {
    PublishOrphans(parts_);
    return result;
  }

  void Sweep() {
    using Clock = std::chrono::steady_clock;
    const auto interval = std::chrono::milliseconds(parts_.config.sessions.sweep_interval_ms);
    Clock::time_point count_due;
    while (true) {
      {
        MutexLock lock(&mutex_);
        const auto until = std::chrono::steady_clock::now() + interval;
        while (!stop_ && wake_.WaitUntil(&mutex_, until)) {
        }
        if (stop_) return;
      }
      parts_.prefixes.DropUnusedSince(Clock::now() - kPrefixIdle);
      // What other servers of the store do changes the figures, too. Looked up as often as a
      // twentieth of the time allows.
      if (const auto now = Clock::now(); parts_.sessions->leases() != nullptr && now >= count_due) {
        (void)parts_.sessions->CountSessions();
        count_due = Clock::now() + 20 * (Clock::now() - now);
      }
      // One batch at a time; the rest comes after a pause in which turns have the store.
      while (SweepSessions(parts_, kSweepBatch) == kSweepBatch) {
        MutexLock lock(&mutex_);
        if (stop_) return;
        wake_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + std::chrono::milliseconds(5));
      }
    }
  }

  Parts parts_;
  Mutex mutex_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread sweeper_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerCore>> ServerCore::Create(
    const Config& config, std::unique_ptr<memstore::StateStore> store) {
  return ServerCoreImpl::Make(config, std::move(store));
}

}  // namespace mneme::server
