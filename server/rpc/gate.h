// The first thing that happens to every call: who is it, and may they call this at all?
#pragma once

#include <grpcpp/server_context.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/core/mutex.h"
#include "server/core/keyring.h"
#include "server/rpc/method_access.h"

namespace mneme::server {

// What a call shows of its caller.
struct Credentials {
  bool has_authorization = false;
  std::string authorization;            // of the header: "Bearer KEY"
  std::vector<std::string> identities;  // of a client's certificate that was checked
};
Credentials CredentialsOf(const grpc::ServerContextBase& context);

// Thread-safe.
class Gate {
 public:
  // Without a keyring everybody is let in.
  explicit Gate(std::shared_ptr<const Keyring> keyring) : keyring_(std::move(keyring)) {}

  struct Admission {
    // UNAUTHENTICATED CREDENTIALS_INVALID, with one text whatever the cause is; PERMISSION_DENIED
    // ACCESS_DENIED if the role is too small.
    absl::Status status;
    CallerPtr caller;   // of whoever is known, let in or not; null without a keyring
    std::string cause;  // why it was not, for the log
  };
  // A key wins over a certificate, which then does not count, if there are both.
  Admission Admit(const MethodAccess* access, const Credentials& credentials) const;
  // For GET /metrics: `authorization` as in its header, "" if there is none.
  bool MayScrape(const std::string& authorization) const;

  // For calls from now on.
  void Install(std::shared_ptr<const Keyring> keyring);

 private:
  Admission Identify(const Credentials& credentials) const;

  mutable Mutex mutex_;
  std::shared_ptr<const Keyring> keyring_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::server
