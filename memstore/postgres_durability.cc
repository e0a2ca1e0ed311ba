#include "memstore/postgres_durability.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "memstore/validate.h"

namespace mneme::memstore {
namespace {

// Two statements: the second one sees what the first one set.
constexpr PgStatement kSetSync = {"", R"sql(
SELECT CASE WHEN current_setting('synchronous_commit') <> 'remote_apply'
  THEN set_config('synchronous_commit', 'on', false) END)sql"};
constexpr PgStatement kReadSettings = {"", R"sql(
SELECT current_setting('fsync', true), current_setting('synchronous_commit'),
  coalesce(current_setting('synchronous_standby_names', true), ''))sql"};

}  // namespace

int SynchronousStandbys(std::string_view names) {
  const std::string text(absl::StripAsciiWhitespace(std::string(names)));
  if (text.empty()) return 0;
  // [FIRST | ANY] number (names), or names alone, which means the first one.
  const size_t open = text.find('(');
  if (open == text.npos) return 1;
  absl::string_view number = absl::StripAsciiWhitespace(absl::string_view(text).substr(0, open));
  for (const char* method : {"FIRST", "ANY"}) {
    if (absl::StartsWithIgnoreCase(number, method)) {
      number = absl::StripLeadingAsciiWhitespace(number.substr(absl::string_view(method).size()));
      break;
    }
  }
  int count = 0;
  return absl::SimpleAtoi(number, &count) && count >= 0 ? count : 0;
}

absl::Status CheckDurability(PgConnection& connection, int required_standbys, PgDeadline deadline) {
  connection.Queue(kSetSync);
  connection.Queue(kReadSettings);
  const PgOutcome outcome = connection.Run(deadline);
  if (!outcome.ok()) return outcome.status;
  const PgRows& settings = outcome.rows[1];
  if (settings.Bytes(0, 0) == "off") {
    return NotDurable("PostgreSQL runs with fsync = off: a crash of its machine loses commits");
  }
  const std::string_view sync = settings.Bytes(0, 1);
  if (sync != "on" && sync != "remote_apply") {
    return NotDurable(absl::StrCat("PostgreSQL has synchronous_commit = ", std::string(sync),
                                   " and does not let it be set to on"));
  }
  const std::string names(settings.Bytes(0, 2));
  const int standbys = SynchronousStandbys(names);
  if (standbys < required_standbys) {
    return NotDurable(absl::StrCat("PostgreSQL's synchronous_standby_names = '", names,
                                   "' waits for ", standbys, " standbys, ", required_standbys,
                                   " are required"));
  }
  return absl::OkStatus();
}

absl::Status CommittedAlone() {
  return NotDurable("PostgreSQL committed, but gave up waiting for its standbys to have it too");
}

}  // namespace mneme::memstore
