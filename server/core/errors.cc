#include "server/core/errors.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/core/caller.h"

namespace mneme::server {
namespace {

constexpr char kDomain[] = "mneme";

template <typename Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name());
}

template <typename Detail>
void Attach(absl::Status& status, const Detail& detail) {
  status.SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
}

}  // namespace

absl::Status Error(absl::StatusCode code, std::string_view reason, std::string message,
                   std::map<std::string, std::string> metadata) {
  absl::Status status(code, message);
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  for (auto& [key, value] : metadata) (*info.mutable_metadata())[key] = std::move(value);
  Attach(status, info);
  return status;
}

absl::Status WithRetry(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  info.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  Attach(status, info);
  return status;
}

absl::Status WithResource(absl::Status status, std::string_view type, std::string_view name) {
  google::rpc::ResourceInfo info;
  info.set_resource_type(std::string(type));
  info.set_resource_name(std::string(name));
  Attach(status, info);
  return status;
}

absl::Status WithQuota(absl::Status status, std::string_view subject, std::string description) {
  google::rpc::QuotaFailure failure;
  auto& violation = *failure.add_violations();
  violation.set_subject(std::string(subject));
  violation.set_description(std::move(description));
  Attach(status, failure);
  return status;
}

absl::Status AccessDenied(std::string text) {
  return Error(absl::StatusCode::kPermissionDenied, reason::kAccessDenied, std::move(text));
}

std::string ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<google::rpc::ErrorInfo>());
  if (!payload.has_value()) return "";
  google::rpc::ErrorInfo info;
  return info.ParseFromString(std::string(*payload)) ? info.reason() : "";
}

void FieldErrors::Add(std::string_view field, std::string expected, std::string_view reason) {
  violations_.push_back({prefix_ + std::string(field), std::move(expected), std::string(reason)});
}

absl::Status FieldErrors::ToStatus() const {
  if (violations_.empty()) return absl::OkStatus();
  std::string message;
  google::rpc::BadRequest bad;
  for (const Violation& violation : violations_) {
    absl::StrAppend(&message, message.empty() ? "" : "; ", violation.field, " ",
                    violation.description);
    auto* out = bad.add_field_violations();
    out->set_field(violation.field);
    out->set_description(violation.description);
  }
  absl::Status status =
      Error(absl::StatusCode::kInvalidArgument, violations_.front().reason, std::move(message));
  Attach(status, bad);
  return status;
}

}  // namespace mneme::server
