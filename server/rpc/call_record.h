// One RPC from its arrival to its status: caller, ids, deadline, trailers, log line, metrics.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/call_context.h"
#include "server/rpc/gate.h"
#include "server/rpc/method_access.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Lives in the call's reactor. Everything but Cancel() is for one thread at a time.
class CallRecord {
 public:
  // `method` must outlive the record. Finds out who calls. Adds the trailers x-request-id (the
  // client's, if it sent a usable one) and x-served-by.
  CallRecord(RpcEnvironment& env, const char* method, grpc::CallbackServerContext* context);

  CallContext& context() { return context_; }

  // Runs the call on a thread of `pool`: OK, and then `run` alone may touch the call. Otherwise
  // nothing of it may happen but Finish with this status: whoever calls may not, or the pool is
  // full.
  absl::Status Submit(WorkerPool& pool, std::function<void()> run) const;
  // As Submit, of a stream that may hold its thread for long; ends a call that may not run by
  // `finish`, the reactor's Finish. Whoever runs it counts it out of running_turns at its end.
  void StartTurn(std::function<void()> run, const std::function<void(grpc::Status)>& finish);
  // The only way to a request: INVALID_ARGUMENT as ParseMessage, ACCESS_DENIED if it has names of a
  // tenant that is not the caller's.
  absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* request);

  // For the log line. A name that is no well-formed resource name is left out: it could be
  // anything.
  void set_session(std::string_view name);
  void set_final(const v1::GenerateResponse::Final& final) { final_ = final; }

  // From OnCancel: the client went away, or its deadline passed.
  void Cancel();

  // Logs, counts and maps. Exactly once, right before the reactor's Finish.
  grpc::Status Finish(const absl::Status& status);

 private:
  RpcEnvironment& env_;
  const char* const method_;
  const MethodAccess* const access_;
  const std::string peer_;  // its network address
  const Credentials credentials_;
  const Gate::Admission admission_;
  CallContext context_;
  std::string session_;
  std::string trace_parent_;
  v1::GenerateResponse::Final final_;
};

}  // namespace mneme::server
