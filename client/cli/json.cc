#include "client/cli/json.h"

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/timestamp.pb.h>
#include <google/protobuf/util/time_util.h>

#include "absl/strings/escaping.h"

namespace mneme::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

Json Float(double value) {
  // JSON has no infinities; a log-probability of -inf is a legal value.
  if (value == value && value - value == 0) return value;
  return value != value ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
}

// Field `f` of `m`, or its element `i` if it is repeated.
Json Value(const Message& m, const Reflection& r, const FieldDescriptor* f, int i) {
  const bool rep = f->is_repeated();
  switch (f->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return rep ? r.GetRepeatedInt32(m, f, i) : r.GetInt32(m, f);
    case FieldDescriptor::CPPTYPE_INT64:
      return rep ? r.GetRepeatedInt64(m, f, i) : r.GetInt64(m, f);
    case FieldDescriptor::CPPTYPE_UINT32:
      return rep ? r.GetRepeatedUInt32(m, f, i) : r.GetUInt32(m, f);
    case FieldDescriptor::CPPTYPE_UINT64:
      return std::to_string(rep ? r.GetRepeatedUInt64(m, f, i) : r.GetUInt64(m, f));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Float(rep ? r.GetRepeatedFloat(m, f, i) : r.GetFloat(m, f));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Float(rep ? r.GetRepeatedDouble(m, f, i) : r.GetDouble(m, f));
    case FieldDescriptor::CPPTYPE_BOOL:
      return rep ? r.GetRepeatedBool(m, f, i) : r.GetBool(m, f);
    case FieldDescriptor::CPPTYPE_ENUM: {
      const int number = rep ? r.GetRepeatedEnumValue(m, f, i) : r.GetEnumValue(m, f);
      const auto* value = f->enum_type()->FindValueByNumber(number);
      return value ? Json(value->name()) : Json(number);  // a newer server may know more names
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string s = rep ? r.GetRepeatedString(m, f, i) : r.GetString(m, f);
      return f->type() == FieldDescriptor::TYPE_BYTES ? absl::Base64Escape(s) : s;
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(rep ? r.GetRepeatedMessage(m, f, i) : r.GetMessage(m, f));
  }
  return nullptr;
}

}  // namespace

Json ToJson(const Message& m) {
  if (const auto* t = dynamic_cast<const google::protobuf::Timestamp*>(&m)) {
    return google::protobuf::util::TimeUtil::ToString(*t);
  }
  if (const auto* d = dynamic_cast<const google::protobuf::Duration*>(&m)) {
    return google::protobuf::util::TimeUtil::ToString(*d);
  }
  Json json = Json::object();
  const auto& reflection = *m.GetReflection();
  for (int k = 0; k < m.GetDescriptor()->field_count(); ++k) {
    const FieldDescriptor* f = m.GetDescriptor()->field(k);
    if (f->has_presence() && !reflection.HasField(m, f)) continue;
    Json& value = json[f->name()];
    if (f->is_map()) {
      value = Json::object();
      for (int i = 0; i < reflection.FieldSize(m, f); ++i) {
        const Json entry = ToJson(reflection.GetRepeatedMessage(m, f, i));
        const Json& key = entry["key"];
        value[key.is_string() ? key.get<std::string>() : key.dump()] = entry["value"];
      }
    } else if (f->is_repeated()) {
      value = Json::array();
      for (int i = 0; i < reflection.FieldSize(m, f); ++i) {
        value.push_back(Value(m, reflection, f, i));
      }
    } else {
      value = Value(m, reflection, f, -1);
    }
  }
  return json;
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace mneme::cli
