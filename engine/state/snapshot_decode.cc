#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/crc32c.h"
#include "engine/state/finite.h"
#include "engine/state/snapshot.h"
#include "engine/state/state_layout.h"

namespace mneme::engine {
namespace {

using Kind = SnapshotChunk::Kind;

// Far above what can occur, far below what would overflow.
constexpr int64_t kMaxPosition = int64_t{1} << 62;
constexpr int64_t kMaxHiddenSize = int64_t{1} << 26;

std::string Describe(const SnapshotChunk& chunk) {
  const char* kind = chunk.kind == Kind::kFixed  ? "fixed"
                     : chunk.kind == Kind::kRing ? "ring"
                                                 : "hidden";
  return absl::StrCat("snapshot chunk ", kind, " [", chunk.first, ", ", chunk.end, ")");
}

absl::Status NotFinite(const std::string& what) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(what, " is not finite"));
  status.SetPayload(kNotFinitePayload, absl::Cord());
  return status;
}

class Decoder {
 public:
  Decoder(const StatePool& states, const StateLayout& layout, const SnapshotManifest& manifest,
          const ChunkReader& read, State& out)
      : states_(states), layout_(layout), manifest_(manifest), read_(read), out_(out) {}

  // Pieces of `kind` must tile [0, size_bytes) in order; their bytes are appended to `all`.
  absl::Status Pieces(Kind kind, size_t size_bytes, std::string& all) {
    for (const SnapshotChunk& chunk : manifest_.chunks) {
      if (chunk.kind != kind) continue;
      if (chunk.first != static_cast<int64_t>(all.size()) ||
          chunk.end > static_cast<int64_t>(size_bytes)) {
        return absl::InvalidArgumentError(absl::StrCat(
            Describe(chunk), ": expected to start at byte ", all.size(), " of ", size_bytes));
      }
      MNEME_ASSIGN_OR_RETURN(const std::string bytes, Read(chunk, chunk.end - chunk.first));
      all += bytes;
    }
    if (all.size() != size_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "snapshot holds ", all.size(), " bytes of ",
          kind == Kind::kFixed ? "fixed tensors" : "a hidden row", ", expected ", size_bytes));
    }
    return absl::OkStatus();
  }

  absl::Status Fixed() {
    std::string all;
    MNEME_RETURN_IF_ERROR(Pieces(Kind::kFixed, layout_.fixed_bytes, all));
    size_t at = 0;
    for (const StateTensor* tensor : layout_.fixed) {
      if (!AllFinite(all.data() + at, tensor->size_bytes, tensor->dtype)) {
        return NotFinite(
            absl::StrCat("snapshot tensor ", tensor->name, " of layer ", tensor->layer));
      }
      Write(out_.block, tensor->offset_bytes, all.data() + at, tensor->size_bytes);
      at += tensor->size_bytes;
    }
    return absl::OkStatus();
  }

  absl::Status Hidden() {
    std::string all;
    const size_t count = manifest_.position == 0 ? 0 : manifest_.hidden_size;
    MNEME_RETURN_IF_ERROR(Pieces(Kind::kHidden, count * sizeof(float), all));
    if (!AllFinite(all.data(), all.size(), DType::kF32)) {
      return NotFinite("snapshot's hidden row");
    }
    out_.hidden.resize(count);
    if (count > 0) std::memcpy(out_.hidden.data(), all.data(), all.size());
    return absl::OkStatus();
  }

  absl::Status Ring(uint8_t ring_class) {
    const RingClass& ring = layout_.rings[ring_class];
    const std::vector<PositionRange> need = ValidRanges(ring, manifest_.position);
    size_t next_need = 0;                                     // first range not covered wholly
    int64_t covered = need.empty() ? 0 : need.front().first;  // within need[next_need]
    int64_t previous_first = 0;
    for (const SnapshotChunk& chunk : manifest_.chunks) {
      if (chunk.kind != Kind::kRing || chunk.ring_class != ring_class) continue;
      if (chunk.first < previous_first || chunk.end > manifest_.position) {
        return absl::InvalidArgumentError(absl::StrCat(
            Describe(chunk), ": expected ascending ranges up to position ", manifest_.position));
      }
      previous_first = chunk.first;
      if (chunk.first / ring.group_positions != (chunk.end - 1) / ring.group_positions) {
        return absl::InvalidArgumentError(absl::StrCat(Describe(chunk), ": crosses the grid of ",
                                                       ring.group_positions, " positions"));
      }
      MNEME_RETURN_IF_ERROR(RingChunk(ring, chunk));
      while (next_need < need.size() && chunk.first <= covered && chunk.end > covered) {
        covered = std::min(chunk.end, need[next_need].end);
        if (covered < need[next_need].end) break;
        if (++next_need < need.size()) covered = need[next_need].first;
      }
    }
    if (next_need < need.size()) {
      return absl::InvalidArgumentError(absl::StrCat("snapshot has no rows for position ", covered,
                                                     " of ring class ", ring_class));
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::string> Read(const SnapshotChunk& chunk, uint64_t expected_size) {
    if (chunk.size_bytes != expected_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          Describe(chunk), ": size_bytes is ", chunk.size_bytes, ", expected ", expected_size));
    }
    MNEME_ASSIGN_OR_RETURN(std::string bytes, read_(chunk.hash));
    if (bytes.size() != expected_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          Describe(chunk), ": stored with ", bytes.size(), " bytes, expected ", expected_size));
    }
    if (Crc32c(bytes) != chunk.crc32c) {
      return absl::InvalidArgumentError(absl::StrCat(Describe(chunk), ": crc32c does not match"));
    }
    return bytes;
  }

  absl::Status RingChunk(const RingClass& ring, const SnapshotChunk& chunk) {
    const int64_t count = chunk.end - chunk.first;
    MNEME_ASSIGN_OR_RETURN(const std::string bytes, Read(chunk, count * ring.position_bytes));
    const int64_t n = manifest_.position;
    const char* from = bytes.data();
    // Only now: a manifest alone makes nobody allocate what it claims.
    states_.ReserveTo(out_, chunk.end);
    for (const StateTensor* tensor : ring.tensors) {
      const size_t row_bytes = tensor->row_bytes();
      if (!AllFinite(from, count * row_bytes, tensor->dtype)) {
        return NotFinite(
            absl::StrCat(Describe(chunk), ": tensor ", tensor->name, " of layer ", tensor->layer));
      }
      for (int64_t position = chunk.first; position < chunk.end; ++position, from += row_bytes) {
        // An older piece may hold rows that have left the window since; their place is taken.
        if (position >= ring.sinks && position < n - ring.window) continue;
        if (tensor->kind == StateKind::kPaged) {
          Write(out_.pages[position / kPageTokens],
                tensor->offset_bytes + position % kPageTokens * row_bytes, from, row_bytes);
        } else {
          Write(out_.block, tensor->offset_bytes + ring.RowOf(position) * row_bytes, from,
                row_bytes);
        }
      }
    }
    return absl::OkStatus();
  }

  static void Write(Block& block, size_t at, const char* bytes, size_t size_bytes) {
    block.memory()->Write(block, at, std::as_bytes(std::span(bytes, size_bytes)));
  }

  const StatePool& states_;
  const StateLayout& layout_;
  const SnapshotManifest& manifest_;
  const ChunkReader& read_;
  State& out_;
};

}  // namespace

absl::StatusOr<State> DecodeSnapshot(const StatePool& states, const SnapshotIdentity& expected,
                                     const SnapshotManifest& manifest,
                                     const ChunkReader& read_chunk) {
  const StateSchema& schema = states.schema();
  if (manifest.format_version != kSnapshotFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot has format ", manifest.format_version, ", this build continues ",
                     kSnapshotFormat, " only"));
  }
  if (manifest.identity.architecture != expected.architecture) {
    return absl::FailedPreconditionError(absl::StrCat("snapshot is of architecture ",
                                                      manifest.identity.architecture,
                                                      ", the model is ", expected.architecture));
  }
  if (manifest.identity.model_fingerprint != expected.model_fingerprint) {
    return absl::FailedPreconditionError("snapshot's model fingerprint is not that of the model");
  }
  if (manifest.schema_hash != schema.hash()) {
    return absl::FailedPreconditionError(
        "snapshot's schema hash differs: the state was made with other window, sinks or K/V type");
  }
  if (manifest.position < 0 || manifest.position > kMaxPosition) {
    return absl::InvalidArgumentError("snapshot position: must be in [0, 2^62]");
  }
  if (manifest.hidden_size < 0 || manifest.hidden_size > kMaxHiddenSize) {
    return absl::InvalidArgumentError("snapshot hidden_size: must be in [0, 2^26]");
  }
  if (schema.position_limit() > 0 && manifest.position > schema.position_limit()) {
    return absl::InvalidArgumentError(absl::StrCat("snapshot position: ", manifest.position,
                                                   " is beyond the model's limit of ",
                                                   schema.position_limit(), " tokens"));
  }
  const StateLayout layout(schema);
  for (const SnapshotChunk& chunk : manifest.chunks) {
    if (chunk.kind == Kind::kRing && chunk.ring_class >= layout.rings.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Describe(chunk), ": ring_class ", chunk.ring_class, " does not exist"));
    }
  }
  State out = states.Blank();
  out.position = manifest.position;
  Decoder decoder(states, layout, manifest, read_chunk, out);
  MNEME_RETURN_IF_ERROR(decoder.Fixed());
  for (size_t i = 0; i < layout.rings.size(); ++i) {
    MNEME_RETURN_IF_ERROR(decoder.Ring(static_cast<uint8_t>(i)));
  }
  MNEME_RETURN_IF_ERROR(decoder.Hidden());
  return out;
}

}  // namespace mneme::engine
