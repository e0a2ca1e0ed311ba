// SHA-256 over the content of a checkpoint.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace mneme::engine {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(std::span<const std::byte> bytes);
  // The size as u64 little-endian, then the bytes: several parts in a row cannot be confused.
  void AddSized(std::span<const std::byte> bytes);
  // 32 raw bytes. Call once, last.
  std::string Finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace mneme::engine
