// mneme.v1.Sessions over ServerCore.
#pragma once

#include "mneme/v1/sessions.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

class SessionsService final : public v1::Sessions::CallbackService {
 public:
  explicit SessionsService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext*,
                                          const v1::CreateSessionRequest*, v1::Session*) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext*, const v1::GetSessionRequest*,
                                       v1::Session*) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext*,
                                         const v1::ListSessionsRequest*,
                                         v1::ListSessionsResponse*) override;
  grpc::ServerUnaryReactor* UpdateSession(grpc::CallbackServerContext*,
                                          const v1::UpdateSessionRequest*, v1::Session*) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext*,
                                          const v1::DeleteSessionRequest*, v1::Session*) override;
  grpc::ServerUnaryReactor* UndeleteSession(grpc::CallbackServerContext*,
                                            const v1::UndeleteSessionRequest*,
                                            v1::Session*) override;
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext*, const v1::ForkSessionRequest*,
                                        v1::ForkSessionResponse*) override;
  grpc::ServerUnaryReactor* RewindSession(grpc::CallbackServerContext*,
                                          const v1::RewindSessionRequest*,
                                          v1::RewindSessionResponse*) override;
  grpc::ServerUnaryReactor* ListSnapshots(grpc::CallbackServerContext*,
                                          const v1::ListSnapshotsRequest*,
                                          v1::ListSnapshotsResponse*) override;
  grpc::ServerBidiReactor<v1::IngestRequest, v1::IngestProgress>* IngestSession(
      grpc::CallbackServerContext*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
