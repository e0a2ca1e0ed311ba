// Where a PostgreSQL server is: a connection URI, with the defaults that a server of sessions
// needs.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::memstore {

class PgTarget {
 public:
  // Everything that the URI leaves open: hosts are given 5 s to answer; a connection whose peer has
  // gone is noticed by keepalives within 25 s and by unacknowledged bytes after `timeout`; of
  // several hosts the one that takes writes is meant. INVALID_ARGUMENT, whose message holds no
  // password.
  static absl::StatusOr<PgTarget> Parse(std::string_view uri, absl::Duration timeout);

  // Of libpq, by keyword. Holds the password.
  const std::map<std::string, std::string>& parameters() const { return parameters_; }
  // "host db.example, database mneme", for messages.
  const std::string& place() const { return place_; }

 private:
  std::map<std::string, std::string> parameters_;
  std::string place_;
};

}  // namespace mneme::memstore
