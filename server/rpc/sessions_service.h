// mneme.v1.Sessions over ServerCore.
#pragma once

#include "mneme/v1/sessions.grpc.pb.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Every method takes bytes: message_bytes.h says why.
using RawSnapshots = v1::Sessions::WithRawCallbackMethod_CreateSnapshot<
    v1::Sessions::WithRawCallbackMethod_GetSnapshot<
        v1::Sessions::WithRawCallbackMethod_DeleteSnapshot<
            v1::Sessions::WithRawCallbackMethod_BatchDeleteSessions<v1::Sessions::Service>>>>;
using RawSessions = v1::Sessions::WithRawCallbackMethod_CreateSession<
    v1::Sessions::WithRawCallbackMethod_GetSession<v1::Sessions::WithRawCallbackMethod_ListSessions<
        v1::Sessions::WithRawCallbackMethod_UpdateSession<
            v1::Sessions::WithRawCallbackMethod_DeleteSession<
                v1::Sessions::WithRawCallbackMethod_UndeleteSession<
                    v1::Sessions::WithRawCallbackMethod_ForkSession<
                        v1::Sessions::WithRawCallbackMethod_RewindSession<
                            v1::Sessions::WithRawCallbackMethod_ListSnapshots<
                                v1::Sessions::WithRawCallbackMethod_ReadTranscript<
                                    v1::Sessions::WithRawCallbackMethod_IngestSession<
                                        v1::Sessions::WithRawCallbackMethod_ExportSession<
                                            v1::Sessions::WithRawCallbackMethod_ImportSession<
                                                RawSnapshots>>>>>>>>>>>>>;

class SessionsService final : public RawSessions {
 public:
  explicit SessionsService(RpcEnvironment& env) : env_(env) {}

  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                       grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                         grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* UpdateSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* BatchDeleteSessions(grpc::CallbackServerContext*,
                                                const grpc::ByteBuffer*,
                                                grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* UndeleteSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                            grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* ForkSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                        grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* RewindSession(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* CreateSnapshot(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                           grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* GetSnapshot(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                        grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* DeleteSnapshot(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                           grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* ListSnapshots(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                          grpc::ByteBuffer*) override;
  grpc::ServerUnaryReactor* ReadTranscript(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                           grpc::ByteBuffer*) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* IngestSession(
      grpc::CallbackServerContext*) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ExportSession(grpc::CallbackServerContext*,
                                                            const grpc::ByteBuffer*) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* ImportSession(grpc::CallbackServerContext*,
                                                           grpc::ByteBuffer*) override;

 private:
  RpcEnvironment& env_;
};

}  // namespace mneme::server
