#include "server/rpc/admin_service.h"

#include "absl/strings/match.h"
#include "engine/core/status_macros.h"
#include "server/core/caller.h"
#include "server/rpc/unary_call.h"

namespace mneme::server {
namespace {

// A server that knows nobody has no admins: whoever is on its machine could stop it anyway.
absl::Status CheckMayAdminister(CallRecord& record, const std::string& peer) {
  if (record.context().caller != nullptr || IsOnThisMachine(peer)) return absl::OkStatus();
  return AccessDenied(
      "this server has no keys: it is administered from its own machine; give it keys, one of them "
      "with the role admin, for more");
}

template <typename Request, typename Response>
grpc::ServerUnaryReactor* Start(
    RpcEnvironment& env, const char* name, grpc::CallbackServerContext* context,
    const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response,
    std::function<absl::StatusOr<Response>(CallContext&, const Request&)> body) {
  return UnaryCall<Request, Response>::Start(
      env, name, /*is_turn=*/false, context, bytes, response,
      [peer = std::string(context->peer()), body = std::move(body)](
          CallRecord& record, const Request& request) -> absl::StatusOr<Response> {
        MNEME_RETURN_IF_ERROR(CheckMayAdminister(record, peer));
        return body(record.context(), request);
      });
}

}  // namespace

bool IsOnThisMachine(const std::string& peer) {
  for (const char* local : {"unix:", "unix-abstract:", "ipv4:127.", "ipv6:[::1]:",
                            "ipv6:%5B::1%5D:", "ipv6:[::ffff:127.", "ipv6:%5B::ffff:127."}) {
    if (absl::StartsWith(peer, local)) return true;
  }
  return false;
}

grpc::ServerUnaryReactor* AdminService::GetServerInfo(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Start<v1::GetServerInfoRequest, v1::ServerInfo>(
      env_, "GetServerInfo", context, request, response,
      [this](CallContext& call, const v1::GetServerInfoRequest& r) {
        return env_.core.GetServerInfo(call, r);
      });
}

grpc::ServerUnaryReactor* AdminService::GetLoads(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  return Start<v1::GetLoadsRequest, v1::Loads>(
      env_, "GetLoads", context, request, response,
      [this](CallContext& call, const v1::GetLoadsRequest& r) {
        return env_.core.GetLoads(call, r);
      });
}

grpc::ServerUnaryReactor* AdminService::DrainServer(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return Start<v1::DrainServerRequest, v1::DrainServerResponse>(
      env_, "DrainServer", context, request, response,
      [this](CallContext&,
             const v1::DrainServerRequest& r) -> absl::StatusOr<v1::DrainServerResponse> {
        v1::DrainServerResponse out;
        out.set_drain_phase(static_cast<int32_t>(env_.core.metrics().drain_phase.Value()));
        // A second signal would end the running turns.
        if (out.drain_phase() == 0 && !drained_.exchange(true)) on_drain_(r.at_once());
        return out;
      });
}

}  // namespace mneme::server
