#include "memstore/postgres_connection.h"

#include <errno.h>
#include <poll.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace mneme::memstore {
namespace {

// Types' numbers are part of the protocol.
constexpr uint32_t kByteaOid = 17, kInt8Oid = 20, kTextOid = 25;

void AppendBigEndian(std::string& out, uint64_t value, int size_bytes) {
  for (int shift = 8 * (size_bytes - 1); shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(value >> shift));
  }
}

// One dimension, lower bound 1; the elements follow.
std::string ArrayHead(size_t size, uint32_t element_oid, bool has_null) {
  std::string out;
  AppendBigEndian(out, size == 0 ? 0 : 1, 4);
  AppendBigEndian(out, has_null ? 1 : 0, 4);
  AppendBigEndian(out, element_oid, 4);
  if (size == 0) return out;
  AppendBigEndian(out, size, 4);
  AppendBigEndian(out, 1, 4);
  return out;
}

std::string BytesArray(const std::vector<std::string_view>& values, uint32_t element_oid) {
  size_t size_bytes = 0;
  for (std::string_view value : values) size_bytes += 4 + value.size();
  std::string out = ArrayHead(values.size(), element_oid, false);
  out.reserve(out.size() + size_bytes);
  for (std::string_view value : values) {
    AppendBigEndian(out, value.size(), 4);
    out.append(value);
  }
  return out;
}

std::string Field(const PGresult* result, int code) {
  const char* text = PQresultErrorField(result, code);
  return text == nullptr ? "" : text;
}

// Class 08 and the shutdowns of class 57: the connection is gone, or of no use (a primary that has
// become a standby).
bool EndsConnection(const std::string& sqlstate, const std::string& severity) {
  return severity == "FATAL" || severity == "PANIC" || sqlstate.starts_with("08") ||
         sqlstate == "25006";
}

absl::Status ToStatus(const std::string& sqlstate, const std::string& message) {
  const std::string_view group = std::string_view(sqlstate).substr(0, 2);
  // A full disk, or a quota on it.
  if (sqlstate == "53100") return absl::ResourceExhaustedError(message);
  // Damaged pages and indices; reference counts that no commit of ours leaves behind.
  if (sqlstate == "XX001" || sqlstate == "XX002" || sqlstate == "23514") {
    return absl::DataLossError(message);
  }
  // Missing tables, rights and features: nothing that waiting would mend.
  if (group == "42" || group == "3F" || group == "0A") return absl::InternalError(message);
  return absl::UnavailableError(message);
}

}  // namespace

PgParams& PgParams::Int8(int64_t value) {
  AppendBigEndian(values_.emplace_back(), static_cast<uint64_t>(value), 8);
  return *this;
}

PgParams& PgParams::Bytes(std::string_view value) {
  values_.emplace_back(value);
  return *this;
}

PgParams& PgParams::TextArray(const std::vector<std::string_view>& values) {
  values_.push_back(BytesArray(values, kTextOid));
  return *this;
}

PgParams& PgParams::ByteaArray(const std::vector<std::string_view>& values) {
  values_.push_back(BytesArray(values, kByteaOid));
  return *this;
}

PgParams& PgParams::Int8Array(const std::vector<std::optional<int64_t>>& values) {
  const bool has_null = std::find(values.begin(), values.end(), std::nullopt) != values.end();
  std::string out = ArrayHead(values.size(), kInt8Oid, has_null);
  for (const std::optional<int64_t>& value : values) {
    AppendBigEndian(out, value ? 8 : ~uint64_t{0}, 4);
    if (value) AppendBigEndian(out, static_cast<uint64_t>(*value), 8);
  }
  values_.push_back(std::move(out));
  return *this;
}

size_t PgParams::size_bytes() const {
  size_t size_bytes = 0;
  for (const std::string& value : values_) size_bytes += value.size();
  return size_bytes;
}

std::string_view PgRows::Bytes(int row, int column) const {
  return {PQgetvalue(result_.get(), row, column),
          static_cast<size_t>(PQgetlength(result_.get(), row, column))};
}

int64_t PgRows::Int8(int row, int column) const {
  const std::string_view bytes = Bytes(row, column);
  if (bytes.size() != 8) return 0;
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return static_cast<int64_t>(value);
}

absl::StatusOr<std::unique_ptr<PgConnection>> PgConnection::Connect(const PgTarget& target) {
  std::vector<const char*> keywords, values;
  for (const auto& [keyword, value] : target.parameters()) {
    keywords.push_back(keyword.c_str());
    values.push_back(value.c_str());
  }
  keywords.push_back(nullptr);
  values.push_back(nullptr);
  PGconn* raw = PQconnectdbParams(keywords.data(), values.data(), /*expand_dbname=*/0);
  if (raw == nullptr) return absl::UnavailableError("no memory for a connection to PostgreSQL");
  std::unique_ptr<PgConnection> connection(new PgConnection(raw, target.place()));
  if (PQstatus(raw) != CONNECTION_OK) {
    return absl::UnavailableError(
        absl::StrCat("cannot connect to PostgreSQL (", target.place(),
                     "): ", std::string(absl::StripAsciiWhitespace(PQerrorMessage(raw)))));
  }
  PQsetNoticeReceiver(raw, &OnNotice, connection.get());
  if (PQsetnonblocking(raw, 1) != 0 || PQenterPipelineMode(raw) != 1) {
    return absl::InternalError("libpq refuses to work without blocking");
  }
  return connection;
}

void PgConnection::OnNotice(void* self, const PGresult* notice) {
  if (Field(notice, PG_DIAG_SEVERITY_NONLOCALIZED) == "WARNING") {
    static_cast<PgConnection*>(self)->warned_ = true;
  }
}

void PgConnection::Queue(const PgStatement& statement, PgParams params) {
  queued_.push_back({statement, std::move(params), false});
}

void PgConnection::QueuePrepare(const PgStatement& statement) {
  queued_.push_back({statement, {}, true});
}

bool PgConnection::Stale() const {
  pollfd socket{.fd = PQsocket(connection_.get()), .events = POLLIN, .revents = 0};
  return socket.fd < 0 || poll(&socket, 1, 0) != 0;
}

bool PgConnection::Send(const Queued& queued) {
  PGconn* connection = connection_.get();
  const auto& [statement, params, prepare] = queued;
  if (prepare) return PQsendPrepare(connection, statement.name, statement.sql, 0, nullptr) == 1;
  std::vector<const char*> values;
  std::vector<int> lengths;
  for (const std::string& value : params.values()) {
    values.push_back(value.data());
    lengths.push_back(static_cast<int>(value.size()));
  }
  const std::vector<int> formats(values.size(), 1);
  const int count = static_cast<int>(values.size());
  return statement.name[0] == '\0'
             ? PQsendQueryParams(connection, statement.sql, count, nullptr, values.data(),
                                 lengths.data(), formats.data(), 1) == 1
             : PQsendQueryPrepared(connection, statement.name, count, values.data(), lengths.data(),
                                   formats.data(), 1) == 1;
}

bool PgConnection::Wait(PgDeadline deadline, bool for_result) {
  PGconn* connection = connection_.get();
  while (true) {
    const int unsent = PQflush(connection);
    if (unsent < 0) return false;
    if (for_result ? PQisBusy(connection) == 0 : unsent == 0) return true;
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd socket{.fd = PQsocket(connection),
                  .events = static_cast<short>(unsent > 0 ? POLLIN | POLLOUT : POLLIN),
                  .revents = 0};
    const int ready = poll(&socket, 1, static_cast<int>(std::min<int64_t>(left.count(), 60'000)));
    if (ready < 0 && errno != EINTR) return false;
    if (ready > 0 && (socket.revents & ~POLLOUT) != 0 && PQconsumeInput(connection) == 0) {
      return false;
    }
  }
}

// nullptr ends a statement's results; also where the connection is lost, which the caller sees.
PGresult* PgConnection::NextResult(PgDeadline& deadline, std::function<PgDeadline()>& on_timeout) {
  bool there = Wait(deadline, /*for_result=*/true);
  if (!there && on_timeout && std::chrono::steady_clock::now() >= deadline) {
    deadline = std::exchange(on_timeout, nullptr)();
    there = Wait(deadline, /*for_result=*/true);
  }
  if (!there) {
    lost_ = true;
    return nullptr;
  }
  return PQgetResult(connection_.get());
}

void PgConnection::Lose(PgOutcome& outcome, std::string_view why) {
  lost_ = true;
  outcome.lost = true;
  outcome.rows.clear();
  if (!outcome.status.ok()) return;
  const std::string message(absl::StripAsciiWhitespace(PQerrorMessage(connection_.get())));
  outcome.status = absl::UnavailableError(
      absl::StrCat("connection to PostgreSQL (", place_,
                   ") lost: ", message.empty() ? std::string(why) : message));
}

PgOutcome PgConnection::Run(PgDeadline deadline, std::function<PgDeadline()> on_timeout) {
  PgOutcome outcome;
  const std::vector<Queued> batch = std::exchange(queued_, {});
  warned_ = false;
  if (lost_) {
    Lose(outcome, "it is closed");
    return outcome;
  }
  for (const Queued& queued : batch) {
    // What libpq has not sent yet it keeps: no more than one statement.
    if (!Send(queued) || !Wait(deadline, /*for_result=*/false)) {
      Lose(outcome, "the server does not take what it is sent");
      return outcome;
    }
  }
  if (PQpipelineSync(connection_.get()) != 1) {
    Lose(outcome, "cannot send");
    return outcome;
  }
  for (size_t i = 0; i < batch.size() + 1; ++i) {
    const bool sync = i == batch.size();
    PGresult* result = NextResult(deadline, on_timeout);
    if (result == nullptr) {
      Lose(outcome, "the server does not answer");
      return outcome;
    }
    PgRows rows(result);
    const ExecStatusType status = PQresultStatus(result);
    if (status == PGRES_FATAL_ERROR && outcome.status.ok()) {
      outcome.sqlstate = Field(result, PG_DIAG_SQLSTATE);
      if (!sync) outcome.statement = batch[i].statement.name;
      const std::string severity = Field(result, PG_DIAG_SEVERITY_NONLOCALIZED);
      outcome.status = ToStatus(
          outcome.sqlstate,
          absl::StrCat("PostgreSQL (", place_, "): ",
                       std::string(absl::StripAsciiWhitespace(PQresultErrorMessage(result)))));
      if (outcome.sqlstate.empty() || EndsConnection(outcome.sqlstate, severity)) {
        Lose(outcome, "");
        return outcome;
      }
    }
    if (sync != (status == PGRES_PIPELINE_SYNC)) {
      Lose(outcome, "the server answers out of turn");
      return outcome;
    }
    if (sync) break;
    outcome.rows.push_back(std::move(rows));
    // The end of this statement's results.
    if (PGresult* more = NextResult(deadline, on_timeout); more != nullptr || lost_) {
      PQclear(more);
      Lose(outcome, "the server does not end its answer");
      return outcome;
    }
  }
  outcome.warned = warned_;
  if (!outcome.ok()) outcome.rows.clear();
  return outcome;
}

}  // namespace mneme::memstore
