// Whether PostgreSQL keeps what it acknowledges, by its settings.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "memstore/postgres_connection.h"

namespace mneme::memstore {

// For how many standbys a commit waits, by the value of synchronous_standby_names.
int SynchronousStandbys(std::string_view synchronous_standby_names);

// Sets synchronous_commit of the connection to on, unless it is stricter already, and looks whether
// a commit is flushed and waits for `required_standbys`. NotDurable() if not.
absl::Status CheckDurability(PgConnection& connection, int required_standbys, PgDeadline deadline);

// After a commit that came with a warning: the server gave up waiting for its standbys.
absl::Status CommittedAlone();

}  // namespace mneme::memstore
