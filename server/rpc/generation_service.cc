#include "server/rpc/generation_service.h"

#include <utility>

#include "engine/core/status_macros.h"
#include "server/rpc/generate_reactor.h"
#include "server/rpc/unary_call.h"

namespace mneme::server {
namespace {

// Gathers a turn's events into one answer.
class CompleteSink final : public TurnSink {
 public:
  bool Send(v1::GenerateResponse event) override {
    if (event.has_started()) {
      *response_.mutable_started() = std::move(*event.mutable_started());
    } else if (event.has_delta()) {
      v1::GenerateResponse::Delta& delta = *event.mutable_delta();
      response_.mutable_text()->append(delta.text());
      response_.mutable_token_ids()->MergeFrom(delta.token_ids());
      response_.mutable_logprobs()->MergeFrom(delta.logprobs());
    } else if (event.has_final()) {
      *response_.mutable_final() = std::move(*event.mutable_final());
    }
    return true;
  }

  v1::CompleteResponse& response() { return response_; }

 private:
  v1::CompleteResponse response_;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return GenerateReactor::Start(env_, context, request);
}

grpc::ServerUnaryReactor* GenerationService::Complete(grpc::CallbackServerContext* context,
                                                      const v1::GenerateRequest* request,
                                                      v1::CompleteResponse* response) {
  return UnaryCall<v1::CompleteResponse>::Start(
      env_, "Complete", /*is_turn=*/true, context, request->session(), response,
      [this, request](CallRecord& record) -> absl::StatusOr<v1::CompleteResponse> {
        CompleteSink sink;
        MNEME_RETURN_IF_ERROR(env_.core.Generate(record.context(), *request, sink));
        record.set_final(sink.response().final());
        return std::move(sink.response());
      });
}

grpc::ServerUnaryReactor* GenerationService::CancelGeneration(
    grpc::CallbackServerContext* context, const v1::CancelGenerationRequest* request,
    v1::CancelGenerationResponse* response) {
  return StartUnary(env_, "CancelGeneration", &ServerCore::CancelGeneration, context, request,
                    response);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  return StartUnary(env_, "Tokenize", &ServerCore::Tokenize, context, request, response);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  return StartUnary(env_, "Detokenize", &ServerCore::Detokenize, context, request, response);
}

// A turn: it computes.
grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const v1::ScoreRequest* request,
                                                   v1::ScoreResponse* response) {
  return StartUnary(env_, "Score", &ServerCore::Score, context, request, response,
                    request->session(), /*is_turn=*/true);
}

}  // namespace mneme::server
