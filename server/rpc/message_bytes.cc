#include "server/rpc/message_bytes.h"

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/utf8.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorProto;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;
using google::protobuf::FileDescriptorProto;
using google::protobuf::Message;

void DropProto3Optional(DescriptorProto& type) {
  for (auto& field : *type.mutable_field()) field.clear_proto3_optional();
  for (auto& nested : *type.mutable_nested_type()) DropProto3Optional(nested);
}

void AddAsProto2(const FileDescriptor* file, google::protobuf::DescriptorPool& pool) {
  if (pool.FindFileByName(file->name()) != nullptr) return;
  for (int i = 0; i < file->dependency_count(); ++i) AddAsProto2(file->dependency(i), pool);
  FileDescriptorProto copy;
  file->CopyTo(&copy);
  copy.clear_syntax();
  for (auto& type : *copy.mutable_message_type()) DropProto3Optional(type);
  pool.BuildFile(copy);
}

std::optional<std::string> FirstBadText(const Message& message, const std::string& prefix) {
  const auto& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool repeated = field->is_repeated();
    const int count = repeated ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const std::string path =
          absl::StrCat(prefix, field->name(), repeated ? absl::StrCat("[", i, "]") : "");
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        const Message& inner = repeated ? reflection.GetRepeatedMessage(message, field, i)
                                        : reflection.GetMessage(message, field);
        if (auto bad = FirstBadText(inner, path + ".")) return bad;
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string text = repeated ? reflection.GetRepeatedString(message, field, i)
                                          : reflection.GetString(message, field);
        if (!engine::IsValidUtf8(text)) return path;
      } else {
        break;
      }
    }
  }
  return std::nullopt;
}

// Protobuf checks the text of proto3 files while it parses, and does not say what it found. It does
// not check that of proto2 files; apart from that the bytes mean the same. Only for bad requests,
// so it need not be quick.
std::optional<std::string> FirstBadText(const std::string& bytes, const Descriptor* type) {
  google::protobuf::DescriptorPool pool;
  AddAsProto2(type->file(), pool);
  const Descriptor* lenient = pool.FindMessageTypeByName(type->full_name());
  if (lenient == nullptr) return std::nullopt;
  google::protobuf::DynamicMessageFactory factory(&pool);
  const std::unique_ptr<Message> message(factory.GetPrototype(lenient)->New());
  if (!message->ParseFromString(bytes)) return std::nullopt;
  return FirstBadText(*message, "");
}

std::string Flatten(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string flat;
  if (!bytes.Dump(&slices).ok()) return flat;
  for (const grpc::Slice& slice : slices) flat.append(slice.begin(), slice.end());
  return flat;
}

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, Message* message) {
  grpc::ByteBuffer consumed = bytes;  // shares the slices
  grpc::ProtoBufferReader reader(&consumed);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  message->Clear();
  FieldErrors errors;
  if (const auto bad = FirstBadText(Flatten(bytes), message->GetDescriptor())) {
    errors.Add(*bad, "must be UTF-8");
    return errors.ToStatus();
  }
  return Error(absl::StatusCode::kInvalidArgument, reason::kFieldInvalid,
               absl::StrCat("the request is no ", message->GetDescriptor()->full_name(),
                            "; build it from the published .proto files"));
}

grpc::ByteBuffer BytesOf(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  // Fails only beyond 2 GiB, which no response of ours reaches.
  grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(message, &bytes, &own_buffer)
      .IgnoreError();
  return bytes;
}

}  // namespace mneme::server
