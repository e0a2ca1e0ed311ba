#include "server/rpc/generation_service.h"

#include <string>
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

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return GenerateReactor::Start(
      env_, "Generate", context, request,
      [this](CallRecord& record, const grpc::ByteBuffer& bytes, TurnSink& sink) -> absl::Status {
        v1::GenerateRequest turn;
        MNEME_RETURN_IF_ERROR(record.Parse(bytes, &turn));
        record.set_session(turn.session());
        return env_.core.Generate(record.context(), turn, sink);
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::ResumeGeneration(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return GenerateReactor::Start(
      env_, "ResumeGeneration", context, request,
      [this](CallRecord& record, const grpc::ByteBuffer& bytes, TurnSink& sink) -> absl::Status {
        v1::ResumeGenerationRequest resume;
        MNEME_RETURN_IF_ERROR(record.Parse(bytes, &resume));
        return env_.core.ResumeGeneration(record.context(), resume, sink);
      });
}

grpc::ServerUnaryReactor* GenerationService::GetGeneration(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           grpc::ByteBuffer* response) {
  return StartUnary<v1::GetGenerationRequest>(env_, "GetGeneration", &ServerCore::GetGeneration,
                                              context, request, response);
}

grpc::ServerUnaryReactor* GenerationService::Complete(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return UnaryCall<v1::GenerateRequest, v1::CompleteResponse>::Start(
      env_, "Complete", /*is_turn=*/true, context, request, response,
      [this](CallRecord& record,
             const v1::GenerateRequest& turn) -> absl::StatusOr<v1::CompleteResponse> {
        record.set_session(turn.session());
        CompleteSink sink;
        MNEME_RETURN_IF_ERROR(env_.core.Generate(record.context(), turn, sink));
        record.set_final(sink.response().final());
        return std::move(sink.response());
      });
}

grpc::ServerUnaryReactor* GenerationService::CancelGeneration(grpc::CallbackServerContext* context,
                                                              const grpc::ByteBuffer* request,
                                                              grpc::ByteBuffer* response) {
  return StartUnary<v1::CancelGenerationRequest>(
      env_, "CancelGeneration", &ServerCore::CancelGeneration, context, request, response);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return StartUnary<v1::TokenizeRequest>(env_, "Tokenize", &ServerCore::Tokenize, context, request,
                                         response);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return StartUnary<v1::DetokenizeRequest>(env_, "Detokenize", &ServerCore::Detokenize, context,
                                           request, response);
}

// A turn: it computes.
grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return StartUnary<v1::ScoreRequest>(
      env_, "Score", &ServerCore::Score, context, request, response,
      [](const v1::ScoreRequest& r) -> std::string { return r.session(); }, /*is_turn=*/true);
}

}  // namespace mneme::server
