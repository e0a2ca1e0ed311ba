#include "server/core/prefix_cache.h"

#include <algorithm>
#include <new>
#include <utility>

namespace mneme::server {

bool PrefixCache::Less::operator()(std::span<const engine::TokenId> a,
                                   std::span<const engine::TokenId> b) const {
  return std::ranges::lexicographical_compare(a, b);
}

void PrefixCache::Count(int64_t bytes) {
  used_bytes_ += bytes;
  bytes_.Set(static_cast<double>(used_bytes_));
}

void PrefixCache::MarkUsed(Entries::iterator entry) {
  entry->used = Clock::now();
  entries_.splice(entries_.end(), entries_, entry);
}

PrefixCache::Entries::iterator PrefixCache::Erase(Entries::iterator entry, Freed& freed) {
  Count(-entry->bytes);
  freed.push_back(std::move(entry->state));
  Index& index = entry->owner->second;
  index.erase(entry->place);
  if (index.empty()) indexes_.erase(entry->owner);
  return entries_.erase(entry);
}

bool PrefixCache::MakeRoom(int64_t bytes, Freed& freed) {
  if (bytes > budget_bytes_) return false;
  for (auto it = entries_.begin(); used_bytes_ + bytes > budget_bytes_;) {
    if (it == entries_.end()) return false;
    it = it->state.use_count() > 1 ? std::next(it) : Erase(it, freed);
  }
  return true;
}

std::shared_ptr<const engine::State> PrefixCache::Find(const Owner& owner,
                                                       std::span<const engine::TokenId> tokens) {
  MutexLock lock(&mutex_);
  const auto found = indexes_.find(owner);
  if (found == indexes_.end()) return nullptr;
  const Index& index = found->second;
  // The longest prefix of `tokens` is the last that does not stand behind them, or begins where
  // that one still agrees with them: every prefix is as long as the agreement at most.
  while (true) {
    auto it = index.upper_bound(tokens);
    if (it == index.begin()) return nullptr;
    --it;
    const Tokens& known = it->first;
    const auto agree = std::ranges::mismatch(known, tokens).in1 - known.begin();
    if (agree == static_cast<ptrdiff_t>(known.size())) {
      MarkUsed(it->second);
      return it->second->state;
    }
    tokens = tokens.first(agree);
  }
}

bool PrefixCache::Touch(const Owner& owner, std::span<const engine::TokenId> tokens) {
  const auto found = indexes_.find(owner);
  if (found == indexes_.end()) return false;
  const auto it = found->second.find(tokens);
  if (it == found->second.end()) return false;
  MarkUsed(it->second);
  return true;
}

void PrefixCache::Keep(const Owner& owner, std::span<const engine::TokenId> tokens, int64_t bytes,
                       absl::FunctionRef<engine::State()> make) {
  Freed freed;
  bytes += static_cast<int64_t>(tokens.size_bytes());
  {
    MutexLock lock(&mutex_);
    if (Touch(owner, tokens) || !MakeRoom(bytes, freed)) return;
    Count(bytes);
  }
  freed.clear();
  Tokens key;
  std::shared_ptr<const engine::State> state;
  try {
    key.assign(tokens.begin(), tokens.end());
    state = std::make_shared<const engine::State>(make());
  } catch (const std::bad_alloc&) {  // the next call will read it again
  }
  MutexLock lock(&mutex_);
  if (state == nullptr || Touch(owner, tokens)) {
    Count(-bytes);
    return;
  }
  const auto index = indexes_.try_emplace(owner).first;
  const auto place = index->second.try_emplace(std::move(key), entries_.end()).first;
  entries_.push_back({index, place, std::move(state), bytes, Clock::now()});
  place->second = std::prev(entries_.end());
}

void PrefixCache::Drop(const std::string& tenant) {
  Freed freed;
  MutexLock lock(&mutex_);
  for (auto it = entries_.begin(); it != entries_.end();) {
    it = it->owner->first.tenant == tenant ? Erase(it, freed) : std::next(it);
  }
}

void PrefixCache::DropUnusedSince(Clock::time_point time) {
  Freed freed;
  MutexLock lock(&mutex_);
  while (!entries_.empty() && entries_.front().used < time) Erase(entries_.begin(), freed);
}

int64_t PrefixCache::used_bytes() const {
  MutexLock lock(&mutex_);
  return used_bytes_;
}

}  // namespace mneme::server
