#include "server/core/received_output.h"

#include <algorithm>

#include "engine/core/status_macros.h"
#include "engine/state/crc32c.h"
#include "server/core/errors.h"

namespace mneme::server {
namespace {

// More events than any generation has; the sequence goes on from there.
constexpr int64_t kMaxSequence = int64_t{1} << 40;

absl::Status Diverged() {
  return Error(absl::StatusCode::kAborted, reason::kStreamDiverged,
               "the turn was begun by another process, and repeating it came to other tokens than "
               "those that were received; read the generation from its first event on");
}

void AppendLittleEndian(std::string& bytes, int32_t id) {
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<char>(static_cast<uint32_t>(id) >> shift));
  }
}

bool IsInsideCharacter(const std::string& text, size_t offset) {
  return offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xC0) == 0x80;
}

}  // namespace

absl::Status ReceivedOutput::Check(const v1::ResumeGenerationRequest& request) {
  FieldErrors errors;
  if (request.after_sequence() > kMaxSequence) {
    errors.Add("after_sequence", "must be the sequence of an event that was sent",
               reason::kFieldOutOfRange);
  }
  if (!request.has_received()) {
    errors.Add("received",
               "is required: another process has sent the events up to after_sequence; or read "
               "from after_sequence 0",
               reason::kFieldRequired);
  }
  if (request.received().tokens() < 0) {
    errors.Add("received.tokens", "must not be negative", reason::kFieldOutOfRange);
  }
  if (request.received().text_bytes() < 0) {
    errors.Add("received.text_bytes", "must not be negative", reason::kFieldOutOfRange);
  }
  return errors.ToStatus();
}

absl::StatusOr<bool> ReceivedOutput::Cut(v1::GenerateResponse& event) {
  if (event.has_started()) return false;
  if (event.has_delta() && !done()) return CutDelta(*event.mutable_delta());
  if (event.has_final() && !done()) return Diverged();
  // Progress comes before the output, of which the reader has some.
  return !event.has_progress() || received_.tokens() + received_.text_bytes() == 0;
}

absl::StatusOr<bool> ReceivedOutput::CutDelta(v1::GenerateResponse::Delta& delta) {
  const int ids = static_cast<int>(std::min<int64_t>(tokens_, delta.token_ids_size()));
  for (int i = 0; i < ids; ++i) AppendLittleEndian(token_bytes_, delta.token_ids(i));
  delta.mutable_token_ids()->erase(delta.token_ids().begin(), delta.token_ids().begin() + ids);
  delta.mutable_logprobs()->DeleteSubrange(0, std::min(ids, delta.logprobs_size()));
  const auto bytes = static_cast<size_t>(
      std::min<int64_t>(text_bytes_, static_cast<int64_t>(delta.text().size())));
  if (IsInsideCharacter(delta.text(), bytes)) return Diverged();
  delta.mutable_text()->erase(0, bytes);
  tokens_ -= ids;
  text_bytes_ -= static_cast<int64_t>(bytes);

  const bool empty = delta.token_ids().empty() && delta.text().empty();
  // Tokens and their text come together, so that what was received ends in both, or in none.
  if (!done() && !empty) return Diverged();
  if (done() && engine::Crc32c(token_bytes_) != received_.token_ids_crc32c()) return Diverged();
  return !empty;
}

}  // namespace mneme::server
