#include "engine/checkpoint/file_set_checkpoint.h"

#include <utility>

namespace mneme::engine {

FileSetCheckpoint::FileSetCheckpoint(Format format, std::string path, FileSet files,
                                     Metadata metadata, Tensors tensors)
    : format_(format),
      path_(std::move(path)),
      files_(std::move(files)),
      metadata_(std::move(metadata)),
      tensors_(std::move(tensors)) {}

std::string FileSetCheckpoint::Fingerprint() const {
  std::call_once(fingerprint_once_, [this] { fingerprint_ = FingerprintOf(files_); });
  return fingerprint_;
}

absl::StatusOr<std::string> FileSetCheckpoint::ReadSideFile(std::string_view name,
                                                            size_t max_bytes) const {
  return engine::ReadSideFile(files_, path_, name, max_bytes);
}

}  // namespace mneme::engine
