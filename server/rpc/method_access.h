// What each RPC takes from its caller: a role, and the right tenant in these fields of its request.
//
// One line per method. A method without a line is refused to everybody on a server that has keys;
// tests/server/rpc/tenants_test.cc finds it before.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/core/call_context.h"
#include "server/core/caller.h"

namespace mneme::server {

struct NameField {
  std::string_view path;  // "session.name"
  // What a short name is; a token that says a name.
  enum class Kind { kResource, kTenant, kResumeToken } kind = Kind::kResource;
};

struct MethodAccess {
  std::string_view method;  // "GetSession"
  Role least;
  std::vector<NameField> names;
};

// nullptr if there is no line for it.
const MethodAccess* FindMethodAccess(std::string_view method);

// PERMISSION_DENIED ACCESS_DENIED if one of the names is of a tenant that `caller` may not use,
// whether it exists or not. An admin may use every one: `context.tenant` becomes the one that is
// named. Names without the right form are left to the core.
absl::Status CheckTenants(const MethodAccess& access, const Caller& caller,
                          const google::protobuf::Message& request, CallContext& context);

}  // namespace mneme::server
