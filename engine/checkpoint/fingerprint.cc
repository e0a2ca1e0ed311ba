#include "engine/checkpoint/fingerprint.h"

#include <openssl/evp.h>

#include <array>
#include <cstdint>
#include <new>

namespace mneme::engine {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

// EVP calls fail only without memory, or where SHA-256 is switched off: neither leaves a
// fingerprint to go on with, and a wrong one would let a state meet other weights.
Sha256::Sha256() : context_(std::make_unique<Context>()) {
  if (context_->evp == nullptr || EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) != 1) {
    throw std::bad_alloc();
  }
}

Sha256::~Sha256() = default;

void Sha256::Add(std::span<const std::byte> bytes) {
  if (EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()) != 1) throw std::bad_alloc();
}

void Sha256::AddSized(std::span<const std::byte> bytes) {
  std::array<std::byte, 8> size;
  for (size_t i = 0; i < size.size(); ++i) {
    size[i] = static_cast<std::byte>(uint64_t{bytes.size()} >> (8 * i));
  }
  Add(size);
  Add(bytes);
}

std::string Sha256::Finish() {
  std::string digest(32, '\0');
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(context_->evp, reinterpret_cast<unsigned char*>(digest.data()), &size) !=
      1) {
    throw std::bad_alloc();
  }
  return digest;
}

}  // namespace mneme::engine
