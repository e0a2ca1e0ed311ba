#include "client/client.h"

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/channel.h"
#include "client/server_address.h"
#include "client/tls.h"

namespace mneme::client {
namespace {

// Expands the name in `field`, which a protobuf mutable_x() gave.
template <typename Expand>
absl::Status ExpandName(std::string* field, Expand expand) {
  absl::StatusOr<std::string> name = expand(*field);
  if (!name.ok()) return name.status();
  *field = *std::move(name);
  return absl::OkStatus();
}

absl::Status ExpandSession(const Options& options, std::string* field) {
  return ExpandName(field, [&](std::string_view s) { return SessionName(options.tenant, s); });
}

absl::Status ExpandModel(std::string* field) {
  return field->empty() ? absl::OkStatus() : ExpandName(field, ModelName);
}

absl::Status ExpandParent(const Options& options, std::string* field) {
  if (field->find('/') != std::string::npos) return absl::OkStatus();
  return ExpandName(field, [&](std::string_view tenant) {
    return TenantName(tenant.empty() ? options.tenant : tenant);
  });
}

// A session's name, or that of one of its snapshots.
absl::Status ExpandPoint(const Options& options, std::string* field) {
  const bool snapshot =
      field->find('@') != std::string::npos || field->find("/snapshots/") != std::string::npos;
  if (!snapshot) return ExpandSession(options, field);
  return ExpandName(field, [&](std::string_view s) { return SnapshotName(options.tenant, s); });
}

// Session and model of a generation, both optional here: the server knows when it needs which.
template <typename Request>
absl::Status ExpandTarget(const Options& options, Request& request) {
  if (!request.session().empty()) {
    if (auto s = ExpandSession(options, request.mutable_session()); !s.ok()) return s;
  }
  return ExpandModel(request.mutable_model());
}

// Says nothing of the key itself.
absl::Status CheckKey(const Options& options, std::string_view address, bool encrypted) {
  const std::string& key = options.api_key;
  if (key.empty()) return absl::OkStatus();
  if (!std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 127; })) {
    return absl::InvalidArgumentError("bad key: expected one word of printable ASCII");
  }
  if (encrypted || options.plaintext_key || IsThisMachine(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the key is not sent to ", std::string(address),
                   " as plain text; expected https://HOST:PORT, or an explicit permission "
                   "(--plaintext-key)"));
}

}  // namespace

absl::StatusOr<Client> Client::Connect(const Options& options) {
  if (auto tenant = TenantName(options.tenant); !tenant.ok()) return tenant.status();
  auto target = TargetOf(options.server);
  if (!target.ok()) return target.status();
  if (target->tls == false && !options.tls.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad server '", options.server,
                     "': http:// is plain text, but files for TLS are "
                     "given; expected https://HOST:PORT"));
  }
  const bool tls = target->tls.value_or(!options.tls.empty());
  if (auto s = CheckKey(options, target->address, tls || options.credentials != nullptr); !s.ok()) {
    return s;
  }
  Options resolved = options;
  resolved.server = std::move(target->address);
  if (resolved.credentials == nullptr && tls) {
    auto credentials = TlsCredentials(options.tls);
    if (!credentials.ok()) return credentials.status();
    resolved.credentials = *std::move(credentials);
  } else if (resolved.credentials == nullptr) {
    resolved.credentials = grpc::InsecureChannelCredentials();
  }
  auto channel = std::make_shared<const Channel>(resolved, tls);
  if (auto s = channel->AwaitServer(options.connect_timeout); !s.ok()) return s;
  return Client(std::move(channel));
}

absl::Status Client::AwaitServer(absl::Duration timeout) const {
  return channel_->AwaitServer(timeout);
}

absl::Status Client::AwaitServer(const CallOptions& call) const {
  return channel_->AwaitServer(
      std::min(options().connect_timeout, call.timeout.value_or(options().work_timeout)));
}

const Options& Client::options() const { return channel_->options; }

absl::StatusOr<v1::ListModelsResponse> Client::ListModels(v1::ListModelsRequest request,
                                                          const CallOptions& call) const {
  return Call<v1::ListModelsResponse>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                                      *channel_->models, &v1::Models::Stub::ListModels, request);
}

absl::StatusOr<v1::Model> Client::GetModel(std::string_view name, const CallOptions& call) const {
  auto full = ModelName(name);
  if (!full.ok()) return full.status();
  v1::GetModelRequest request;
  request.set_name(*full);
  return Call<v1::Model>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                         *channel_->models, &v1::Models::Stub::GetModel, request);
}

absl::StatusOr<v1::Session> Client::CreateSession(v1::CreateSessionRequest request,
                                                  const CallOptions& call) const {
  if (auto s = ExpandParent(options(), request.mutable_parent()); !s.ok()) return s;
  if (auto s = ExpandModel(request.mutable_session()->mutable_model()); !s.ok()) return s;
  return Call<v1::Session>(*channel_, call, options().timeout, Repeat::kGuarded, "",
                           *channel_->sessions, &v1::Sessions::Stub::CreateSession, request);
}

absl::StatusOr<v1::Session> Client::GetSession(std::string_view name,
                                               const CallOptions& call) const {
  auto full = SessionName(options().tenant, name);
  if (!full.ok()) return full.status();
  v1::GetSessionRequest request;
  request.set_name(*full);
  return Call<v1::Session>(*channel_, call, options().timeout, Repeat::kByChannel, *full,
                           *channel_->sessions, &v1::Sessions::Stub::GetSession, request);
}

absl::StatusOr<v1::ListSessionsResponse> Client::ListSessions(v1::ListSessionsRequest request,
                                                              const CallOptions& call) const {
  if (auto s = ExpandParent(options(), request.mutable_parent()); !s.ok()) return s;
  return Call<v1::ListSessionsResponse>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                                        *channel_->sessions, &v1::Sessions::Stub::ListSessions,
                                        request);
}

absl::StatusOr<v1::Session> Client::UpdateSession(v1::UpdateSessionRequest request,
                                                  const CallOptions& call) const {
  auto& session = *request.mutable_session();
  if (auto s = ExpandSession(options(), session.mutable_name()); !s.ok()) return s;
  return Call<v1::Session>(*channel_, call, options().timeout, Repeat::kGuarded, session.name(),
                           *channel_->sessions, &v1::Sessions::Stub::UpdateSession, request);
}

absl::StatusOr<v1::Session> Client::DeleteSession(v1::DeleteSessionRequest request,
                                                  const CallOptions& call) const {
  if (auto s = ExpandSession(options(), request.mutable_name()); !s.ok()) return s;
  return Call<v1::Session>(*channel_, call, options().timeout, Repeat::kGuarded, request.name(),
                           *channel_->sessions, &v1::Sessions::Stub::DeleteSession, request);
}

absl::StatusOr<v1::BatchDeleteSessionsResponse> Client::BatchDeleteSessions(
    v1::BatchDeleteSessionsRequest request, const CallOptions& call) const {
  if (auto s = ExpandParent(options(), request.mutable_parent()); !s.ok()) return s;
  for (std::string& name : *request.mutable_names()) {
    if (auto s = ExpandSession(options(), &name); !s.ok()) return s;
  }
  return Call<v1::BatchDeleteSessionsResponse>(
      *channel_, call, options().work_timeout,
      request.validate_only() ? Repeat::kGuarded : Repeat::kNever, "", *channel_->sessions,
      &v1::Sessions::Stub::BatchDeleteSessions, request);
}

absl::StatusOr<v1::Session> Client::UndeleteSession(std::string_view name,
                                                    const CallOptions& call) const {
  auto full = SessionName(options().tenant, name);
  if (!full.ok()) return full.status();
  v1::UndeleteSessionRequest request;
  request.set_name(*full);
  return Call<v1::Session>(*channel_, call, options().timeout, Repeat::kGuarded, *full,
                           *channel_->sessions, &v1::Sessions::Stub::UndeleteSession, request);
}

absl::StatusOr<v1::ForkSessionResponse> Client::ForkSession(v1::ForkSessionRequest request,
                                                            const CallOptions& call) const {
  if (auto s = ExpandPoint(options(), request.mutable_name()); !s.ok()) return s;
  return Call<v1::ForkSessionResponse>(*channel_, call, options().timeout, Repeat::kGuarded,
                                       SessionOf(request.name()), *channel_->sessions,
                                       &v1::Sessions::Stub::ForkSession, request);
}

absl::StatusOr<v1::RewindSessionResponse> Client::RewindSession(v1::RewindSessionRequest request,
                                                                const CallOptions& call) const {
  if (auto s = ExpandSession(options(), request.mutable_name()); !s.ok()) return s;
  if (request.has_snapshot()) {
    std::string snapshot = request.snapshot();
    if (IsId(snapshot)) snapshot = absl::StrCat(request.name(), "/snapshots/", snapshot);
    auto full = SnapshotName(options().tenant, snapshot);
    if (!full.ok()) return full.status();
    request.set_snapshot(*full);
  }
  return Call<v1::RewindSessionResponse>(*channel_, call, options().work_timeout, Repeat::kGuarded,
                                         request.name(), *channel_->sessions,
                                         &v1::Sessions::Stub::RewindSession, request);
}

absl::StatusOr<v1::Snapshot> Client::CreateSnapshot(v1::CreateSnapshotRequest request,
                                                    const CallOptions& call) const {
  if (auto s = ExpandSession(options(), request.mutable_parent()); !s.ok()) return s;
  return Call<v1::Snapshot>(*channel_, call, options().timeout, Repeat::kGuarded, request.parent(),
                            *channel_->sessions, &v1::Sessions::Stub::CreateSnapshot, request);
}

absl::StatusOr<v1::Snapshot> Client::GetSnapshot(std::string_view name,
                                                 const CallOptions& call) const {
  auto full = SnapshotName(options().tenant, name);
  if (!full.ok()) return full.status();
  v1::GetSnapshotRequest request;
  request.set_name(*full);
  return Call<v1::Snapshot>(*channel_, call, options().timeout, Repeat::kByChannel,
                            SessionOf(*full), *channel_->sessions, &v1::Sessions::Stub::GetSnapshot,
                            request);
}

absl::StatusOr<v1::Snapshot> Client::DeleteSnapshot(std::string_view name,
                                                    const CallOptions& call) const {
  auto full = SnapshotName(options().tenant, name);
  if (!full.ok()) return full.status();
  v1::DeleteSnapshotRequest request;
  request.set_name(*full);
  return Call<v1::Snapshot>(*channel_, call, options().timeout, Repeat::kGuarded, SessionOf(*full),
                            *channel_->sessions, &v1::Sessions::Stub::DeleteSnapshot, request);
}

absl::StatusOr<v1::ListSnapshotsResponse> Client::ListSnapshots(v1::ListSnapshotsRequest request,
                                                                const CallOptions& call) const {
  if (auto s = ExpandSession(options(), request.mutable_parent()); !s.ok()) return s;
  return Call<v1::ListSnapshotsResponse>(*channel_, call, options().timeout, Repeat::kByChannel,
                                         request.parent(), *channel_->sessions,
                                         &v1::Sessions::Stub::ListSnapshots, request);
}

absl::StatusOr<v1::ReadTranscriptResponse> Client::ReadTranscript(v1::ReadTranscriptRequest request,
                                                                  const CallOptions& call) const {
  if (auto s = ExpandPoint(options(), request.mutable_name()); !s.ok()) return s;
  return Call<v1::ReadTranscriptResponse>(*channel_, call, options().timeout, Repeat::kByChannel,
                                          SessionOf(request.name()), *channel_->sessions,
                                          &v1::Sessions::Stub::ReadTranscript, request);
}

absl::StatusOr<GenerateStream> Client::Generate(v1::GenerateRequest request,
                                                const CallOptions& call) const {
  if (auto s = ExpandTarget(options(), request); !s.ok()) return s;
  if (auto s = CheckRequest(request); !s.ok()) return s;
  if (auto s = AwaitServer(call); !s.ok()) return s;
  return GenerateStream(channel_, std::move(request), call);
}

absl::StatusOr<v1::CompleteResponse> Client::Complete(v1::GenerateRequest request,
                                                      const CallOptions& call) const {
  if (auto s = ExpandTarget(options(), request); !s.ok()) return s;
  // The answer of a call that broke waits for the call that is sent again.
  OutliveStream(options(), request);
  IdentifyRequest(request);
  auto response = Call<v1::CompleteResponse>(
      *channel_, call, options().work_timeout, Repeat::kGuarded, request.session(),
      *channel_->generation, &v1::Generation::Stub::Complete, request);
  if (absl::IsDeadlineExceeded(response.status())) GiveUp(*channel_, request);
  return response;
}

absl::StatusOr<GenerateStream> Client::ResumeGeneration(v1::ResumeGenerationRequest request,
                                                        const CallOptions& call) const {
  if (auto s = CheckRequest(request); !s.ok()) return s;
  if (auto s = AwaitServer(call); !s.ok()) return s;
  return GenerateStream(channel_, std::move(request), call);
}

absl::StatusOr<v1::GenerationInfo> Client::GetGeneration(std::string_view generation,
                                                         const CallOptions& call) const {
  v1::GetGenerationRequest request;
  request.set_name(std::string(generation));
  return Call<v1::GenerationInfo>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                                  *channel_->generation, &v1::Generation::Stub::GetGeneration,
                                  request);
}

absl::Status Client::CancelGeneration(std::string_view generation, const CallOptions& call) const {
  v1::CancelGenerationRequest request;
  request.set_name(std::string(generation));
  return Call<v1::CancelGenerationResponse>(*channel_, call, options().timeout, Repeat::kByChannel,
                                            "", *channel_->generation,
                                            &v1::Generation::Stub::CancelGeneration, request)
      .status();
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(v1::TokenizeRequest request,
                                                      const CallOptions& call) const {
  if (auto s = ExpandModel(request.mutable_model()); !s.ok()) return s;
  return Call<v1::TokenizeResponse>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                                    *channel_->generation, &v1::Generation::Stub::Tokenize,
                                    request);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(v1::DetokenizeRequest request,
                                                          const CallOptions& call) const {
  if (auto s = ExpandModel(request.mutable_model()); !s.ok()) return s;
  return Call<v1::DetokenizeResponse>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                                      *channel_->generation, &v1::Generation::Stub::Detokenize,
                                      request);
}

absl::StatusOr<v1::ScoreResponse> Client::Score(v1::ScoreRequest request,
                                                const CallOptions& call) const {
  if (auto s = ExpandTarget(options(), request); !s.ok()) return s;
  return Call<v1::ScoreResponse>(*channel_, call, options().work_timeout, Repeat::kByChannel,
                                 request.session(), *channel_->generation,
                                 &v1::Generation::Stub::Score, request);
}

absl::StatusOr<IngestWriter> Client::IngestSession(v1::IngestRequest::Start start,
                                                   const CallOptions& call) const {
  if (auto s = ExpandSession(options(), start.mutable_session()); !s.ok()) return s;
  if (auto s = CheckRequest(start); !s.ok()) return s;
  if (auto s = AwaitServer(call); !s.ok()) return s;
  return IngestWriter(channel_, std::move(start), call);
}

absl::StatusOr<v1::IngestProgress> Client::Ingest(std::istream& text,
                                                  const IngestOptions& ingest) const {
  IngestOptions full = ingest;
  if (auto s = ExpandSession(options(), &full.session); !s.ok()) return s;
  return RunIngest(channel_, text, full);
}

absl::StatusOr<v1::IngestProgress> Client::IngestFile(const std::string& path,
                                                      const IngestOptions& ingest) const {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  return Ingest(file, ingest);
}

absl::StatusOr<v1::ServerInfo> Client::GetServerInfo(const CallOptions& call) const {
  return Call<v1::ServerInfo>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                              *channel_->admin, &v1::Admin::Stub::GetServerInfo,
                              v1::GetServerInfoRequest());
}

absl::StatusOr<v1::Loads> Client::GetLoads(const CallOptions& call) const {
  return Call<v1::Loads>(*channel_, call, options().timeout, Repeat::kByChannel, "",
                         *channel_->admin, &v1::Admin::Stub::GetLoads, v1::GetLoadsRequest());
}

absl::StatusOr<v1::DrainServerResponse> Client::DrainServer(const v1::DrainServerRequest& request,
                                                            const CallOptions& call) const {
  // Another server may take the place of one that has left.
  return Call<v1::DrainServerResponse>(*channel_, call, options().timeout, Repeat::kNever, "",
                                       *channel_->admin, &v1::Admin::Stub::DrainServer, request);
}

absl::StatusOr<ExportProgress> Client::ExportSession(std::ostream& out,
                                                     const ExportOptions& options) const {
  ExportOptions full = options;
  if (auto s = ExpandPoint(this->options(), &full.session); !s.ok()) return s;
  if (auto s = AwaitServer(CallOptions{}); !s.ok()) return s;
  return RunExport(channel_, out, full);
}

absl::StatusOr<v1::ImportSessionResponse> Client::ImportSession(
    std::istream& in, const ImportOptions& options) const {
  ImportOptions full = options;
  if (auto s = ExpandParent(this->options(), full.start.mutable_parent()); !s.ok()) return s;
  if (auto s = ExpandModel(full.start.mutable_session()->mutable_model()); !s.ok()) return s;
  if (auto s = AwaitServer(CallOptions{}); !s.ok()) return s;
  return RunImport(channel_, in, full);
}

}  // namespace mneme::client
