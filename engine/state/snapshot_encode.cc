#include <openssl/sha.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/device/block_reader.h"
#include "engine/state/crc32c.h"
#include "engine/state/finite.h"
#include "engine/state/snapshot.h"
#include "engine/state/state_layout.h"

namespace mneme::engine {
namespace {

using Kind = SnapshotChunk::Kind;

// A group of positions is kept in as many pieces as commits touched it, so that a commit writes
// only what it added; past this many it is written once more as a whole, so that manifests stay
// small.
constexpr int kMaxPiecesPerGroup = 8;

// Hashing is most of an encoding's work. One more thread for each so many bytes.
constexpr size_t kBytesPerThread = 2 << 20;
constexpr size_t kMaxThreads = 4;

// Bytes of one tensor, or of the hidden row, that go into a chunk.
struct Part {
  const StateTensor* tensor;  // null: the hidden row
  const Block* block;         // null: the host's memory, from `at` on
  const char* at;
  size_t offset_bytes;  // in `block`
  size_t size_bytes;
};

// A chunk of the manifest: one of the base, by name, or parts that are to be copied and named.
struct Draft {
  SnapshotChunk chunk;
  std::vector<Part> parts = {};
  size_t size_bytes = 0;
  std::string bytes = {};
  absl::Status status = {};

  void Append(const Part& part) {
    parts.push_back(part);
    size_bytes += part.size_bytes;
  }
};

// Says which bytes go into which chunk.
class Planner {
 public:
  Planner(const StateLayout& layout, const State& state, const SnapshotManifest* base)
      : layout_(layout), state_(state), base_(base) {}

  void Fixed() {
    for (const StateTensor* tensor : layout_.fixed) {
      AppendPiece(Kind::kFixed, {.tensor = tensor,
                                 .block = &state_.block,
                                 .at = nullptr,
                                 .offset_bytes = tensor->offset_bytes,
                                 .size_bytes = tensor->size_bytes});
    }
  }

  void Hidden() {
    const std::span<const float> hidden = state_.hidden;
    AppendPiece(Kind::kHidden, {.tensor = nullptr,
                                .block = nullptr,
                                .at = reinterpret_cast<const char*>(hidden.data()),
                                .offset_bytes = 0,
                                .size_bytes = hidden.size_bytes()});
  }

  void Ring(uint8_t ring_class) {
    const RingClass& ring = layout_.rings[ring_class];
    for (const PositionRange& need : ValidRanges(ring, state_.position)) {
      RingRange(ring_class, ring, need);
    }
  }

  std::vector<Draft> Take() { return std::move(drafts_); }

 private:
  // Behind what `kind` has so far, cut into chunks.
  void AppendPiece(Kind kind, Part part) {
    while (part.size_bytes > 0) {
      const bool follows = !drafts_.empty() && drafts_.back().chunk.kind == kind;
      if (!follows || drafts_.back().size_bytes == kMaxChunkBytes) {
        const int64_t first = follows ? drafts_.back().chunk.end : 0;
        drafts_.push_back({.chunk = {.kind = kind, .first = first, .end = first}});
      }
      Draft& draft = drafts_.back();
      Part now = part;
      now.size_bytes = std::min(part.size_bytes, kMaxChunkBytes - draft.size_bytes);
      draft.Append(now);
      draft.chunk.end += static_cast<int64_t>(now.size_bytes);
      part.offset_bytes += now.size_bytes;
      if (part.at != nullptr) part.at += now.size_bytes;
      part.size_bytes -= now.size_bytes;
    }
  }

  // Rows from `position` on, up to `end`, that lie one behind the other.
  Part Rows(const StateTensor& tensor, const RingClass& ring, int64_t position, int64_t end) {
    const bool paged = tensor.kind == StateKind::kPaged;
    const int64_t row = paged ? position % kPageTokens : ring.RowOf(position);
    const int64_t rows_end = paged                   ? kPageTokens
                             : position < ring.sinks ? ring.sinks
                                                     : ring.sinks + ring.window;
    return {.tensor = &tensor,
            .block = paged ? &state_.pages[position / kPageTokens] : &state_.block,
            .at = nullptr,
            .offset_bytes = tensor.offset_bytes + row * tensor.row_bytes(),
            .size_bytes = std::min(end - position, rows_end - row) * tensor.row_bytes()};
  }

  // Covers `need`, which lies in one group: with pieces of the base as far as they go, then with
  // one new piece.
  void RingRange(uint8_t ring_class, const RingClass& ring, PositionRange need) {
    std::vector<SnapshotChunk> reused;
    int64_t covered = need.first;
    if (base_ != nullptr) {
      for (const SnapshotChunk& chunk : base_->chunks) {
        if (chunk.kind != Kind::kRing || chunk.ring_class != ring_class) continue;
        if (chunk.end <= covered || chunk.first >= need.end) continue;
        if (chunk.first > covered) break;  // a hole: rows it does not have must be written anyway
        reused.push_back(chunk);
        covered = chunk.end;
      }
    }
    if (static_cast<int>(reused.size()) + (covered < need.end) > kMaxPiecesPerGroup) {
      reused.clear();
      covered = need.first;
    }
    for (const SnapshotChunk& chunk : reused) {
      // Sinks and recents of one group can be rows of one and the same older piece.
      if (drafts_.empty() || drafts_.back().chunk.hash != chunk.hash ||
          drafts_.back().chunk.first != chunk.first) {
        drafts_.push_back({.chunk = chunk});
      }
    }
    if (covered >= need.end) return;

    Draft draft{
        .chunk = {
            .kind = Kind::kRing, .ring_class = ring_class, .first = covered, .end = need.end}};
    for (const StateTensor* tensor : ring.tensors) {
      for (int64_t position = covered; position < need.end;) {
        const Part rows = Rows(*tensor, ring, position, need.end);
        draft.Append(rows);
        position += static_cast<int64_t>(rows.size_bytes / tensor->row_bytes());
      }
    }
    drafts_.push_back(std::move(draft));
  }

  const StateLayout& layout_;
  const State& state_;
  const SnapshotManifest* base_;
  std::vector<Draft> drafts_;
};

absl::Status NotFinite(const StateTensor* tensor) {
  if (tensor == nullptr) return absl::InternalError("the hidden row is not finite");
  return absl::InternalError(
      absl::StrCat("state tensor ", tensor->name, " of layer ", tensor->layer, " is not finite"));
}

// Copies the parts and names the chunk.
absl::Status Fill(Draft& draft) {
  BlockReader reader;
  draft.bytes.reserve(draft.size_bytes);
  for (const Part& part : draft.parts) {
    const char* bytes = part.at;
    if (part.block != nullptr) {
      MNEME_ASSIGN_OR_RETURN(const std::span read,
                             reader.Read(*part.block, part.offset_bytes, part.size_bytes));
      bytes = reinterpret_cast<const char*>(read.data());
    }
    const DType dtype = part.tensor != nullptr ? part.tensor->dtype : DType::kF32;
    if (!AllFinite(bytes, part.size_bytes, dtype)) return NotFinite(part.tensor);
    draft.bytes.append(bytes, part.size_bytes);
  }
  SnapshotChunk& chunk = draft.chunk;
  SHA256(reinterpret_cast<const uint8_t*>(draft.bytes.data()), draft.size_bytes, chunk.hash.data());
  chunk.size_bytes = static_cast<uint32_t>(draft.size_bytes);
  chunk.crc32c = Crc32c(draft.bytes);
  return absl::OkStatus();
}

// Calls fn(i) for every i in [0, n), on this thread and threads - 1 others. Passes on what fn
// throws.
void ForEach(size_t n, size_t threads, absl::FunctionRef<void(size_t)> fn) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < n;) fn(i);
  };
  std::vector<std::future<void>> others;
  try {
    while (others.size() + 1 < threads) others.push_back(std::async(std::launch::async, work));
  } catch (const std::system_error&) {  // no thread to be had: those there are do it
  }
  work();
  for (auto& other : others) other.get();
}

}  // namespace

absl::StatusOr<EncodedSnapshot> EncodeSnapshot(const StateSchema& schema, const State& state,
                                               const SnapshotIdentity& identity,
                                               const SnapshotManifest* base) {
  const StateLayout layout(schema);
  if (base != nullptr && (base->position > state.position || base->schema_hash != schema.hash())) {
    base = nullptr;
  }
  Planner planner(layout, state, base);
  planner.Fixed();
  for (size_t i = 0; i < layout.rings.size(); ++i) planner.Ring(static_cast<uint8_t>(i));
  planner.Hidden();
  std::vector<Draft> drafts = planner.Take();

  std::vector<Draft*> unnamed;
  size_t size_bytes = 0;
  for (Draft& draft : drafts) {
    if (draft.parts.empty()) continue;
    unnamed.push_back(&draft);
    size_bytes += draft.size_bytes;
  }
  const size_t threads = std::min({1 + size_bytes / kBytesPerThread, kMaxThreads,
                                   std::max<size_t>(1, std::thread::hardware_concurrency())});
  ForEach(unnamed.size(), threads, [&](size_t i) { unnamed[i]->status = Fill(*unnamed[i]); });

  EncodedSnapshot out;
  out.manifest.identity = identity;
  out.manifest.schema_hash = schema.hash();
  out.manifest.position = state.position;
  out.manifest.hidden_size = static_cast<int64_t>(state.hidden.size());
  std::set<ChunkHash> stored;
  if (base != nullptr) {
    for (const SnapshotChunk& chunk : base->chunks) stored.insert(chunk.hash);
  }
  for (Draft& draft : drafts) {
    MNEME_RETURN_IF_ERROR(draft.status);
    out.manifest.chunks.push_back(draft.chunk);
    if (!draft.parts.empty() && stored.insert(draft.chunk.hash).second) {
      out.new_chunks.push_back({draft.chunk.hash, std::move(draft.bytes)});
    }
  }
  return out;
}

}  // namespace mneme::engine
