#include "tests/client/fake_server.h"

#include <chrono>
#include <stdexcept>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace mneme::client {

grpc::Status FakeError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                       const std::string& metadata_key, const std::string& metadata_value,
                       const std::string& field, int retry_ms) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("mneme");
  if (!metadata_key.empty()) (*info.mutable_metadata())[metadata_key] = metadata_value;
  status.add_details()->PackFrom(info);
  if (!field.empty()) {
    google::rpc::BadRequest bad;
    bad.add_field_violations()->set_field(field);
    bad.mutable_field_violations(0)->set_description("must be in (0, 1]");
    status.add_details()->PackFrom(bad);
  }
  if (retry_ms > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(retry_ms * 1'000'000);
    status.add_details()->PackFrom(retry);
  }
  return {code, message, status.SerializeAsString()};
}

grpc::Status WithDetail(const grpc::Status& error, const google::protobuf::Message& detail) {
  google::rpc::Status status;
  status.ParseFromString(error.error_details());
  status.add_details()->PackFrom(detail);
  return {error.error_code(), error.error_message(), status.SerializeAsString()};
}

void FakeServer::Start() {
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  int port = 0;
  builder.AddListeningPort(address(), grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&sessions);
  builder.RegisterService(&generation);
  builder.RegisterService(&models);
  server_ = builder.BuildAndStart();
  if (!server_) throw std::runtime_error("the fake server cannot listen on " + address());
  port_ = port;
}

void FakeServer::Stop() {
  if (server_) server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

void WriteTurn(FakeGeneration::Writer& writer, const std::vector<std::string>& texts,
               const std::string& generation) {
  int64_t sequence = 0;
  v1::GenerateResponse event;
  event.set_sequence(++sequence);
  event.mutable_started()->set_generation(generation);
  event.mutable_started()->set_seed(18446744073709551615ull);
  writer.Write(event);
  for (const std::string& text : texts) {
    event.Clear();
    event.set_sequence(++sequence);
    event.mutable_delta()->set_text(text);
    event.mutable_delta()->add_token_ids(static_cast<int32_t>(sequence));
    writer.Write(event);
  }
  event.Clear();
  event.set_sequence(++sequence);
  auto& final = *event.mutable_final();
  final.set_finish_reason(v1::EOS);
  final.set_committed(true);
  final.set_version(7);
  final.set_position_tokens(40);
  final.mutable_usage()->set_output_tokens(static_cast<int64_t>(texts.size()));
  writer.Write(event);
}

std::string MetadataOf(const grpc::ServerContext& context, const std::string& key) {
  auto it = context.client_metadata().find(key);
  return it == context.client_metadata().end() ? ""
                                               : std::string(it->second.data(), it->second.size());
}

}  // namespace mneme::client
