#include "client/error.h"

#include <grpcpp/support/status.h>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "client/transport_error.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace mneme::client {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/google.rpc.";
constexpr char kRequestIdUrl[] = "mneme/request-id";
constexpr char kUnknownOutcomeUrl[] = "mneme/unknown-outcome";

template <typename Message>
std::optional<Message> Payload(const absl::Status& status, const char* name) {
  auto bytes = status.GetPayload(absl::StrCat(kTypePrefix, name));
  Message message;
  if (!bytes || !message.ParseFromString(std::string(*bytes))) return std::nullopt;
  return message;
}

template <typename Message>
void Attach(absl::Status& status, const char* name, const Message& message) {
  status.SetPayload(absl::StrCat(kTypePrefix, name), absl::Cord(message.SerializeAsString()));
}

}  // namespace

Error ErrorOf(const absl::Status& status) {
  Error error;
  error.code = status.code();
  error.message = std::string(status.message());
  if (auto info = Payload<google::rpc::ErrorInfo>(status, "ErrorInfo")) {
    error.reason = info->reason();
    error.metadata = {info->metadata().begin(), info->metadata().end()};
  }
  if (auto bad = Payload<google::rpc::BadRequest>(status, "BadRequest")) {
    for (const auto& v : bad->field_violations()) {
      error.fields.push_back({v.field(), v.description()});
    }
  }
  if (auto resource = Payload<google::rpc::ResourceInfo>(status, "ResourceInfo")) {
    error.resource = resource->resource_name();
  }
  if (auto retry = Payload<google::rpc::RetryInfo>(status, "RetryInfo")) {
    error.retry_delay = absl::Seconds(retry->retry_delay().seconds()) +
                        absl::Nanoseconds(retry->retry_delay().nanos());
  }
  if (auto id = status.GetPayload(kRequestIdUrl)) error.request_id = std::string(*id);
  error.outcome_unknown = status.GetPayload(kUnknownOutcomeUrl).has_value();
  return error;
}

absl::Status FromGrpc(const grpc::Status& status, std::string_view request_id) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      result.SetPayload(any.type_url(), absl::Cord(any.value()));
    }
  } else {
    result = ExplainTransport(std::move(result));
  }
  result.SetPayload(kRequestIdUrl,
                    absl::Cord(absl::string_view(request_id.data(), request_id.size())));
  return result;
}

absl::Status WithReason(absl::Status status, std::string_view reason,
                        std::map<std::string, std::string> metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain("mneme");
  for (auto& [key, value] : metadata) (*info.mutable_metadata())[key] = std::move(value);
  Attach(status, "ErrorInfo", info);
  return status;
}

absl::Status WithField(absl::Status status, std::string_view field, std::string_view expected) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field(std::string(field));
  bad.mutable_field_violations(0)->set_description(std::string(expected));
  Attach(status, "BadRequest", bad);
  return status;
}

absl::Status WithUnknownOutcome(absl::Status status) {
  status.SetPayload(kUnknownOutcomeUrl, absl::Cord("1"));
  return status;
}

bool RefusedUntouched(const Error& error) {
  return error.code == absl::StatusCode::kUnavailable &&
         (error.reason == "QUEUE_FULL" || error.reason == "OVERLOADED" ||
          error.reason == "DRAINING");
}

}  // namespace mneme::client
