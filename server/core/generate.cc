#include "server/core/generate.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "server/core/errors.h"
#include "server/core/generate_request.h"
#include "server/core/generation_log.h"
#include "server/core/session_names.h"
#include "server/core/turn.h"
#include "server/core/turn_journal.h"

namespace mneme::server {
namespace {

using Clock = CallContext::Clock;

GenerationLog::Options LogOptionsOf(Parts& parts, const CallContext& context,
                                    const v1::GenerateRequest& request) {
  GenerationLog::Options options{.max_unsent_tokens = parts.config.limits.max_unsent_tokens,
                                 .resume_window = ResumeWindowOf(request),
                                 .has_request_id = !request.request_id().empty()};
  if (request.on_disconnect() != v1::GenerateRequest::CONTINUE) return options;
  // Turns that wait for the session need not wait for one that nobody reads.
  if (auto name = ParseSessionName(request.session(), "session", context.tenant); name.ok()) {
    options.on_unattended = [&parts, key = CacheKey(*name)](bool unattended) {
      if (unattended) parts.writers.HurryUnattended(key);
    };
  }
  return options;
}

// The generation of `name`, of which another process has left `stored`, in this one.
absl::StatusOr<std::shared_ptr<Generation>> Revive(Parts& parts, const CallContext& context,
                                                   const std::string& name,
                                                   StoredGeneration stored) {
  if (stored.end) {
    return parts.generations->Start(
        context, stored.session.str(), {.revived = true},
        [end = *std::move(stored.end)](Generation& started) {
          for (const v1::GenerateResponse& event : end.events()) {
            if (event.has_delta()) {
              started.log.AppendOutput(event.delta());
            } else {
              started.log.Append(event);
            }
          }
          return absl::OkStatus();
        },
        name);
  }
  MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
  TurnJournal::Interrupted& interrupted = *stored.interrupted;
  GenerationLog::Options log = LogOptionsOf(parts, context, interrupted.turn.request());
  log.revived = true;
  return parts.generations->Start(
      context, interrupted.turn.request().session(), std::move(log),
      [&parts, turn = std::move(interrupted.turn),
       elapsed = interrupted.elapsed](Generation& started) {
        started.turn.request = {.id = absl::AsciiStrToLower(turn.request().request_id()),
                                .payload = turn.payload(),
                                .generation = started.id()};
        started.turn.arrival = Clock::now() - absl::ToChronoNanoseconds(elapsed);
        return RunTurn(parts, started, turn.request(), /*revived=*/true);
      },
      name);
}

google::protobuf::Timestamp TimestampOf(absl::Time time) {
  google::protobuf::Timestamp out;
  out.set_seconds(absl::ToUnixSeconds(time));
  out.set_nanos(
      static_cast<int32_t>((time - absl::FromUnixSeconds(out.seconds())) / absl::Nanoseconds(1)));
  return out;
}

absl::StatusOr<std::shared_ptr<Generation>> FindGeneration(Parts& parts, const CallContext& context,
                                                           const std::string& name) {
  MNEME_ASSIGN_OR_RETURN(const std::string full, ParseGenerationName(name, "name", context.tenant));
  if (auto generation = parts.generations->Find(full)) return generation;
  return WithResource(Error(absl::StatusCode::kNotFound, reason::kGenerationNotFound,
                            "there is no such generation, or it ended long ago"),
                      "mneme.v1.Generation", full);
}

// The full name of the generation that a request is about.
absl::StatusOr<std::string> SourceOf(const v1::ResumeGenerationRequest& request,
                                     const CallContext& context) {
  FieldErrors errors;
  switch (request.source_case()) {
    case v1::ResumeGenerationRequest::kGeneration:
      return ParseGenerationName(request.generation(), "generation", context.tenant);
    case v1::ResumeGenerationRequest::kResumeToken: {
      const std::string name = GenerationOfToken(request.resume_token());
      if (!name.empty()) return ParseGenerationName(name, "resume_token", context.tenant);
      errors.Add("resume_token", "must be the resume_token of a generation's Started",
                 reason::kResumeTokenInvalid);
      return errors.ToStatus();
    }
    case v1::ResumeGenerationRequest::SOURCE_NOT_SET:
      errors.Add("resume_token", "is required, or generation", reason::kFieldRequired);
      return errors.ToStatus();
  }
  return absl::InternalError("a source that nobody knows");
}

// Of this process, or as the store has it.
absl::StatusOr<std::shared_ptr<Generation>> FindKept(Parts& parts, const CallContext& context,
                                                     const std::string& name) {
  if (auto generation = parts.generations->Find(name)) return generation;
  MNEME_ASSIGN_OR_RETURN(auto stored,
                         FindStoredGeneration(*parts.sessions, context.tenant, GenerationId(name)));
  if (!stored) return ResumeExpired(name);
  return Revive(parts, context, name, *std::move(stored));
}

// The generation that did this request in another process and was interrupted; null if none did.
absl::StatusOr<std::shared_ptr<Generation>> FindInterruptedRequest(
    Parts& parts, const CallContext& context, const v1::GenerateRequest& request) {
  const auto session = ParseSessionName(request.session(), "session", context.tenant);
  if (context.request.id.empty() || !session.ok()) return nullptr;
  MNEME_ASSIGN_OR_RETURN(auto found, FindInterrupted(*parts.sessions, *session));
  if (!found || found->expire_time <= absl::Now() ||
      absl::AsciiStrToLower(found->turn.request().request_id()) != context.request.id) {
    return nullptr;
  }
  if (found->turn.payload() != context.request.payload) return RequestIdReused();
  const std::string name = GenerationName(context.tenant, found->turn.generation());
  if (auto generation = parts.generations->Find(name)) return generation;
  return Revive(parts, context, name, {.session = *session, .interrupted = std::move(found)});
}

// Of a request that was done by another process.
absl::StatusOr<std::shared_ptr<Generation>> FindCommitted(Parts& parts, const CallContext& context,
                                                          const storage::StoredRequest& done) {
  auto generation = FindKept(parts, context, GenerationName(context.tenant, done.generation()));
  if (ReasonOf(generation.status()) != reason::kResumeExpired) return generation;
  const int64_t version = done.version();
  return Error(absl::StatusCode::kFailedPrecondition, reason::kResumeExpired,
               absl::StrCat("this turn was committed already, as version ", version,
                            ", and its output is not kept here; read the session's transcript"),
               {{"version", absl::StrCat(version)}});
}

}  // namespace

absl::Status Generate(Parts& parts, CallContext& context, const v1::GenerateRequest& request,
                      TurnSink& sink) {
  // Its answer is the generation's name.
  MNEME_ASSIGN_OR_RETURN(RequestMemory::Outcome known,
                         parts.requests->Begin(context, request.request_id(), request,
                                               /*in_store=*/!request.session().empty()));
  std::shared_ptr<Generation> generation;
  if (known.done) {
    MNEME_ASSIGN_OR_RETURN(generation, FindCommitted(parts, context, *known.done));
  } else if (known.answer) {
    MNEME_ASSIGN_OR_RETURN(generation, FindKept(parts, context, *known.answer));
  } else {
    MNEME_ASSIGN_OR_RETURN(generation, FindInterruptedRequest(parts, context, request));
  }
  if (generation == nullptr) {
    MNEME_RETURN_IF_ERROR(CheckNotDraining(parts));
    // The turn may outlive the call and its request.
    auto claim = std::make_shared<RequestMemory::Claim>(std::move(known.claim));
    MNEME_ASSIGN_OR_RETURN(
        generation, parts.generations->Start(
                        context, request.session(), LogOptionsOf(parts, context, request),
                        [&parts, request, claim](Generation& started) {
                          claim->Answer(started.name);
                          absl::Status status = RunTurn(parts, started, request, /*revived=*/false);
                          // What has done nothing may be tried again.
                          if (started.log.last_sequence() == 0) {
                            parts.requests->Forget(started.turn);
                          }
                          return status;
                        }));
  }
  return generation->log.Read(context, v1::ResumeGenerationRequest(), sink);
}

absl::Status ResumeGeneration(Parts& parts, CallContext& context,
                              const v1::ResumeGenerationRequest& request, TurnSink& sink) {
  MNEME_ASSIGN_OR_RETURN(const std::string name, SourceOf(request, context));
  MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<Generation> generation,
                         FindKept(parts, context, name));
  parts.metrics.streams_resumed.Increment();
  return generation->log.Read(context, request, sink);
}

absl::StatusOr<v1::GenerationInfo> GetGeneration(Parts& parts, const CallContext& context,
                                                 const v1::GetGenerationRequest& request) {
  MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<Generation> generation,
                         FindGeneration(parts, context, request.name()));
  const GenerationLog& log = generation->log;
  v1::GenerationInfo info;
  info.set_name(generation->name);
  info.set_session(generation->session);
  info.set_resume_token(MakeResumeToken(generation->name));
  info.set_running(!log.ended());
  info.set_attended(log.attended());
  info.set_last_sequence(log.last_sequence());
  *info.mutable_create_time() = TimestampOf(generation->created);
  if (info.running()) return info;
  *info.mutable_end_time() = TimestampOf(generation->ended);
  *info.mutable_expire_time() = TimestampOf(generation->ended + parts.generations->keep());
  if (const absl::Status status = log.status(); !status.ok()) {
    info.mutable_error()->set_code(static_cast<int>(status.code()));
    info.mutable_error()->set_reason(ReasonOf(status));
    info.mutable_error()->set_message(std::string(status.message()));
  } else if (auto final = log.final()) {
    *info.mutable_final() = *std::move(final);
  }
  return info;
}

absl::StatusOr<v1::CancelGenerationResponse> CancelGeneration(
    Parts& parts, const CallContext& context, const v1::CancelGenerationRequest& request) {
  std::string name = request.name();
  if (name.empty() && !request.request_id().empty()) {
    // A name that is none if there is no such request: NOT_FOUND like the others.
    name = parts.requests->Find(context.tenant, request.request_id()).value_or("g-absent");
  }
  MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<Generation> generation,
                         FindGeneration(parts, context, name));
  generation->turn.RequestCancel(CallContext::Cancel::kRequested);  // nothing to one that has ended
  return v1::CancelGenerationResponse();
}

}  // namespace mneme::server
