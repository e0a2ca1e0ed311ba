// Totals of the stores that one process owns: kept in memory, changed with each commit.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "memstore/state_store.h"

namespace mneme::memstore {

// Nothing if `tally` is null.
Tally TallyOf(TallyFn tally, const Key& key, std::string_view value);

// Thread-compatible.
class TotalsTable {
 public:
  struct Sum {
    int64_t records = 0;
    int64_t amount = 0;

    bool operator==(const Sum&) const = default;
  };
  using Sums = std::map<std::pair<std::string, int>, Sum>;  // by realm and kind; none is all 0

  // A record came, or went.
  void Add(const std::string& realm, const Tally& tally) {
    Change(realm, tally.kind, {1, tally.amount});
  }
  void Remove(const std::string& realm, const Tally& tally) {
    Change(realm, tally.kind, {-1, -tally.amount});
  }
  void Add(const TotalsTable& other);
  void Change(const std::string& realm, int kind, const Sum& by);

  // As StateStore::Totals().
  std::vector<Total> Of(const std::string& realm) const;
  const Sums& sums() const { return sums_; }
  Sum SumOf(const Sums::key_type& key) const;

 private:
  Sums sums_;
};

}  // namespace mneme::memstore
