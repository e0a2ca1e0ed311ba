#include "server/core/keyring.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <utility>

namespace mneme::server {

std::string Sha256(std::string_view bytes) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

void Keyring::AddKey(std::string sha256, CallerPtr caller) {
  keys_.push_back({std::move(sha256), std::move(caller)});
}

void Keyring::AddCertificate(std::string identity, CallerPtr caller) {
  certificates_.emplace(std::move(identity), std::move(caller));
}

CallerPtr Keyring::OfKey(std::string_view key) const {
  const std::string digest = Sha256(key);
  const CallerPtr* found = nullptr;
  for (const Key& known : keys_) {  // to the end, whatever is found
    if (CRYPTO_memcmp(known.sha256.data(), digest.data(), digest.size()) == 0) {
      found = &known.caller;
    }
  }
  return found == nullptr ? nullptr : *found;
}

CallerPtr Keyring::OfCertificate(const std::string& identity) const {
  const auto found = certificates_.find(identity);
  return found == certificates_.end() ? nullptr : found->second;
}

}  // namespace mneme::server
