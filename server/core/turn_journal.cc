#include "server/core/turn_journal.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/core/status_macros.h"
#include "server/core/cancel_status.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

constexpr char kGenerationPrefix[] = "generations/";
constexpr char kRequest[] = "request";

// So a write is a few KiB at most, and a long turn a few dozen records.
constexpr int64_t kTokensPerRecord = 1024;
// More than this is not kept of a turn that has ended.
constexpr size_t kMaxEndBytes = 1 << 20;
// Between a look and a write somebody else may have settled the turn.
constexpr int kAttempts = 8;

std::string GenerationKey(std::string_view generation) {
  return absl::StrCat(kGenerationPrefix, absl::string_view(generation.data(), generation.size()));
}
std::string TurnPrefix(const SessionName& session) {
  return absl::StrCat("turns/", session.session, "/");
}
std::string OutputKey(const SessionName& session, int64_t record) {
  return absl::StrFormat("%s%08d", TurnPrefix(session), record);
}
std::string EndPrefix(const SessionName& session) {
  return absl::StrCat("ended/", session.session, "/");
}

// Of a generation's record; nullopt if it cannot be read.
std::optional<storage::StoredGeneration> ParseGeneration(const memstore::Record& record,
                                                         const std::string& tenant) {
  storage::StoredGeneration generation;
  if (!generation.ParseFromString(record.value) ||
      !ParseSessionName(generation.session(), "session", tenant).ok()) {
    return std::nullopt;
  }
  return generation;
}

// Everything of the session's turn, and the key of its generation.
absl::StatusOr<std::map<std::string, int64_t>> VersionsOf(const SessionStore& sessions,
                                                          const SessionName& session,
                                                          const std::string& generation) {
  std::map<std::string, int64_t> versions;
  MNEME_ASSIGN_OR_RETURN(const auto records, sessions.FindAll(session.tenant, TurnPrefix(session)));
  for (const auto& item : records) versions[item.name] = item.record.version;
  if (!ParseGenerationName(generation, "generation", session.tenant).ok()) return versions;
  const std::string key = GenerationKey(generation);
  MNEME_ASSIGN_OR_RETURN(const auto pointer, sessions.Find({session.tenant, key}));
  if (pointer) versions[key] = pointer->version;
  return versions;
}

// The generation whose turn the session has; "" if it has none.
absl::StatusOr<std::string> GenerationOf(const SessionStore& sessions, const SessionName& session) {
  MNEME_ASSIGN_OR_RETURN(const auto record,
                         sessions.Find({session.tenant, TurnPrefix(session) + kRequest}));
  storage::StoredJournal turn;
  // One that cannot be read is one of nobody's.
  return record && turn.ParseFromString(record->value) ? turn.generation() : std::string();
}

void AddDeletes(const std::string& tenant, const std::map<std::string, int64_t>& versions,
                std::vector<memstore::Delete>& deletes) {
  for (const auto& [name, version] : versions) deletes.push_back({{tenant, name}, version});
}

}  // namespace

absl::Status DamagedTurn() {
  return Error(absl::StatusCode::kDataLoss, reason::kStateCorrupt,
               "what is stored of the interrupted turn is damaged; the session is as it was before "
               "it, and goes on with another turn");
}

absl::Status ResumeExpired(const std::string& generation) {
  return WithResource(
      Error(absl::StatusCode::kFailedPrecondition, reason::kResumeExpired,
            "the generation's output is not kept, or no longer; the session has what "
            "was committed"),
      "mneme.v1.Generation", generation);
}

memstore::Put TurnJournal::PutOf(const std::string& name, std::string value) const {
  const auto found = versions_.find(name);
  return {.key = {session_.tenant, name},
          .expected_version = found == versions_.end() ? 0 : found->second,
          .value = std::move(value)};
}

memstore::Put TurnJournal::GenerationPut() const {
  storage::StoredGeneration generation;
  generation.set_session(session_.session);
  generation.set_elapsed_us(absl::ToInt64Microseconds(absl::FromChrono(Clock::now() - arrival_)));
  memstore::Put put = PutOf(GenerationKey(generation_), generation.SerializeAsString());
  put.expire_time = absl::Now() + window_;
  return put;
}

absl::Status TurnJournal::Commit(memstore::Transaction transaction, LeaseTable::Lease& lease) {
  const auto now = Clock::now();
  transaction.puts.push_back(GenerationPut());
  transaction.sync = false;
  std::vector<std::string> names;
  for (const memstore::Put& put : transaction.puts) names.push_back(put.key.name);
  const absl::Status status = sessions_->Write(std::move(transaction), lease);
  sure_ = status.ok();
  due_ = now + kInterval;
  if (!status.ok()) return status;
  for (const std::string& name : names) ++versions_[name];
  renewal_due_ = now + std::max<Clock::duration>(kInterval, absl::ToChronoNanoseconds(window_ / 2));
  return status;
}

absl::Status TurnJournal::Begin(const storage::StoredJournal& turn, LeaseTable::Lease& lease) {
  if (sessions_ == nullptr) return absl::OkStatus();
  generation_ = turn.generation();
  memstore::Transaction transaction;
  transaction.puts.push_back(PutOf(TurnPrefix(session_) + kRequest, turn.SerializeAsString()));
  const absl::Status status = Commit(std::move(transaction), lease);
  // Nobody writes there beside us.
  if (absl::IsAborted(status)) return CancelStatus(CallContext::Cancel::kLeaseLost);
  MNEME_RETURN_IF_ERROR(status);
  open_ = true;
  return absl::OkStatus();
}

void TurnJournal::GoOn(Interrupted interrupted) {
  generation_ = interrupted.turn.generation();
  versions_ = std::move(interrupted.versions);
  tokens_ = std::move(interrupted.output);
  written_ = num_tokens();
  due_ = renewal_due_ = Clock::now();  // it must not expire while the input is read
  open_ = true;
}

bool TurnJournal::ReadVersions() {
  const auto generation = GenerationOf(*sessions_, session_);
  if (!generation.ok()) return true;  // the next write asks again
  auto versions = VersionsOf(*sessions_, session_, generation_);
  if (!versions.ok()) return true;
  if (*generation != generation_) {
    open_ = false;
    return false;
  }
  versions_ = *std::move(versions);
  sure_ = true;
  return true;
}

void TurnJournal::Write(const std::vector<engine::TokenId>& more, LeaseTable::Lease& lease,
                        bool now) {
  if (!open_) return;
  tokens_.insert(tokens_.end(), more.begin(), more.end());
  const auto time = Clock::now();
  const int64_t unwritten = num_tokens() - written_;
  const bool is_due =
      now || unwritten >= kTokens || (unwritten > 0 && time >= due_) || time >= renewal_due_;
  if (!is_due) {
    if (unwritten == 0) due_ = time + kInterval;
    return;
  }
  if (!sure_ && (!ReadVersions() || !sure_)) {
    due_ = time + kInterval;
    return;
  }
  memstore::Transaction transaction;
  for (int64_t record = written_ / kTokensPerRecord; record * kTokensPerRecord < num_tokens();
       ++record) {
    storage::StoredOutput output;
    const int64_t end = std::min(num_tokens(), (record + 1) * kTokensPerRecord);
    output.mutable_token_ids()->Add(tokens_.begin() + record * kTokensPerRecord,
                                    tokens_.begin() + end);
    transaction.puts.push_back(PutOf(OutputKey(session_, record), output.SerializeAsString()));
  }
  if (Commit(std::move(transaction), lease).ok()) written_ = num_tokens();
}

void TurnJournal::AddEnd(const std::vector<v1::GenerateResponse>& events,
                         SessionStore::Change& change) {
  if (!open_ || (!sure_ && !ReadVersions())) return;
  sure_ = false;  // if this is called again, something else was there
  AddDeletes(session_.tenant, versions_, change.deletes);
  storage::StoredEnd end;
  *end.mutable_events() = {events.begin(), events.end()};
  const std::string key = GenerationKey(generation_);
  if (versions_.count(key) == 0 || end.ByteSizeLong() > kMaxEndBytes) return;
  std::erase_if(change.deletes, [&](const memstore::Delete& d) { return d.key.name == key; });
  change.puts.push_back(GenerationPut());
  change.puts.push_back({.key = {session_.tenant, EndPrefix(session_) + generation_},
                         .value = end.SerializeAsString()});
}

void TurnJournal::Discard(LeaseTable::Lease& lease) {
  if (!open_ || (!sure_ && !ReadVersions())) return;
  memstore::Transaction transaction{.sync = false};
  AddDeletes(session_.tenant, versions_, transaction.deletes);
  sessions_->Write(std::move(transaction), lease).IgnoreError();
  open_ = false;
}

absl::StatusOr<std::optional<TurnJournal::Interrupted>> FindInterrupted(
    const SessionStore& sessions, const SessionName& session) {
  const std::string request_key = TurnPrefix(session) + kRequest;
  // Nearly always there is none: one look.
  MNEME_ASSIGN_OR_RETURN(const auto request, sessions.Find({session.tenant, request_key}));
  if (!request) return std::nullopt;
  MNEME_ASSIGN_OR_RETURN(const auto records, sessions.FindAll(session.tenant, TurnPrefix(session)));
  TurnJournal::Interrupted found;
  for (const auto& item : records) {
    found.versions[item.name] = item.record.version;
    if (item.name == request_key) {
      if (!found.turn.ParseFromString(item.record.value)) return DamagedTurn();
      continue;
    }
    storage::StoredOutput output;
    const auto count = static_cast<int64_t>(found.output.size());
    if (!output.ParseFromString(item.record.value) || count % kTokensPerRecord != 0 ||
        output.token_ids_size() > kTokensPerRecord ||
        item.name != OutputKey(session, count / kTokensPerRecord)) {
      return DamagedTurn();
    }
    found.output.insert(found.output.end(), output.token_ids().begin(), output.token_ids().end());
  }
  if (found.versions.count(request_key) == 0) return std::nullopt;  // it has just ended
  const auto of = ParseSessionName(found.turn.request().session(), "session", session.tenant);
  if (!of.ok() || of->session != session.session ||
      !ParseGenerationName(found.turn.generation(), "generation", session.tenant).ok()) {
    return DamagedTurn();
  }
  const std::string key = GenerationKey(found.turn.generation());
  MNEME_ASSIGN_OR_RETURN(const auto pointer, sessions.Find({session.tenant, key}));
  if (!pointer) return std::nullopt;
  found.versions[key] = pointer->version;
  found.expire_time = pointer->expire_time;
  const auto generation = ParseGeneration(*pointer, session.tenant);
  if (!generation) return DamagedTurn();
  found.elapsed = std::clamp(absl::Microseconds(generation->elapsed_us()), absl::ZeroDuration(),
                             absl::Hours(24 * 365));
  return found;
}

absl::Status SettleInterrupted(SessionStore& sessions, const SessionName& session,
                               LeaseTable::Lease& lease) {
  for (int attempt = 0;; ++attempt) {
    MNEME_ASSIGN_OR_RETURN(const auto request,
                           sessions.Find({session.tenant, TurnPrefix(session) + kRequest}));
    if (!request) return absl::OkStatus();
    storage::StoredJournal turn;
    // One that cannot be read goes as well; its generation's key by itself.
    if (!turn.ParseFromString(request->value)) turn.Clear();
    MNEME_ASSIGN_OR_RETURN(const auto versions, VersionsOf(sessions, session, turn.generation()));
    memstore::Transaction transaction{.sync = false};
    AddDeletes(session.tenant, versions, transaction.deletes);
    const absl::Status status = sessions.Write(std::move(transaction), lease);
    if (!absl::IsAborted(status)) return status;
    if (!ReasonOf(status).empty() || attempt == kAttempts) {
      return CancelStatus(CallContext::Cancel::kLeaseLost);
    }
  }
}

absl::StatusOr<std::optional<StoredGeneration>> FindStoredGeneration(
    const SessionStore& sessions, const std::string& tenant, const std::string& generation) {
  MNEME_ASSIGN_OR_RETURN(const auto pointer, sessions.Find({tenant, GenerationKey(generation)}));
  if (!pointer || pointer->expire_time <= absl::Now()) return std::nullopt;
  const auto where = ParseGeneration(*pointer, tenant);
  if (!where) return DamagedTurn();
  StoredGeneration found{.session = {tenant, where->session()}};
  MNEME_ASSIGN_OR_RETURN(const auto end,
                         sessions.Find({tenant, EndPrefix(found.session) + generation}));
  if (end) {
    found.end.emplace();
    const auto& events = found.end->events();
    if (!found.end->ParseFromString(end->value) || events.empty() ||
        !events.begin()->has_started() || !events.rbegin()->has_final()) {
      return DamagedTurn();
    }
    return found;
  }
  MNEME_ASSIGN_OR_RETURN(found.interrupted, FindInterrupted(sessions, found.session));
  if (!found.interrupted || found.interrupted->turn.generation() != generation) return std::nullopt;
  return found;
}

bool IsGeneration(const memstore::Key& key) { return key.name.starts_with(kGenerationPrefix); }

bool RemoveExpiredGeneration(SessionStore& sessions, const memstore::Key& key, absl::Time now) {
  const std::string generation = key.name.substr(sizeof(kGenerationPrefix) - 1);
  const auto pointer = sessions.Find(key);
  if (!pointer.ok() || !*pointer || (*pointer)->expire_time > now) return false;
  memstore::Transaction transaction{.deletes = {{key, (*pointer)->version}}, .sync = false};
  if (const auto where = ParseGeneration(**pointer, key.realm)) {
    const SessionName session{key.realm, where->session()};
    const memstore::Key end_key{key.realm, EndPrefix(session) + generation};
    const auto end = sessions.Find(end_key);
    if (!end.ok()) return false;
    if (*end) transaction.deletes.push_back({end_key, (*end)->version});
    const auto current = GenerationOf(sessions, session);
    if (!current.ok()) return false;
    if (*current == generation) {
      auto versions = VersionsOf(sessions, session, generation);
      if (!versions.ok()) return false;
      versions->erase(key.name);
      AddDeletes(key.realm, *versions, transaction.deletes);
    }
  }
  // Whoever goes on with it has written its key meanwhile.
  LeaseTable::Lease none;
  return sessions.Write(std::move(transaction), none).ok();
}

std::vector<std::string> TurnPrefixes(const SessionName& session) {
  return {TurnPrefix(session), EndPrefix(session)};
}

}  // namespace mneme::server
