#include "server/rpc/sessions_service.h"

#include "server/rpc/ingest_reactor.h"
#include "server/rpc/unary_call.h"

namespace mneme::server {

grpc::ServerUnaryReactor* SessionsService::CreateSession(grpc::CallbackServerContext* context,
                                                         const v1::CreateSessionRequest* request,
                                                         v1::Session* response) {
  return StartUnary(env_, "CreateSession", &ServerCore::CreateSession, context, request, response,
                    request->session_id());
}

grpc::ServerUnaryReactor* SessionsService::GetSession(grpc::CallbackServerContext* context,
                                                      const v1::GetSessionRequest* request,
                                                      v1::Session* response) {
  return StartUnary(env_, "GetSession", &ServerCore::GetSession, context, request, response,
                    request->name());
}

grpc::ServerUnaryReactor* SessionsService::ListSessions(grpc::CallbackServerContext* context,
                                                        const v1::ListSessionsRequest* request,
                                                        v1::ListSessionsResponse* response) {
  return StartUnary(env_, "ListSessions", &ServerCore::ListSessions, context, request, response);
}

grpc::ServerUnaryReactor* SessionsService::UpdateSession(grpc::CallbackServerContext* context,
                                                         const v1::UpdateSessionRequest* request,
                                                         v1::Session* response) {
  return StartUnary(env_, "UpdateSession", &ServerCore::UpdateSession, context, request, response,
                    request->session().name());
}

grpc::ServerUnaryReactor* SessionsService::DeleteSession(grpc::CallbackServerContext* context,
                                                         const v1::DeleteSessionRequest* request,
                                                         v1::Session* response) {
  return StartUnary(env_, "DeleteSession", &ServerCore::DeleteSession, context, request, response,
                    request->name());
}

grpc::ServerUnaryReactor* SessionsService::UndeleteSession(
    grpc::CallbackServerContext* context, const v1::UndeleteSessionRequest* request,
    v1::Session* response) {
  return StartUnary(env_, "UndeleteSession", &ServerCore::UndeleteSession, context, request,
                    response, request->name());
}

grpc::ServerUnaryReactor* SessionsService::ForkSession(grpc::CallbackServerContext* context,
                                                       const v1::ForkSessionRequest* request,
                                                       v1::ForkSessionResponse* response) {
  return StartUnary(env_, "ForkSession", &ServerCore::ForkSession, context, request, response,
                    request->name());
}

// A turn: it may replay a long transcript.
grpc::ServerUnaryReactor* SessionsService::RewindSession(grpc::CallbackServerContext* context,
                                                         const v1::RewindSessionRequest* request,
                                                         v1::RewindSessionResponse* response) {
  return StartUnary(env_, "RewindSession", &ServerCore::RewindSession, context, request, response,
                    request->name(), /*is_turn=*/true);
}

grpc::ServerUnaryReactor* SessionsService::ListSnapshots(grpc::CallbackServerContext* context,
                                                         const v1::ListSnapshotsRequest* request,
                                                         v1::ListSnapshotsResponse* response) {
  return StartUnary(env_, "ListSnapshots", &ServerCore::ListSnapshots, context, request, response,
                    request->parent());
}

grpc::ServerBidiReactor<v1::IngestRequest, v1::IngestProgress>* SessionsService::IngestSession(
    grpc::CallbackServerContext* context) {
  return IngestReactor::Start(env_, context);
}

}  // namespace mneme::server
