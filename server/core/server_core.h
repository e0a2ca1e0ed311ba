// The server without its transport: models, sessions and generation behind plain calls.
//
// Methods block (disk, engine) and may be called from many threads at once; server/rpc runs them on
// its worker threads. Requests are validated here, completely, before anything happens: every
// caller gets the same checks. Names' tenant must equal context.tenant (PERMISSION_DENIED
// ACCESS_DENIED).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/state_store.h"
#include "mneme/v1/admin.pb.h"
#include "mneme/v1/generation.pb.h"
#include "mneme/v1/models.pb.h"
#include "mneme/v1/sessions.pb.h"
#include "server/core/call_context.h"
#include "server/core/config.h"
#include "server/core/errors.h"
#include "server/core/metrics.h"
#include "server/core/turn_sink.h"

namespace mneme::server {

// One running IngestSession. One caller at a time.
class Ingest {
 public:
  virtual ~Ingest() = default;
  // What to tell the client now; the first one says where to continue.
  virtual v1::IngestProgress progress() const = 0;
  // Takes one frame, reads what it can, commits when due. `progress()` is new after it. The frame
  // with `last` returns when everything is durable. OUT_OF_RANGE INGEST_GAP if an offset leaves a
  // hole; earlier bytes are skipped.
  virtual absl::Status Write(const v1::IngestRequest::Data& data) = 0;
  // To be called while no frame comes, from the thread that writes. Once
  // sessions.ingest_commit_interval has passed since the last commit it reads and commits what was
  // received (but for a last word that may go on); true if it did, and `progress()` is new.
  virtual absl::StatusOr<bool> CommitIfDue() = 0;
  // When it has something to do at the earliest.
  virtual CallContext::Clock::time_point commit_due() const = 0;
};

// Receives an exported session in order, on the thread of the call.
class ExportSink {
 public:
  virtual ~ExportSink() = default;
  // May block while the client is slow. False: as TurnSink.
  virtual bool Send(v1::ExportSessionResponse response) = 0;
};

// One running ImportSession. One caller at a time; after an error nothing more may be done with it.
// Destroyed before Finish it leaves nothing behind.
class Import {
 public:
  virtual ~Import() = default;
  // The file's next bytes, at most 1 MiB.
  virtual absl::Status Write(std::string_view data) = 0;
  // After the last ones: makes the session. Once.
  virtual absl::StatusOr<v1::ImportSessionResponse> Finish() = 0;
};

// A device that has failed for good, and the models that have none left because of it.
struct DeviceFault {
  std::string device;   // "cuda:1"
  std::string message;  // for operators: what failed, and what to do
  std::vector<std::string> models;
};

class ServerCore {
 public:
  // Loads every model and takes over the store. Errors name model or field.
  static absl::StatusOr<std::unique_ptr<ServerCore>> Create(
      const Config& config, std::unique_ptr<memstore::StateStore> store);
  virtual ~ServerCore() = default;

  // Models
  virtual absl::StatusOr<v1::ListModelsResponse> ListModels(CallContext&,
                                                            const v1::ListModelsRequest&) = 0;
  virtual absl::StatusOr<v1::Model> GetModel(CallContext&, const v1::GetModelRequest&) = 0;

  // Sessions
  virtual absl::StatusOr<v1::Session> CreateSession(CallContext&,
                                                    const v1::CreateSessionRequest&) = 0;
  virtual absl::StatusOr<v1::Session> GetSession(CallContext&, const v1::GetSessionRequest&) = 0;
  virtual absl::StatusOr<v1::ListSessionsResponse> ListSessions(CallContext&,
                                                                const v1::ListSessionsRequest&) = 0;
  virtual absl::StatusOr<v1::Session> UpdateSession(CallContext&,
                                                    const v1::UpdateSessionRequest&) = 0;
  virtual absl::StatusOr<v1::Session> DeleteSession(CallContext&,
                                                    const v1::DeleteSessionRequest&) = 0;
  virtual absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
      CallContext&, const v1::BatchDeleteSessionsRequest&) = 0;
  virtual absl::StatusOr<v1::Session> UndeleteSession(CallContext&,
                                                      const v1::UndeleteSessionRequest&) = 0;
  virtual absl::StatusOr<v1::ForkSessionResponse> ForkSession(CallContext&,
                                                              const v1::ForkSessionRequest&) = 0;
  virtual absl::StatusOr<v1::RewindSessionResponse> RewindSession(
      CallContext&, const v1::RewindSessionRequest&) = 0;
  virtual absl::StatusOr<v1::Snapshot> CreateSnapshot(CallContext&,
                                                      const v1::CreateSnapshotRequest&) = 0;
  virtual absl::StatusOr<v1::Snapshot> GetSnapshot(CallContext&, const v1::GetSnapshotRequest&) = 0;
  virtual absl::StatusOr<v1::Snapshot> DeleteSnapshot(CallContext&,
                                                      const v1::DeleteSnapshotRequest&) = 0;
  virtual absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(
      CallContext&, const v1::ListSnapshotsRequest&) = 0;
  virtual absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(
      CallContext&, const v1::ReadTranscriptRequest&) = 0;
  // Holds the session's writer until the object is destroyed. `context` must outlive it.
  virtual absl::StatusOr<std::unique_ptr<Ingest>> StartIngest(CallContext& context,
                                                              const v1::IngestRequest::Start&) = 0;
  virtual absl::Status ExportSession(CallContext&, const v1::ExportSessionRequest&,
                                     ExportSink&) = 0;
  // `context` must outlive the object.
  virtual absl::StatusOr<std::unique_ptr<Import>> StartImport(
      CallContext& context, const v1::ImportSessionRequest::Start&) = 0;

  // Generation. Sends Started, Progress, Delta... and, when the result is OK, Final last. Returns
  // when the turn has ended; if the turn outlives the call (on_disconnect), when the call has.
  virtual absl::Status Generate(CallContext&, const v1::GenerateRequest&, TurnSink&) = 0;
  // The same for what follows an event of a generation that was started before.
  virtual absl::Status ResumeGeneration(CallContext&, const v1::ResumeGenerationRequest&,
                                        TurnSink&) = 0;
  virtual absl::StatusOr<v1::GenerationInfo> GetGeneration(CallContext&,
                                                           const v1::GetGenerationRequest&) = 0;
  virtual absl::StatusOr<v1::CancelGenerationResponse> CancelGeneration(
      CallContext&, const v1::CancelGenerationRequest&) = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(CallContext&,
                                                        const v1::TokenizeRequest&) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(CallContext&,
                                                            const v1::DetokenizeRequest&) = 0;
  virtual absl::StatusOr<v1::ScoreResponse> Score(CallContext&, const v1::ScoreRequest&) = 0;

  // This server
  virtual absl::StatusOr<v1::ServerInfo> GetServerInfo(CallContext&,
                                                       const v1::GetServerInfoRequest&) = 0;
  virtual absl::StatusOr<v1::Loads> GetLoads(CallContext&, const v1::GetLoadsRequest&) = 0;

  // Names of the loaded models ("models/x"), for health.
  virtual std::vector<std::string> ModelNames() const = 0;
  // What computes, for the log: "cpu (host, avx3)".
  virtual std::string DeviceDescription() const = 0;
  // Empty while all is well; a device that is here stays here.
  virtual std::vector<DeviceFault> DeviceFaults() const = 0;
  // Store reachable (probe).
  virtual absl::Status CheckStore() = 0;

  // Refuses new work with UNAVAILABLE DRAINING from now on.
  virtual void StartDrain() = 0;
  // Work that is still running (turns, ingests).
  virtual int64_t RunningCalls() const = 0;
  // Ends every running turn by its commit rule (finish reason PREEMPTED); but one that is read and
  // may outlive its server is interrupted, with UNAVAILABLE DRAINING, for its reader to resume.
  virtual void PreemptAll() = 0;

  virtual Metrics& metrics() = 0;
};

}  // namespace mneme::server
