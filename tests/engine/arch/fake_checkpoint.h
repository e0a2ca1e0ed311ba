// A checkpoint made in memory: metadata and tensors as a test wants them.
#pragma once

#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/sampler/counter_rng.h"

namespace mneme::engine {

class FakeCheckpoint final : public Checkpoint {
 public:
  explicit FakeCheckpoint(Format format) : format_(format) {}

  Format format() const override { return format_; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  std::string Fingerprint() const override { return std::string(32, 'f'); }

  absl::StatusOr<std::string> ReadSideFile(std::string_view, size_t) const override {
    return absl::NotFoundError("no side files");
  }

  void Set(const std::string& key, MetadataValue value) { metadata_[key] = std::move(value); }
  void Unset(const std::string& key) { metadata_.erase(key); }
  void Remove(const std::string& name) { tensors_.erase(name); }
  // Claims another type; for refusals that look no further.
  void SetDType(const std::string& name, DType dtype) { tensors_.at(name).dtype = dtype; }

  // A tensor of F32, filled with fixed pseudo-random values in [-scale, scale).
  std::vector<float>& Add(const std::string& name, std::vector<int64_t> shape, float scale = 0.5f) {
    int64_t size = 1;
    for (const int64_t n : shape) size *= n;
    std::vector<float>& values = storage_.emplace_back(size);
    const uint64_t stream = storage_.size();
    for (int64_t i = 0; i < size; ++i) {
      values[i] = static_cast<float>((2 * CounterUniform(stream, i) - 1) * scale);
    }
    tensors_[name] = {.name = name,
                      .dtype = DType::kF32,
                      .shape = std::move(shape),
                      .data = reinterpret_cast<const std::byte*>(values.data()),
                      .size_bytes = size * sizeof(float)};
    return values;
  }
  const float* Values(const std::string& name) const {
    return reinterpret_cast<const float*>(tensors_.at(name).data);
  }

 private:
  const Format format_;
  const std::string path_ = "fake";
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::list<std::vector<float>> storage_;  // elements do not move
};

}  // namespace mneme::engine
