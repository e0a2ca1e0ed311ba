// A checkpoint under the names and shapes of another layout.
//
// A file format that stores an architecture's tensors under other names is a list of what is called
// how; the architecture then reads one layout only. Tensors are views into the source's mapping
// unless their values have to change.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

// Filled by one thread; immutable and thread-safe after that. Failures name the source's tensor.
class TranslatedCheckpoint final : public Checkpoint {
 public:
  explicit TranslatedCheckpoint(std::shared_ptr<const Checkpoint> source)
      : source_(std::move(source)) {}

  void SetKey(std::string_view key, MetadataValue value) {
    metadata_.insert_or_assign(std::string(key), std::move(value));
  }

  bool SourceHas(std::string_view name) const { return source_->tensors().contains(name); }
  // Of the source. NOT_FOUND.
  absl::StatusOr<const Tensor*> SourceTensor(std::string_view name) const;

  // `from` under the name `to`, as it is.
  absl::Status Add(std::string_view from, std::string_view to);
  // The same elements in another shape. A row of blocks stays whole: for quantised types the last
  // dimension must not change.
  absl::Status AddReshaped(std::string_view from, std::string_view to, std::vector<int64_t> shape);
  // A float tensor cut into equal parts of `shape`, one behind the other in memory.
  absl::Status AddParts(std::string_view from, std::span<const std::string> to,
                        const std::vector<int64_t>& shape);
  // Values of our own in the place of `from`, whose elements have been read by Floats.
  void AddValues(std::string_view from, std::string_view to, std::vector<int64_t> shape,
                 std::vector<float> values);
  // All elements of a float tensor. INVALID_ARGUMENT if it is quantised or one is not finite.
  absl::StatusOr<std::vector<float>> Floats(std::string_view from) const;

  // `from` may be there and is not wanted.
  void Ignore(std::string_view from) { used_.emplace(from); }
  // INVALID_ARGUMENT for the first tensor of the source that nothing above named.
  absl::Status RefuseUnused(std::string_view architecture) const;

  // `status` with the source's names of tensors in the place of ours.
  absl::Status WithSourceNames(const absl::Status& status) const;

  Format format() const override { return Format::kSafetensors; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  // Their `name` is the source's.
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return source_->path(); }
  std::string Fingerprint() const override { return source_->Fingerprint(); }
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t max_bytes) const override {
    return source_->ReadSideFile(name, max_bytes);
  }

 private:
  const std::shared_ptr<const Checkpoint> source_;
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::vector<std::vector<float>> values_;  // what AddValues was given
  std::set<std::string, std::less<>> used_;
};

}  // namespace mneme::engine
