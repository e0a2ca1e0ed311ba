// A checkpoint made of files that stay mapped: weights under their standard name, and what lies
// beside them. The formats differ in how tensors and metadata are found; this is what they hand
// over.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/side_files.h"

namespace mneme::engine {

class FileSetCheckpoint final : public Checkpoint {
 public:
  using Metadata = std::map<std::string, MetadataValue, std::less<>>;
  using Tensors = std::map<std::string, Tensor, std::less<>>;

  // `tensors` point into `files`.
  FileSetCheckpoint(Format format, std::string path, FileSet files, Metadata metadata,
                    Tensors tensors);

  Format format() const override { return format_; }
  const Metadata& metadata() const override { return metadata_; }
  const Tensors& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  std::string Fingerprint() const override;
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t max_bytes) const override;

 private:
  const Format format_;
  const std::string path_;
  const FileSet files_;
  const Metadata metadata_;
  const Tensors tensors_;
  mutable std::once_flag fingerprint_once_;
  mutable std::string fingerprint_;
};

}  // namespace mneme::engine
