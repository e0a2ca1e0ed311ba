#include "server/rpc/sessions_service.h"

#include <string>

#include "server/rpc/export_reactor.h"
#include "server/rpc/import_reactor.h"
#include "server/rpc/ingest_reactor.h"
#include "server/rpc/unary_call.h"

namespace mneme::server {

grpc::ServerUnaryReactor* SessionsService::CreateSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartUnary<v1::CreateSessionRequest>(
      env_, "CreateSession", &ServerCore::CreateSession, context, request, response,
      [](const v1::CreateSessionRequest& r) -> std::string { return r.session_id(); });
}

grpc::ServerUnaryReactor* SessionsService::GetSession(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return StartUnary<v1::GetSessionRequest>(
      env_, "GetSession", &ServerCore::GetSession, context, request, response,
      [](const v1::GetSessionRequest& r) -> std::string { return r.name(); });
}

grpc::ServerUnaryReactor* SessionsService::ListSessions(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return StartUnary<v1::ListSessionsRequest>(env_, "ListSessions", &ServerCore::ListSessions,
                                             context, request, response);
}

grpc::ServerUnaryReactor* SessionsService::UpdateSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartUnary<v1::UpdateSessionRequest>(
      env_, "UpdateSession", &ServerCore::UpdateSession, context, request, response,
      [](const v1::UpdateSessionRequest& r) -> std::string { return r.session().name(); });
}

grpc::ServerUnaryReactor* SessionsService::DeleteSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartUnary<v1::DeleteSessionRequest>(
      env_, "DeleteSession", &ServerCore::DeleteSession, context, request, response,
      [](const v1::DeleteSessionRequest& r) -> std::string { return r.name(); });
}

// As long as a turn: it deletes one session after the other, and waits for turns that it has
// cancelled.
grpc::ServerUnaryReactor* SessionsService::BatchDeleteSessions(grpc::CallbackServerContext* context,
                                                               const grpc::ByteBuffer* request,
                                                               grpc::ByteBuffer* response) {
  return StartUnary<v1::BatchDeleteSessionsRequest>(env_, "BatchDeleteSessions",
                                                    &ServerCore::BatchDeleteSessions, context,
                                                    request, response, nullptr, /*is_turn=*/true);
}

grpc::ServerUnaryReactor* SessionsService::UndeleteSession(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  return StartUnary<v1::UndeleteSessionRequest>(
      env_, "UndeleteSession", &ServerCore::UndeleteSession, context, request, response,
      [](const v1::UndeleteSessionRequest& r) -> std::string { return r.name(); });
}

grpc::ServerUnaryReactor* SessionsService::ForkSession(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return StartUnary<v1::ForkSessionRequest>(
      env_, "ForkSession", &ServerCore::ForkSession, context, request, response,
      [](const v1::ForkSessionRequest& r) -> std::string { return r.name(); });
}

// A turn: it may replay a long transcript.
grpc::ServerUnaryReactor* SessionsService::RewindSession(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartUnary<v1::RewindSessionRequest>(
      env_, "RewindSession", &ServerCore::RewindSession, context, request, response,
      [](const v1::RewindSessionRequest& r) -> std::string { return r.name(); }, /*is_turn=*/true);
}

grpc::ServerUnaryReactor* SessionsService::CreateSnapshot(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return StartUnary<v1::CreateSnapshotRequest>(
      env_, "CreateSnapshot", &ServerCore::CreateSnapshot, context, request, response,
      [](const v1::CreateSnapshotRequest& r) -> std::string { return r.parent(); });
}

grpc::ServerUnaryReactor* SessionsService::GetSnapshot(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return StartUnary<v1::GetSnapshotRequest>(
      env_, "GetSnapshot", &ServerCore::GetSnapshot, context, request, response,
      [](const v1::GetSnapshotRequest& r) -> std::string { return r.name(); });
}

grpc::ServerUnaryReactor* SessionsService::DeleteSnapshot(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return StartUnary<v1::DeleteSnapshotRequest>(
      env_, "DeleteSnapshot", &ServerCore::DeleteSnapshot, context, request, response,
      [](const v1::DeleteSnapshotRequest& r) -> std::string { return r.name(); });
}

grpc::ServerUnaryReactor* SessionsService::ListSnapshots(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartUnary<v1::ListSnapshotsRequest>(
      env_, "ListSnapshots", &ServerCore::ListSnapshots, context, request, response,
      [](const v1::ListSnapshotsRequest& r) -> std::string { return r.parent(); });
}

grpc::ServerUnaryReactor* SessionsService::ReadTranscript(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return StartUnary<v1::ReadTranscriptRequest>(
      env_, "ReadTranscript", &ServerCore::ReadTranscript, context, request, response,
      [](const v1::ReadTranscriptRequest& r) -> std::string { return r.name(); });
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* SessionsService::IngestSession(
    grpc::CallbackServerContext* context) {
  return IngestReactor::Start(env_, context);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* SessionsService::ExportSession(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return ExportReactor::Start(env_, context, request);
}

grpc::ServerReadReactor<grpc::ByteBuffer>* SessionsService::ImportSession(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  return ImportReactor::Start(env_, context, response);
}

}  // namespace mneme::server
