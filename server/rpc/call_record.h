// One RPC from its arrival to its status: ids, deadline, trailers, log line, metrics.
#pragma once

#include <grpcpp/server_context.h>

#include <chrono>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/call_context.h"
#include "server/rpc/rpc_environment.h"

namespace mneme::server {

// Lives in the call's reactor. Everything but Cancel() is for one thread at a time.
class CallRecord {
 public:
  // `method` must outlive the record. Adds the trailers x-request-id (the client's, if it sent a
  // usable one) and x-served-by.
  CallRecord(RpcEnvironment& env, const char* method, grpc::CallbackServerContext* context);

  CallContext& context() { return context_; }

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
  CallContext context_;
  std::string session_;
  std::string trace_parent_;
  v1::GenerateResponse::Final final_;
};

}  // namespace mneme::server
