// SPDX-License-Identifier: Apache-2.0
//
// Resource names: short forms that people type, expanded to full names in the client's own tenant.
//
//   session   s                    -> tenants/{tenant}/sessions/s
//   snapshot  s/snapshots/c, s@c   -> tenants/{tenant}/sessions/s/snapshots/c
//   model     m                    -> models/m
// A full name is checked and returned as it is, whatever its tenant. Ids match
// ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$. Errors: kInvalidArgument, saying what was expected.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace mneme::client {

bool IsId(std::string_view id);

// tenants/{tenant}
absl::StatusOr<std::string> TenantName(std::string_view tenant);
absl::StatusOr<std::string> SessionName(std::string_view tenant, std::string_view session);
absl::StatusOr<std::string> SnapshotName(std::string_view tenant, std::string_view snapshot);
// A model's id may be any of letters, digits, '.', '_' and '-', as its operator named it.
absl::StatusOr<std::string> ModelName(std::string_view model);

// The last part of a name: "s" of "tenants/default/sessions/s".
std::string_view IdOf(std::string_view name);
// The session a snapshot belongs to, or the name itself if it is a session's.
std::string_view SessionOf(std::string_view name);

}  // namespace mneme::client
