// SPDX-License-Identifier: Apache-2.0
//
// The C++ client of a Mneme server. Start here.
//
//   auto client = client::Client::Connect({.server = "127.0.0.1:7447"});
//   if (!client.ok()) return client.status();
//   v1::GenerateRequest request;
//   request.set_session("diary");              // short for tenants/default/sessions/diary
//   request.set_text("Once upon a time");
//   auto stream = client->Generate(request);   // generate_stream.h
//
// Names in requests may be short (names.h) and are expanded; nothing else in a request changes.
// Errors are absl::Status with the server's typed details: see error.h. Retries: calls that change
// nothing are retried by gRPC (4 attempts, 0.1 s doubled, at most 2 s, UNAVAILABLE only); calls
// that write are sent again as often, with the request_id that the library gives each of them: the
// server does them once, and answers again. If a write's outcome is unknown after all, the error
// says so.
//
// A call that finds the server away (a restart, say) waits for it as long as Connect() does:
// nothing has been sent then. Copies share one connection. Threads: any, at once.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/error.h"
#include "client/generate_stream.h"
#include "client/ingest.h"
#include "client/names.h"
#include "client/options.h"
#include "client/session_file.h"
#include "mneme/v1/admin.pb.h"
#include "mneme/v1/generation.pb.h"
#include "mneme/v1/models.pb.h"
#include "mneme/v1/sessions.pb.h"

namespace mneme::client {

class Client {
 public:
  // Waits up to options.connect_timeout until a server can be reached. UNAVAILABLE if none is, or
  // if it and the client do not agree on TLS, with a reason then (error.h); kInvalidArgument for a
  // bad tenant, server or file.
  static absl::StatusOr<Client> Connect(const Options& options);

  const Options& options() const;  // `server` as gRPC takes it

  // Waits until the server can be reached again; OK at once if nothing is known against it.
  // UNAVAILABLE after `timeout`. For programs that want to say why they wait.
  absl::Status AwaitServer(absl::Duration timeout) const;

  // Whether the server takes work, by the standard health service; false while it drains.
  absl::StatusOr<bool> IsServing(const CallOptions& call = {}) const;

  // Models
  absl::StatusOr<v1::ListModelsResponse> ListModels(v1::ListModelsRequest request,
                                                    const CallOptions& call = {}) const;
  absl::StatusOr<v1::Model> GetModel(std::string_view name, const CallOptions& call = {}) const;

  // Sessions. An empty parent means the client's tenant.
  absl::StatusOr<v1::Session> CreateSession(v1::CreateSessionRequest request,
                                            const CallOptions& call = {}) const;
  absl::StatusOr<v1::Session> GetSession(std::string_view name, const CallOptions& call = {}) const;
  absl::StatusOr<v1::ListSessionsResponse> ListSessions(v1::ListSessionsRequest request,
                                                        const CallOptions& call = {}) const;
  absl::StatusOr<v1::Session> UpdateSession(v1::UpdateSessionRequest request,
                                            const CallOptions& call = {}) const;
  absl::StatusOr<v1::Session> DeleteSession(v1::DeleteSessionRequest request,
                                            const CallOptions& call = {}) const;
  // Sessions that are given by name are checked before the first one is deleted.
  absl::StatusOr<v1::BatchDeleteSessionsResponse> BatchDeleteSessions(
      v1::BatchDeleteSessionsRequest request, const CallOptions& call = {}) const;
  absl::StatusOr<v1::Session> UndeleteSession(std::string_view name,
                                              const CallOptions& call = {}) const;
  // request.name: a session or a snapshot.
  absl::StatusOr<v1::ForkSessionResponse> ForkSession(v1::ForkSessionRequest request,
                                                      const CallOptions& call = {}) const;
  // request.snapshot may be an id of a snapshot of request.name.
  absl::StatusOr<v1::RewindSessionResponse> RewindSession(v1::RewindSessionRequest request,
                                                          const CallOptions& call = {}) const;
  absl::StatusOr<v1::Snapshot> CreateSnapshot(v1::CreateSnapshotRequest request,
                                              const CallOptions& call = {}) const;
  // Names as "session@snapshot", or in full.
  absl::StatusOr<v1::Snapshot> GetSnapshot(std::string_view name,
                                           const CallOptions& call = {}) const;
  absl::StatusOr<v1::Snapshot> DeleteSnapshot(std::string_view name,
                                              const CallOptions& call = {}) const;
  absl::StatusOr<v1::ListSnapshotsResponse> ListSnapshots(v1::ListSnapshotsRequest request,
                                                          const CallOptions& call = {}) const;
  // request.name: a session or a snapshot.
  absl::StatusOr<v1::ReadTranscriptResponse> ReadTranscript(v1::ReadTranscriptRequest request,
                                                            const CallOptions& call = {}) const;

  // Generation
  absl::StatusOr<GenerateStream> Generate(v1::GenerateRequest request,
                                          const CallOptions& call = {}) const;
  absl::StatusOr<v1::CompleteResponse> Complete(v1::GenerateRequest request,
                                                const CallOptions& call = {}) const;
  // What follows an event of a generation, and what is yet to come: of another program's, or of one
  // before. `request.generation` may be short.
  absl::StatusOr<GenerateStream> ResumeGeneration(v1::ResumeGenerationRequest request,
                                                  const CallOptions& call = {}) const;
  absl::StatusOr<v1::GenerationInfo> GetGeneration(std::string_view generation,
                                                   const CallOptions& call = {}) const;
  absl::Status CancelGeneration(std::string_view generation, const CallOptions& call = {}) const;
  absl::StatusOr<v1::TokenizeResponse> Tokenize(v1::TokenizeRequest request,
                                                const CallOptions& call = {}) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(v1::DetokenizeRequest request,
                                                    const CallOptions& call = {}) const;
  absl::StatusOr<v1::ScoreResponse> Score(v1::ScoreRequest request,
                                          const CallOptions& call = {}) const;

  // Long text into a session: ingest.h. IngestSession is one attempt; the others resume after a
  // break and return the last progress, whose `done` is true.
  absl::StatusOr<IngestWriter> IngestSession(v1::IngestRequest::Start start,
                                             const CallOptions& call = {}) const;
  absl::StatusOr<v1::IngestProgress> Ingest(std::istream& text, const IngestOptions& options) const;
  absl::StatusOr<v1::IngestProgress> IngestFile(const std::string& path,
                                                const IngestOptions& options) const;

  // Of the one server that answers; for the role admin, or on the server's own machine if it has no
  // keys.
  absl::StatusOr<v1::ServerInfo> GetServerInfo(const CallOptions& call = {}) const;
  absl::StatusOr<v1::Loads> GetLoads(const CallOptions& call = {}) const;
  absl::StatusOr<v1::DrainServerResponse> DrainServer(const v1::DrainServerRequest& request,
                                                      const CallOptions& call = {}) const;

  // Sessions as files: session_file.h.
  absl::StatusOr<ExportProgress> ExportSession(std::ostream& out,
                                               const ExportOptions& options) const;
  absl::StatusOr<v1::ImportSessionResponse> ImportSession(std::istream& in,
                                                          const ImportOptions& options) const;

 private:
  explicit Client(std::shared_ptr<const Channel> channel) : channel_(std::move(channel)) {}

  absl::Status AwaitServer(const CallOptions& call) const;  // as long as the call may wait

  std::shared_ptr<const Channel> channel_;
};

}  // namespace mneme::client
