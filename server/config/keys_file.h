// The file of auth.keys_file: who may call, as whom, and what.
//
//   keys:
//     - id: acme-1                       # in logs; the key itself is never written anywhere
//       sha256: 9f86d081884c7d659a2f...  # of the key, as `mneme keys create` makes both
//       tenant: acme
//       role: user                       # admin, user, reader or metrics
//       models: [smollm2]                # absent: every model
//       not_after: 2027-01-01T00:00:00Z  # absent: never; a date alone is its first moment, UTC
//   certificates:                        # of clients, by an authority of listen.tls.client_ca
//     - {id: ci, spiffe: "spiffe://example.org/ci", tenant: acme, role: reader}
//     - {id: batch, dns: batch.example.org, tenant: acme, role: user}
//   tenants:                             # what one may use of each server, and keep (TenantLimits)
//     - {id: acme, running: 16, tokens_per_minute: 200000, sessions: 1000, bytes: 8GiB, weight: 2}
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/core/keyring.h"

namespace mneme::server {

// INVALID_ARGUMENT, naming file, line and what was expected.
absl::StatusOr<std::shared_ptr<const Keyring>> ReadKeysFile(const std::string& path);

}  // namespace mneme::server
