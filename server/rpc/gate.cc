#include "server/rpc/gate.h"

#include <grpc/grpc_security_constants.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr std::string_view kBearer = "bearer ";

absl::Status CredentialsInvalid() {
  return Error(
      absl::StatusCode::kUnauthenticated, reason::kCredentialsInvalid,
      "the call shows no valid key or certificate; send `authorization: Bearer KEY` with a "
      "key of this server");
}

// The key of a header; "" if it has another form.
std::string_view KeyIn(std::string_view authorization) {
  const absl::string_view text(authorization.data(), authorization.size());
  if (!absl::StartsWithIgnoreCase(text, {kBearer.data(), kBearer.size()})) return "";
  return authorization.substr(kBearer.size());
}

}  // namespace

Credentials CredentialsOf(const grpc::ServerContextBase& context) {
  Credentials credentials;
  const auto header = context.client_metadata().find("authorization");
  if (header != context.client_metadata().end()) {
    credentials.has_authorization = true;
    credentials.authorization.assign(header->second.data(), header->second.size());
  }
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) return credentials;
  for (const char* property : {GRPC_PEER_SPIFFE_ID_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME}) {
    for (const grpc::string_ref& value : peer->FindPropertyValues(property)) {
      const std::string text(value.data(), value.size());
      const bool is_name = std::string_view(property) == GRPC_PEER_DNS_PROPERTY_NAME;
      credentials.identities.push_back(is_name ? absl::AsciiStrToLower(text) : text);
    }
  }
  return credentials;
}

Gate::Admission Gate::Identify(const Credentials& credentials) const {
  std::shared_ptr<const Keyring> keyring;
  {
    MutexLock lock(&mutex_);
    keyring = keyring_;
  }
  if (keyring == nullptr) return {};
  Admission admission;
  // Looked for in every case, so that all take their time.
  CallerPtr caller = keyring->OfKey(KeyIn(credentials.authorization));
  if (!credentials.has_authorization) {
    for (const std::string& identity : credentials.identities) {
      if ((caller = keyring->OfCertificate(identity)) != nullptr) break;
    }
  }
  if (caller == nullptr) {
    admission.cause = credentials.has_authorization     ? "the key is not known"
                      : !credentials.identities.empty() ? "the certificate is not known"
                                                        : "there is no key";
  } else if (caller->not_after <= absl::Now()) {
    admission.cause = absl::StrCat(caller->id, " has expired");
  } else {
    admission.caller = std::move(caller);
    return admission;
  }
  admission.status = CredentialsInvalid();
  return admission;
}

Gate::Admission Gate::Admit(const MethodAccess* access, const Credentials& credentials) const {
  Admission admission = Identify(credentials);
  if (admission.caller == nullptr) return admission;
  if (access == nullptr || admission.caller->role < access->least) {
    admission.status = AccessDenied("the role of this key may not make this call");
  }
  return admission;
}

bool Gate::MayScrape(const std::string& authorization) const {
  const Admission admission =
      Identify({.has_authorization = true, .authorization = authorization, .identities = {}});
  if (!admission.status.ok()) return false;
  return admission.caller == nullptr || admission.caller->role == Role::kMetrics ||
         admission.caller->role == Role::kAdmin;
}

void Gate::Install(std::shared_ptr<const Keyring> keyring) {
  MutexLock lock(&mutex_);
  keyring_ = std::move(keyring);
}

}  // namespace mneme::server
