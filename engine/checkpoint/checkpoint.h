// Trained weights and their configuration, read from a GGUF file, a safetensors folder or one of
// rwkv.cpp's .bin files.
//
// Everything in the files is hostile: sizes, offsets, counts and types are checked before use
// (docs/checkpoint_format.md says what is refused). Weights stay memory-mapped and are used as
// stored.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/dtype.h"

namespace mneme::engine {

// A tensor's bytes inside the mapping. `shape` is row-major, outermost first: a matrix is {rows,
// columns}.
struct Tensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t size_bytes = 0;
};

// One value of the metadata. Integers of every width arrive as int64 (u64 above 2^63-1 is refused).
using MetadataValue =
    std::variant<bool, int64_t, double, std::string, std::vector<bool>, std::vector<int64_t>,
                 std::vector<double>, std::vector<std::string>>;

class Checkpoint {
 public:
  // Whose names keys and tensors have.
  enum class Format { kGguf, kSafetensors, kRwkvCpp };

  virtual ~Checkpoint() = default;

  // `path` is a .gguf file, a .safetensors file with config.json beside it, rwkv.cpp's .bin file,
  // or a folder that holds config.json and either model.safetensors or model.safetensors.index.json
  // with its shards.
  // NOT_FOUND if the path does not exist; INVALID_ARGUMENT naming file, field and expectation
  // otherwise.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& path);

  virtual Format format() const = 0;
  // GGUF: the file's keys. Safetensors: config.json flattened with dots ("rope_scaling.factor").
  // rwkv.cpp: the header (rwkv_cpp_checkpoint.h).
  virtual const std::map<std::string, MetadataValue, std::less<>>& metadata() const = 0;
  virtual const std::map<std::string, Tensor, std::less<>>& tensors() const = 0;
  // The file or folder, for messages.
  virtual const std::string& path() const = 0;
  // 32-byte SHA-256 over weights, metadata and (but for GGUF) the tokenizer files beside it, as raw
  // bytes. Computed on first use from the whole content and cached beside nothing: about 1 s per
  // GB.
  virtual std::string Fingerprint() const = 0;

  // A file beside the weights, whole: tokenizer.json, rwkv_vocab_v20230424.txt, tokenizer.model,
  // tokenizer_config.json, generation_config.json. `name` is a plain file name. NOT_FOUND if it is
  // not there (a GGUF file has none); INVALID_ARGUMENT if it is larger than `max_bytes`.
  virtual absl::StatusOr<std::string> ReadSideFile(std::string_view name,
                                                   size_t max_bytes) const = 0;

  // Typed metadata. Absent keys: the default, or NOT_FOUND naming the key. Another type:
  // INVALID_ARGUMENT naming key, found type and expected type.
  absl::StatusOr<int64_t> GetInt(std::string_view key, std::optional<int64_t> fallback = {}) const;
  absl::StatusOr<double> GetFloat(std::string_view key, std::optional<double> fallback = {}) const;
  absl::StatusOr<bool> GetBool(std::string_view key, std::optional<bool> fallback = {}) const;
  absl::StatusOr<std::string> GetString(std::string_view key,
                                        std::optional<std::string> fallback = {}) const;
  bool Has(std::string_view key) const;

  // The tensor, checked against `shape` (row-major). NOT_FOUND if missing, INVALID_ARGUMENT if its
  // shape differs; both name the tensor and what was expected.
  absl::StatusOr<const Tensor*> GetTensor(std::string_view name,
                                          std::span<const int64_t> shape) const;
  // As GetTensor, as a matrix [rows, columns].
  absl::StatusOr<Weight> GetWeight(std::string_view name, int64_t rows, int64_t columns) const;
  // A small tensor (norm weights, biases) of any float type, converted to f32. All values must be
  // finite.
  absl::StatusOr<std::vector<float>> GetVector(std::string_view name, int64_t size) const;
};

}  // namespace mneme::engine
