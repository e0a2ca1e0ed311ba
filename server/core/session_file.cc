#include "server/core/session_file.h"

#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/core/utf8.h"
#include "engine/state/crc32c.h"
#include "engine/state/little_endian.h"
#include "engine/state/schema_text.h"
#include "server/core/errors.h"
#include "server/core/transcript.h"

namespace mneme::server {
namespace {

using engine::AppendLittle;
using engine::AppendName;
using engine::LittleEndianCursor;

constexpr uint32_t kHasTranscript = 1;
constexpr size_t kTranscriptEntryBytes = 40;
// A turn's record is far smaller than its tokens; this many bytes have room for any.
constexpr uint32_t kMaxTurnBytes = 16 << 20;

// Cut where it is longer than the format can say, never inside a character.
std::string_view Name(std::string_view text) {
  if (text.size() <= engine::kMaxNameBytes) return text;
  text = text.substr(0, engine::kMaxNameBytes);
  return text.substr(0, text.size() - engine::UnfinishedUtf8Bytes(text));
}

void AppendBlock(std::string& out, std::string_view bytes) {
  AppendLittle(out, static_cast<uint32_t>(bytes.size()));
  out += bytes;
}

bool IsPlain(std::string_view text) {
  for (const char c : text) {
    if (c < 0x20 || c > 0x7e) return false;
  }
  return true;
}

class HeaderParser {
 public:
  explicit HeaderParser(std::string_view bytes)
      : bytes_(bytes), cursor_("header", bytes.substr(0, bytes.size() - sizeof(uint32_t))) {}

  absl::StatusOr<SessionFileHeader> Parse() {
    uint32_t crc = 0;
    std::memcpy(&crc, bytes_.data() + bytes_.size() - sizeof(crc), sizeof(crc));
    if (crc != engine::Crc32c(bytes_.substr(0, bytes_.size() - sizeof(crc)))) {
      return cursor_.Corrupt("crc32c", "checksum does not match the content");
    }
    MNEME_RETURN_IF_ERROR(Fields());
    MNEME_RETURN_IF_ERROR(Manifest());
    MNEME_RETURN_IF_ERROR(Transcript());
    if (cursor_.remaining() > 0) return cursor_.Corrupt("header_bytes", "more bytes than fields");
    return std::move(out_);
  }

 private:
  absl::Status Fields() {
    MNEME_ASSIGN_OR_RETURN(const uint32_t size, cursor_.Read<uint32_t>("header_bytes"));
    if (size != bytes_.size()) return cursor_.Corrupt("header_bytes", "is not the header's size");
    storage::Point& point = out_.point;
    MNEME_ASSIGN_OR_RETURN(out_.model_fingerprint, cursor_.Bytes(32, "model_fingerprint"));
    MNEME_ASSIGN_OR_RETURN(const int64_t version, cursor_.Read<int64_t>("version"));
    MNEME_ASSIGN_OR_RETURN(const int64_t position, cursor_.Read<int64_t>("position"));
    if (version < 0) return cursor_.Corrupt("version", "must not be negative");
    if (position < 0) return cursor_.Corrupt("position", "must not be negative");
    point.set_version(version);
    point.set_position_tokens(position);
    MNEME_ASSIGN_OR_RETURN(const int32_t last_token, cursor_.Read<int32_t>("last_token"));
    point.set_last_token(last_token);
    MNEME_ASSIGN_OR_RETURN(const uint32_t flags, cursor_.Read<uint32_t>("flags"));
    if ((flags & ~kHasTranscript) != 0) return cursor_.Corrupt("flags", "unknown bits are set");
    out_.has_transcript = flags & kHasTranscript;
    MNEME_ASSIGN_OR_RETURN(const int64_t window, cursor_.Read<int64_t>("window_tokens"));
    MNEME_ASSIGN_OR_RETURN(const int64_t sinks, cursor_.Read<int64_t>("sink_tokens"));
    point.mutable_settings()->set_window_tokens(window);
    point.mutable_settings()->set_sink_tokens(sinks);
    MNEME_RETURN_IF_ERROR(Plain("source_uid", out_.source_uid));
    MNEME_RETURN_IF_ERROR(Plain("model", out_.model));
    MNEME_RETURN_IF_ERROR(Plain("written_by", out_.written_by));
    MNEME_ASSIGN_OR_RETURN(const std::string description, cursor_.Name("description"));
    if (!engine::IsValidUtf8(description)) return cursor_.Corrupt("description", "must be UTF-8");
    out_.checkpoint.set_description(description);
    MNEME_RETURN_IF_ERROR(Plain("architecture", *out_.checkpoint.mutable_architecture()));
    MNEME_RETURN_IF_ERROR(Plain("weight_type", *out_.checkpoint.mutable_weight_type()));
    MNEME_RETURN_IF_ERROR(Plain("overflow", *point.mutable_settings()->mutable_overflow()));
    MNEME_RETURN_IF_ERROR(Plain("kv_dtype", *point.mutable_settings()->mutable_kv_dtype()));
    MNEME_ASSIGN_OR_RETURN(const std::string unfinished, cursor_.Name("unfinished_character"));
    if (engine::UnfinishedUtf8Bytes(unfinished) != unfinished.size()) {
      return cursor_.Corrupt("unfinished_character", "must be the beginning of one");
    }
    point.set_unfinished_character(unfinished);
    MNEME_ASSIGN_OR_RETURN(const uint32_t text, cursor_.Read<uint32_t>("schema_text"));
    MNEME_ASSIGN_OR_RETURN(out_.schema_text, cursor_.Bytes(text, "schema_text"));
    return absl::OkStatus();
  }

  absl::Status Manifest() {
    storage::Point& point = out_.point;
    MNEME_ASSIGN_OR_RETURN(const uint32_t size, cursor_.Read<uint32_t>("manifest"));
    MNEME_ASSIGN_OR_RETURN(const std::string bytes, cursor_.Bytes(size, "manifest"));
    point.set_manifest(bytes);
    if (bytes.empty() != (point.position_tokens() == 0)) {
      return cursor_.Corrupt("manifest", "must be absent at position 0, and only there");
    }
    if (bytes.empty()) return absl::OkStatus();
    MNEME_ASSIGN_OR_RETURN(auto parsed, engine::SnapshotManifest::Parse(bytes));
    if (parsed.identity.model_fingerprint != out_.model_fingerprint) {
      return cursor_.Corrupt("manifest", "is of another model than the header");
    }
    if (parsed.position != point.position_tokens()) {
      return cursor_.Corrupt("manifest", "is of another position than the header");
    }
    if (!IsPlain(parsed.identity.architecture) || !IsPlain(parsed.identity.numerics_id)) {
      return cursor_.Corrupt("manifest", "architecture and numerics_id must be printable ASCII");
    }
    if (!out_.schema_text.empty() && engine::SchemaHash(out_.schema_text) != parsed.schema_hash) {
      return cursor_.Corrupt("schema_text", "is not what the manifest's schema_hash is of");
    }
    for (const auto& chunk : parsed.chunks) {
      if (chunk.size_bytes == 0) return cursor_.Corrupt("manifest", "a chunk is empty");
    }
    out_.manifest = std::make_shared<const engine::SnapshotManifest>(std::move(parsed));
    return absl::OkStatus();
  }

  absl::Status Transcript() {
    MNEME_ASSIGN_OR_RETURN(const uint32_t count, cursor_.Read<uint32_t>("transcript_count"));
    if (cursor_.remaining() != count * uint64_t{kTranscriptEntryBytes}) {
      return cursor_.Corrupt("transcript_count", "its entries do not fill the header");
    }
    if (count > 0 && !out_.has_transcript) {
      return cursor_.Corrupt("transcript_count", "must be 0 without a transcript");
    }
    for (uint32_t i = 0; i < count; ++i) {
      storage::TranscriptChunk& chunk = *out_.point.add_transcript();
      MNEME_ASSIGN_OR_RETURN(const std::string id, cursor_.Bytes(32, "transcript id"));
      MNEME_ASSIGN_OR_RETURN(const uint32_t tokens, cursor_.Read<uint32_t>("num_tokens"));
      MNEME_ASSIGN_OR_RETURN(const uint32_t turn_bytes, cursor_.Read<uint32_t>("turn_bytes"));
      if (tokens < 1 || tokens > kMaxChunkTokens) {
        return cursor_.Corrupt("num_tokens", "must be in [1, 65536]");
      }
      if (turn_bytes > kMaxTurnBytes) return cursor_.Corrupt("turn_bytes", "more than 16 MiB");
      chunk.set_id(id);
      chunk.set_num_tokens(tokens);
      chunk.set_turn_bytes(turn_bytes);
    }
    if (out_.has_transcript &&
        TranscriptTokens(out_.point.transcript()) != out_.point.position_tokens()) {
      return cursor_.Corrupt("transcript", "has not as many tokens as the position says");
    }
    return absl::OkStatus();
  }

  absl::Status Plain(std::string_view field, std::string& out) {
    MNEME_ASSIGN_OR_RETURN(out, cursor_.Name(field));
    return IsPlain(out) ? absl::OkStatus() : cursor_.Corrupt(field, "must be printable ASCII");
  }

  const std::string_view bytes_;
  LittleEndianCursor cursor_;
  SessionFileHeader out_;
};

}  // namespace

absl::Status DamagedFile(absl::string_view what) {
  return Error(absl::StatusCode::kInvalidArgument, reason::kStateCorrupt,
               absl::StrCat("the file failed its checks: ", what, "; copy or export it again"));
}

std::string SessionFileHeader::Serialize() const {
  std::string out;
  AppendLittle(out, uint32_t{0});  // total size, filled in below
  out += model_fingerprint;
  AppendLittle(out, point.version());
  AppendLittle(out, point.position_tokens());
  AppendLittle(out, point.last_token());
  AppendLittle(out, has_transcript ? kHasTranscript : 0);
  AppendLittle(out, point.settings().window_tokens());
  AppendLittle(out, point.settings().sink_tokens());
  for (const std::string& name :
       {source_uid, model, written_by, checkpoint.description(), checkpoint.architecture(),
        checkpoint.weight_type(), point.settings().overflow(), point.settings().kv_dtype(),
        point.unfinished_character()}) {
    AppendName(out, Name(name));
  }
  AppendBlock(out, schema_text);
  AppendBlock(out, point.manifest());
  AppendLittle(out, static_cast<uint32_t>(point.transcript_size()));
  for (const auto& chunk : point.transcript()) {
    out += chunk.id();
    AppendLittle(out, static_cast<uint32_t>(chunk.num_tokens()));
    AppendLittle(out, static_cast<uint32_t>(chunk.turn_bytes()));
  }
  const auto total = static_cast<uint32_t>(out.size() + sizeof(uint32_t));
  std::memcpy(out.data(), &total, sizeof(total));
  AppendLittle(out, engine::Crc32c(out));
  return out;
}

absl::StatusOr<SessionFileHeader> SessionFileHeader::Parse(std::string_view bytes) {
  if (bytes.size() < 2 * sizeof(uint32_t)) return DamagedFile("the header is too short");
  auto header = HeaderParser(bytes).Parse();
  if (absl::IsFailedPrecondition(header.status())) {  // of the manifest's format
    return Error(absl::StatusCode::kFailedPrecondition, reason::kFormatTooNew,
                 absl::StrCat("the state in the file has a format that this server does not read: ",
                              header.status().message(), "; import it with a newer server"));
  }
  return header.ok() ? std::move(header) : DamagedFile(header.status().message());
}

std::vector<FileChunk> ChunksInFile(const SessionFileHeader& header) {
  std::vector<FileChunk> chunks;
  std::set<memstore::ChunkId> seen;
  const auto add = [&](const memstore::ChunkId& id, int64_t size_bytes) {
    if (seen.insert(id).second) chunks.push_back({id, size_bytes});
  };
  if (header.manifest != nullptr) {
    for (const auto& chunk : header.manifest->chunks) add(chunk.hash, chunk.size_bytes);
  }
  for (const auto& chunk : header.point.transcript()) add(ToChunkId(chunk.id()), ChunkBytes(chunk));
  return chunks;
}

}  // namespace mneme::server
