#include "client/request_check.h"

#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "client/error.h"
#include "client/utf8.h"

namespace mneme::client {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// The offset of the first byte that is not UTF-8, or the size.
size_t ValidBytes(std::string_view text) {
  size_t valid = 0;
  while (const size_t size = Utf8CharacterBytes(text.substr(valid))) valid += size;
  return valid;
}

struct BadField {
  std::string path;
  size_t byte;
};

std::optional<BadField> FindBad(const Message& message, const std::string& prefix) {
  const auto& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool repeated = field->is_repeated();
    const int count = repeated ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string path = prefix + field->name();
      if (repeated) absl::StrAppend(&path, "[", i, "]");
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        const Message& inner = repeated ? reflection.GetRepeatedMessage(message, field, i)
                                        : reflection.GetMessage(message, field);
        if (auto bad = FindBad(inner, path + ".")) return bad;
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        std::string scratch;
        const std::string& text =
            repeated ? reflection.GetRepeatedStringReference(message, field, i, &scratch)
                     : reflection.GetStringReference(message, field, &scratch);
        if (const size_t valid = ValidBytes(text); valid < text.size()) {
          return BadField{std::move(path), valid};
        }
      } else {
        break;  // numbers and bytes
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::Status CheckRequestSize(size_t request_bytes) {
  constexpr size_t kMaxBytes = std::numeric_limits<int32_t>::max();  // protobuf's own limit
  if (request_bytes <= kMaxBytes) return absl::OkStatus();
  return WithReason(
      absl::ResourceExhaustedError(absl::StrCat("the request has ", request_bytes,
                                                " bytes, more than any message can carry")),
      "REQUEST_TOO_LARGE",
      {{"request_bytes", absl::StrCat(request_bytes)},
       {"max_request_bytes", absl::StrCat(kMaxBytes)}});
}

absl::Status CheckRequest(const Message& request) {
  if (absl::Status status = CheckRequestSize(request.ByteSizeLong()); !status.ok()) return status;
  const std::optional<BadField> bad = FindBad(request, "");
  if (!bad) return absl::OkStatus();
  const std::string expected = absl::StrCat("must be UTF-8; byte ", bad->byte, " is not");
  return WithField(WithReason(absl::InvalidArgumentError(absl::StrCat(bad->path, " ", expected)),
                              "FIELD_INVALID"),
                   bad->path, expected);
}

}  // namespace mneme::client
