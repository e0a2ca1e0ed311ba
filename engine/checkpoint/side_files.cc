#include "engine/checkpoint/side_files.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint/fingerprint.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

constexpr std::string_view kSideFiles[] = {
    "added_tokens.json", "chat_template.jinja",      "generation_config.json",
    "merges.txt",        "rwkv_vocab_v20230424.txt", "special_tokens_map.json",
    "tokenizer.json",    "tokenizer.model",          "tokenizer_config.json",
    "vocab.json",
};

}  // namespace

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == path.npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

absl::StatusOr<std::unique_ptr<MappedFile>> OpenOptional(const MappedFile::Folder& folder,
                                                         std::string_view name) {
  auto file = MappedFile::OpenIn(folder, std::string(name));
  if (absl::IsNotFound(file.status())) return std::unique_ptr<MappedFile>();
  return file;
}

absl::Status OpenSideFiles(const MappedFile::Folder& folder, FileSet* files) {
  for (const std::string_view name : kSideFiles) {
    MNEME_ASSIGN_OR_RETURN(auto file, OpenOptional(folder, name));
    if (file != nullptr) files->emplace(name, std::move(file));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadSideFile(const FileSet& files, const std::string& path,
                                         std::string_view name, size_t max_bytes) {
  if (std::find(std::begin(kSideFiles), std::end(kSideFiles), name) == std::end(kSideFiles)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": \"", std::string(name), "\" is no tokenizer file"));
  }
  const auto it = files.find(name);
  if (it == files.end()) {
    return absl::NotFoundError(absl::StrCat(path, ": has no ", std::string(name)));
  }
  if (it->second->bytes().size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(it->second->path(), ": ",
                                                   it->second->bytes().size(), " bytes, at most ",
                                                   max_bytes, " are allowed"));
  }
  return std::string(Text(*it->second));
}

std::string FingerprintOf(const FileSet& files) {
  Sha256 hash;
  for (const auto& [name, file] : files) {
    hash.AddSized(std::as_bytes(std::span(name)));
    hash.AddSized(file->bytes());
  }
  return hash.Finish();
}

}  // namespace mneme::engine
