#include "server/config/foreign_variables.h"

#include <algorithm>
#include <iterator>

namespace mneme::server {
namespace {

constexpr std::string_view kOfTheClient[] = {"MNEME_SERVER", "MNEME_TENANT",   "MNEME_MODEL",
                                             "MNEME_TLS_CA", "MNEME_TLS_CERT", "MNEME_TLS_KEY",
                                             "MNEME_API_KEY"};

// Of a service mneme-api: MNEME_API_SERVICE_HOST, MNEME_API_SERVICE_PORT,
// MNEME_API_SERVICE_PORT_GRPC, MNEME_API_PORT=tcp://10.0.0.1:7447,
// MNEME_API_PORT_7447_TCP=tcp://10.0.0.1:7447, and MNEME_API_PORT_7447_TCP_ADDR, _PORT and _PROTO.
bool IsOfKubernetes(std::string_view name, std::string_view value) {
  if (name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") ||
      name.find("_SERVICE_PORT_") != name.npos) {
    return true;
  }
  if (name.ends_with("_PORT") && value.find("://") != value.npos) return true;
  for (const char* protocol : {"_TCP", "_UDP", "_SCTP"}) {
    const size_t at = name.rfind(protocol);
    if (at != name.npos && name.substr(0, at).find("_PORT_") != name.npos) return true;
  }
  return false;
}

}  // namespace

bool IsForeignVariable(std::string_view name, std::string_view value) {
  return std::find(std::begin(kOfTheClient), std::end(kOfTheClient), name) !=
             std::end(kOfTheClient) ||
         IsOfKubernetes(name, value);
}

}  // namespace mneme::server
