// Protobuf messages as JSON for scripts.
//
// Names are those of the .proto. Unlike proto3's own JSON mapping, 64-bit signed numbers are JSON
// numbers, so that jq can count with them; unsigned 64-bit ones (the seed) stay strings, since they
// exceed what a double holds. Enums are names, bytes base64, times RFC 3339, spans seconds. Plain
// fields are always present, messages and oneof members only when set.
#pragma once

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

namespace mneme::cli {

using Json = nlohmann::ordered_json;

Json ToJson(const google::protobuf::Message& message);

// On one line, invalid UTF-8 replaced.
std::string Dump(const Json& json);

}  // namespace mneme::cli
