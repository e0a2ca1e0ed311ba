#include "memstore/state_store.h"

#include <utility>

namespace mneme::memstore {

absl::StatusOr<std::map<std::string, Record>> StateStore::GetMany(
    const std::string& realm, const std::vector<std::string>& names) const {
  std::map<std::string, Record> found;
  for (const std::string& name : names) {
    absl::StatusOr<Record> record = Get({realm, name});
    if (absl::IsNotFound(record.status())) continue;
    if (!record.ok()) return record.status();
    found.emplace(name, *std::move(record));
  }
  return found;
}

}  // namespace mneme::memstore
