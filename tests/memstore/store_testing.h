// Shared by the store tests: a directory that is removed, and short ways to write transactions.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memstore/state_store.h"

namespace mneme::memstore {

class TempDirectory {
 public:
  TempDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "mneme-store-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  // Of the store; not yet created.
  std::string path() const { return path_ + "/store"; }

 private:
  std::string path_;
};

inline NewChunk MakeChunk(std::string bytes) {
  const ChunkId id = HashChunk(bytes);
  return {id, std::move(bytes)};
}

inline Transaction PutOf(Key key, int64_t expected_version, std::string value,
                         const std::vector<NewChunk>& chunks = {},
                         absl::Time expire_time = absl::InfiniteFuture()) {
  Transaction transaction;
  std::vector<ChunkId> ids;
  for (const NewChunk& chunk : chunks) ids.push_back(chunk.id);
  transaction.puts.push_back(
      {std::move(key), expected_version, std::move(value), std::move(ids), expire_time});
  transaction.new_chunks = chunks;
  return transaction;
}

// Refers to chunks that must be stored already.
inline Transaction ReferTo(Key key, int64_t expected_version, std::vector<ChunkId> chunks) {
  Transaction transaction;
  transaction.puts.push_back(
      {std::move(key), expected_version, "refers", std::move(chunks), absl::InfiniteFuture()});
  return transaction;
}

// Records whose value begins with a digit are of that kind and amount to their value's length.
inline Tally TallyOfLength(const Key&, std::string_view value) {
  if (value.empty() || value[0] < '0' || value[0] > '0' + kMaxTallyKind) return {};
  return {value[0] - '0', static_cast<int64_t>(value.size())};
}

inline Transaction DeleteOf(Key key, int64_t expected_version) {
  Transaction transaction;
  transaction.deletes.push_back({std::move(key), expected_version});
  return transaction;
}

}  // namespace mneme::memstore
