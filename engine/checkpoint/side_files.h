// The files beside a checkpoint's weights that may be read: tokenizers and configuration.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/checkpoint/mapped_file.h"

namespace mneme::engine {

inline constexpr std::string_view kConfigFile = "config.json";

// By plain name.
using FileSet = std::map<std::string, std::unique_ptr<MappedFile>, std::less<>>;

// The folder that holds the file `path`.
std::string FolderOf(const std::string& path);

// The file if it is there, null if it is not.
absl::StatusOr<std::unique_ptr<MappedFile>> OpenOptional(const MappedFile::Folder& folder,
                                                         std::string_view name);

// Adds every tokenizer file of `folder`. The names are a fixed list, so that the fingerprint covers
// exactly what can be read.
absl::Status OpenSideFiles(const MappedFile::Folder& folder, FileSet* files);

// Checkpoint::ReadSideFile on `files`; `path` names the checkpoint.
absl::StatusOr<std::string> ReadSideFile(const FileSet& files, const std::string& path,
                                         std::string_view name, size_t max_bytes);

// Names and contents, by ascending name (docs/checkpoint_format.md).
std::string FingerprintOf(const FileSet& files);

inline std::string_view Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace mneme::engine
