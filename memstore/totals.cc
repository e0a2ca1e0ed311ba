#include "memstore/totals.h"

namespace mneme::memstore {

Tally TallyOf(TallyFn tally, const Key& key, std::string_view value) {
  return tally == nullptr ? Tally{} : tally(key, value);
}

void TotalsTable::Change(const std::string& realm, int kind, const Sum& by) {
  if (kind == 0) return;
  const auto it = sums_.try_emplace({realm, kind}).first;
  it->second.records += by.records;
  it->second.amount += by.amount;
  if (it->second == Sum{}) sums_.erase(it);
}

TotalsTable::Sum TotalsTable::SumOf(const Sums::key_type& key) const {
  const auto it = sums_.find(key);
  return it == sums_.end() ? Sum{} : it->second;
}

void TotalsTable::Add(const TotalsTable& other) {
  for (const auto& [key, sum] : other.sums_) Change(key.first, key.second, sum);
}

std::vector<Total> TotalsTable::Of(const std::string& realm) const {
  std::vector<Total> totals;
  for (auto it = sums_.lower_bound({realm, 0});
       it != sums_.end() && (realm.empty() || it->first.first == realm); ++it) {
    totals.push_back({it->first.first, it->first.second, it->second.records, it->second.amount});
  }
  return totals;
}

}  // namespace mneme::memstore
