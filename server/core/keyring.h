// The keys and certificates that a server lets in. Immutable: a reload makes another one.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/caller.h"

namespace mneme::server {

using CallerPtr = std::shared_ptr<const Caller>;

class Keyring {
 public:
  // `sha256`: 32 bytes.
  void AddKey(std::string sha256, CallerPtr caller);
  // `identity`: the SPIFFE id of a client's certificate, or a DNS name of it.
  void AddCertificate(std::string identity, CallerPtr caller);

  // Whose key it is, expired or not; null if nobody's. Takes the same time whichever key it is and
  // however near it comes to one.
  CallerPtr OfKey(std::string_view key) const;
  // Whose certificate has this identity; null if nobody's.
  CallerPtr OfCertificate(const std::string& identity) const;

  size_t size() const { return keys_.size() + certificates_.size(); }

 private:
  struct Key {
    std::string sha256;
    CallerPtr caller;
  };
  std::vector<Key> keys_;
  std::map<std::string, CallerPtr> certificates_;
};

// 32 bytes.
std::string Sha256(std::string_view bytes);

}  // namespace mneme::server
