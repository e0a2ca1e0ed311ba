// A ServerCore of plain functions, so that the transport is tested without models or a store.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/core/server_core.h"
#include "tests/support/guarded.h"

namespace mneme::server {

using test::Replaceable;

class FakeServerCore : public ServerCore {
 public:
  // Replaces Generate.
  Replaceable<absl::Status(CallContext&, const v1::GenerateRequest&, TurnSink&)> generate =
      [](CallContext&, const v1::GenerateRequest&, TurnSink& sink) { return SendTurn(sink, 3, 8); };
  Replaceable<absl::StatusOr<v1::Session>(CallContext&, const v1::GetSessionRequest&)> get_session =
      [](CallContext&, const v1::GetSessionRequest& request) {
        v1::Session session;
        session.set_name(request.name());
        return session;
      };
  Replaceable<absl::StatusOr<std::unique_ptr<Ingest>>(CallContext&,
                                                      const v1::IngestRequest::Start&)>
      start_ingest = [](CallContext&, const v1::IngestRequest::Start&) {
        return absl::UnimplementedError("set start_ingest");
      };
  Replaceable<absl::Status(CallContext&, const v1::ExportSessionRequest&, ExportSink&)>
      export_session = [](CallContext&, const v1::ExportSessionRequest&, ExportSink&) {
        return absl::UnimplementedError("set export_session");
      };
  Replaceable<absl::StatusOr<std::unique_ptr<Import>>(CallContext&,
                                                      const v1::ImportSessionRequest::Start&)>
      start_import = [](CallContext&, const v1::ImportSessionRequest::Start&) {
        return absl::UnimplementedError("set start_import");
      };
  Replaceable<absl::Status()> check_store = [] { return absl::OkStatus(); };
  Replaceable<std::vector<DeviceFault>()> device_faults = [] { return std::vector<DeviceFault>(); };
  Replaceable<void()> preempt_all = [] {};
  std::vector<std::string> models = {"models/m"};  // before the server starts
  std::atomic<int> generate_calls = 0;
  std::atomic<bool> draining = false;
  std::atomic<int64_t> running_calls = 0;

  // Started, `deltas` deltas of one token and `bytes` bytes of text, Final.
  static absl::Status SendTurn(TurnSink& sink, int deltas, int bytes) {
    v1::GenerateResponse event;
    event.set_sequence(1);
    event.mutable_started()->set_generation("tenants/default/generations/g");
    if (!sink.Send(event)) return absl::CancelledError("gone");
    for (int i = 0; i < deltas; ++i) {
      event.set_sequence(2 + i);
      event.mutable_delta()->add_token_ids(i);
      event.mutable_delta()->set_text(std::string(bytes, 'a' + i % 26));
      if (!sink.Send(event)) return absl::CancelledError("gone");
      event.clear_delta();
    }
    event.set_sequence(2 + deltas);
    event.mutable_final()->set_finish_reason(v1::MAX_TOKENS);
    event.mutable_final()->mutable_usage()->set_output_tokens(deltas);
    sink.Send(event);
    return absl::OkStatus();
  }

  absl::StatusOr<v1::ServerInfo> GetServerInfo(CallContext&,
                                               const v1::GetServerInfoRequest&) override {
    v1::ServerInfo info;
    info.set_version("fake");
    return info;
  }
  absl::StatusOr<v1::Loads> GetLoads(CallContext&, const v1::GetLoadsRequest&) override {
    return v1::Loads();
  }
  absl::StatusOr<v1::ListModelsResponse> ListModels(CallContext&,
                                                    const v1::ListModelsRequest&) override {
    v1::ListModelsResponse response;
    response.add_models()->set_name("models/m");
    return response;
  }
  absl::StatusOr<v1::Model> GetModel(CallContext&, const v1::GetModelRequest&) override {
    return absl::InternalError("/home/someone/secret.gguf is broken");
  }
  absl::StatusOr<v1::Session> CreateSession(CallContext&,
                                            const v1::CreateSessionRequest&) override {
    return v1::Session();
  }
  absl::StatusOr<v1::Session> GetSession(CallContext& context,
                                         const v1::GetSessionRequest& request) override {
    return get_session(context, request);
  }
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(CallContext&,
                                                        const v1::ListSessionsRequest&) override {
    return v1::ListSessionsResponse();
  }
  absl::StatusOr<v1::Session> UpdateSession(CallContext&,
                                            const v1::UpdateSessionRequest&) override {
    return v1::Session();
  }
  absl::StatusOr<v1::Session> DeleteSession(CallContext&,
                                            const v1::DeleteSessionRequest&) override {
    return v1::Session();
  }
  absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
      CallContext&, const v1::BatchDeleteSessionsRequest&) override {
    return v1::BatchDeleteSessionsResponse();
  }
  absl::StatusOr<v1::Session> UndeleteSession(CallContext&,
                                              const v1::UndeleteSessionRequest&) override {
    return v1::Session();
  }
  absl::StatusOr<v1::ForkSessionResponse> ForkSession(CallContext&,
                                                      const v1::ForkSessionRequest&) override {
    return v1::ForkSessionResponse();
  }
  absl::StatusOr<v1::RewindSessionResponse> RewindSession(
      CallContext&, const v1::RewindSessionRequest&) override {
    return v1::RewindSessionResponse();
  }
  absl::StatusOr<v1::Snapshot> CreateSnapshot(CallContext&,
                                              const v1::CreateSnapshotRequest&) override {
    return v1::Snapshot();
  }
  absl::StatusOr<v1::Snapshot> GetSnapshot(CallContext&, const v1::GetSnapshotRequest&) override {
    return v1::Snapshot();
  }
  absl::StatusOr<v1::Snapshot> DeleteSnapshot(CallContext&,
                                              const v1::DeleteSnapshotRequest&) override {
    return v1::Snapshot();
  }
  absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(
      CallContext&, const v1::ListSnapshotsRequest&) override {
    return v1::ListSnapshotsResponse();
  }
  absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(
      CallContext&, const v1::ReadTranscriptRequest&) override {
    return v1::ReadTranscriptResponse();
  }
  absl::Status ExportSession(CallContext& context, const v1::ExportSessionRequest& request,
                             ExportSink& sink) override {
    return export_session(context, request, sink);
  }
  absl::StatusOr<std::unique_ptr<Import>> StartImport(
      CallContext& context, const v1::ImportSessionRequest::Start& start) override {
    return start_import(context, start);
  }
  absl::StatusOr<std::unique_ptr<Ingest>> StartIngest(
      CallContext& context, const v1::IngestRequest::Start& start) override {
    return start_ingest(context, start);
  }
  absl::Status Generate(CallContext& context, const v1::GenerateRequest& request,
                        TurnSink& sink) override {
    ++generate_calls;
    if (draining) return Error(absl::StatusCode::kUnavailable, reason::kDraining, "draining");
    return generate(context, request, sink);
  }
  absl::Status ResumeGeneration(CallContext&, const v1::ResumeGenerationRequest&,
                                TurnSink& sink) override {
    return SendTurn(sink, 3, 8);
  }
  absl::StatusOr<v1::GenerationInfo> GetGeneration(CallContext&,
                                                   const v1::GetGenerationRequest&) override {
    return v1::GenerationInfo();
  }
  absl::StatusOr<v1::CancelGenerationResponse> CancelGeneration(
      CallContext&, const v1::CancelGenerationRequest&) override {
    return v1::CancelGenerationResponse();
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(CallContext&, const v1::TokenizeRequest&) override {
    return v1::TokenizeResponse();
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(CallContext&,
                                                    const v1::DetokenizeRequest&) override {
    return v1::DetokenizeResponse();
  }
  absl::StatusOr<v1::ScoreResponse> Score(CallContext&, const v1::ScoreRequest&) override {
    return v1::ScoreResponse();
  }
  std::vector<std::string> ModelNames() const override { return models; }
  std::string DeviceDescription() const override { return "none"; }
  std::vector<DeviceFault> DeviceFaults() const override { return device_faults(); }
  absl::Status CheckStore() override { return check_store(); }
  void StartDrain() override { draining = true; }
  int64_t RunningCalls() const override { return running_calls; }
  void PreemptAll() override { preempt_all(); }
  Metrics& metrics() override { return metrics_; }

 private:
  Metrics metrics_;
};

}  // namespace mneme::server
