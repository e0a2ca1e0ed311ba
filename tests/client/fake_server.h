// A scripted server: real gRPC on a free port, answers from the test.
//
// Each method calls a std::function of the test; one that is not set answers UNIMPLEMENTED.
// Threads: functions are called on gRPC's threads. They may be replaced at any time; what they
// capture and the test reads too must be atomic or test::Guarded.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "mneme/v1/generation.grpc.pb.h"
#include "mneme/v1/models.grpc.pb.h"
#include "mneme/v1/sessions.grpc.pb.h"
#include "tests/support/free_address.h"
#include "tests/support/guarded.h"

namespace mneme::client {

template <typename Request, typename Response>
using Script = std::function<grpc::Status(grpc::ServerContext&, const Request&, Response&)>;

inline grpc::Status NotScripted() {
  return {grpc::StatusCode::UNIMPLEMENTED, "the test did not script this method"};
}

// An error as the server makes them: code, ErrorInfo{reason, metadata}, and whatever is added.
grpc::Status FakeError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                       const std::string& metadata_key = "", const std::string& metadata_value = "",
                       const std::string& field = "", int retry_ms = 0);

// One of these with a further google.rpc detail.
grpc::Status WithDetail(const grpc::Status& error, const google::protobuf::Message& detail);

#define FAKE_UNARY(Method, Request, Response)                                              \
  test::Replaceable<grpc::Status(grpc::ServerContext&, const v1::Request&, v1::Response&)> \
      on_##Method = [](auto&, const auto&, auto&) { return NotScripted(); };               \
  grpc::Status Method(grpc::ServerContext* context, const v1::Request* request,            \
                      v1::Response* response) override {                                   \
    return on_##Method(*context, *request, *response);                                     \
  }

struct FakeSessions : v1::Sessions::Service {
  FAKE_UNARY(CreateSession, CreateSessionRequest, Session)
  FAKE_UNARY(GetSession, GetSessionRequest, Session)
  FAKE_UNARY(ListSessions, ListSessionsRequest, ListSessionsResponse)
  FAKE_UNARY(UpdateSession, UpdateSessionRequest, Session)
  FAKE_UNARY(DeleteSession, DeleteSessionRequest, Session)
  FAKE_UNARY(UndeleteSession, UndeleteSessionRequest, Session)
  FAKE_UNARY(ForkSession, ForkSessionRequest, ForkSessionResponse)
  FAKE_UNARY(RewindSession, RewindSessionRequest, RewindSessionResponse)
  FAKE_UNARY(BatchDeleteSessions, BatchDeleteSessionsRequest, BatchDeleteSessionsResponse)
  FAKE_UNARY(CreateSnapshot, CreateSnapshotRequest, Snapshot)
  FAKE_UNARY(GetSnapshot, GetSnapshotRequest, Snapshot)
  FAKE_UNARY(DeleteSnapshot, DeleteSnapshotRequest, Snapshot)
  FAKE_UNARY(ListSnapshots, ListSnapshotsRequest, ListSnapshotsResponse)
  FAKE_UNARY(ReadTranscript, ReadTranscriptRequest, ReadTranscriptResponse)

  using IngestStream = grpc::ServerReaderWriter<v1::IngestProgress, v1::IngestRequest>;
  test::Replaceable<grpc::Status(grpc::ServerContext&, IngestStream&)> on_IngestSession =
      [](auto&, auto&) { return NotScripted(); };
  grpc::Status IngestSession(grpc::ServerContext* context, IngestStream* stream) override {
    return on_IngestSession(*context, *stream);
  }
};

struct FakeGeneration : v1::Generation::Service {
  FAKE_UNARY(Complete, GenerateRequest, CompleteResponse)
  FAKE_UNARY(GetGeneration, GetGenerationRequest, GenerationInfo)
  FAKE_UNARY(CancelGeneration, CancelGenerationRequest, CancelGenerationResponse)
  FAKE_UNARY(Tokenize, TokenizeRequest, TokenizeResponse)
  FAKE_UNARY(Detokenize, DetokenizeRequest, DetokenizeResponse)
  FAKE_UNARY(Score, ScoreRequest, ScoreResponse)

  using Writer = grpc::ServerWriter<v1::GenerateResponse>;
  test::Replaceable<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&, Writer&)>
      on_Generate = [](auto&, const auto&, auto&) { return NotScripted(); };
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        Writer* writer) override {
    return on_Generate(*context, *request, *writer);
  }
  test::Replaceable<grpc::Status(grpc::ServerContext&, const v1::ResumeGenerationRequest&, Writer&)>
      on_ResumeGeneration = [](auto&, const auto&, auto&) { return NotScripted(); };
  grpc::Status ResumeGeneration(grpc::ServerContext* context,
                                const v1::ResumeGenerationRequest* request,
                                Writer* writer) override {
    return on_ResumeGeneration(*context, *request, *writer);
  }
};

struct FakeModels : v1::Models::Service {
  FAKE_UNARY(ListModels, ListModelsRequest, ListModelsResponse)
  FAKE_UNARY(GetModel, GetModelRequest, Model)
};

#undef FAKE_UNARY

class FakeServer {
 public:
  FakeServer() = default;
  ~FakeServer() { Stop(); }

  // Listens on a free port, or again on the one it had.
  void Start();
  // Breaks all connections at once, as a killed process would.
  void Stop();
  std::string address() const { return test::OwnLoopback() + ":" + std::to_string(port_); }

  FakeSessions sessions;
  FakeGeneration generation;
  FakeModels models;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// Events of a whole turn: Started, one Delta per text, Final.
void WriteTurn(FakeGeneration::Writer& writer, const std::vector<std::string>& texts,
               const std::string& generation = "tenants/default/generations/g-1");

std::string MetadataOf(const grpc::ServerContext& context, const std::string& key);

}  // namespace mneme::client
