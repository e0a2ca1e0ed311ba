// A thin wall around the sentencepiece library. Its header declares an absl::string_view of its
// own, which clashes with Abseil's, so this header and its source include no Abseil.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::engine {

// Immutable and thread-safe once loaded.
class SentencePieceLibrary {
 public:
  enum class Type { kNormal, kUnknown, kControl, kUnused, kByte };

  // `model` is the serialised ModelProto. Returns nullptr and sets `*error` if the library refuses
  // it.
  static std::unique_ptr<const SentencePieceLibrary> Load(const std::string& model,
                                                          std::string* error);
  ~SentencePieceLibrary();

  int size() const;
  const std::string& piece(int id) const;  // `id` in [0, size())
  Type type(int id) const;
  int unk_id() const;  // -1: none
  int bos_id() const;
  int eos_id() const;
  int pad_id() const;

  // Returns false and sets `*error` on failure.
  bool Encode(std::string_view text, std::vector<int>* ids, std::string* error) const;

 private:
  struct Impl;
  explicit SentencePieceLibrary(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::engine
