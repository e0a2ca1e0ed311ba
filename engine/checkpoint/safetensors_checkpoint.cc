#include "engine/checkpoint/safetensors_checkpoint.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/file_set_checkpoint.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/side_files.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

constexpr std::string_view kWeightsFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// Opens every shard that the index names. Each tensor must be in the shard the index names, and
// nowhere else.
absl::Status OpenShards(const MappedFile::Folder& folder, const MappedFile& index, FileSet& files,
                        std::map<std::string, Tensor, std::less<>>& tensors) {
  MNEME_ASSIGN_OR_RETURN(const auto weight_map, ParseShardIndex(Text(index), index.path()));
  for (const auto& [name, shard] : weight_map) {
    if (files.contains(shard)) continue;
    auto file = MappedFile::OpenIn(folder, shard);
    if (!file.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(index.path(), ": shard of tensor \"", name,
                                                     "\": ", file.status().message()));
    }
    MNEME_ASSIGN_OR_RETURN(auto in_shard, ParseSafetensors((*file)->bytes(), (*file)->path()));
    for (auto& [tensor_name, tensor] : in_shard) {
      const auto listed = weight_map.find(tensor_name);
      if (listed == weight_map.end() || listed->second != shard) {
        return absl::InvalidArgumentError(
            absl::StrCat((*file)->path(), ": tensor \"", tensor_name, "\" is ",
                         listed == weight_map.end() ? "not listed in the index"
                                                    : "listed in another shard by the index"));
      }
    }
    tensors.merge(in_shard);
    files.emplace(shard, *std::move(file));
  }
  for (const auto& [name, shard] : weight_map) {
    if (!tensors.contains(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(index.path(), ": tensor \"", name, "\" is missing from ", shard));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenSafetensors(const std::string& path,
                                                                  bool is_folder) {
  const std::string folder_path = is_folder ? path : FolderOf(path);
  MNEME_ASSIGN_OR_RETURN(const auto folder, MappedFile::Folder::Open(folder_path));
  FileSet files;
  MNEME_ASSIGN_OR_RETURN(auto config, OpenOptional(*folder, kConfigFile));
  if (config == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder_path, ": has no config.json, expected it beside the weights"));
  }
  MNEME_ASSIGN_OR_RETURN(auto metadata, ParseModelConfig(Text(*config), config->path()));
  files.emplace(kConfigFile, std::move(config));
  MNEME_RETURN_IF_ERROR(OpenSideFiles(*folder, &files));

  std::map<std::string, Tensor, std::less<>> tensors;
  std::unique_ptr<MappedFile> weights, index;
  if (is_folder) {
    MNEME_ASSIGN_OR_RETURN(weights, OpenOptional(*folder, kWeightsFile));
    MNEME_ASSIGN_OR_RETURN(index, OpenOptional(*folder, kIndexFile));
    if ((weights == nullptr) == (index == nullptr)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": has ", weights ? "both" : "neither", " model.safetensors ",
          weights ? "and" : "nor", " model.safetensors.index.json, expected one of them"));
    }
  } else {
    MNEME_ASSIGN_OR_RETURN(weights, MappedFile::Open(path));
  }
  if (index != nullptr) {
    MNEME_RETURN_IF_ERROR(OpenShards(*folder, *index, files, tensors));
    files.emplace(kIndexFile, std::move(index));
  } else {
    MNEME_ASSIGN_OR_RETURN(tensors, ParseSafetensors(weights->bytes(), weights->path()));
    // Whatever it is called, so that file and folder have the same fingerprint.
    files.emplace(kWeightsFile, std::move(weights));
  }
  return std::make_shared<const FileSetCheckpoint>(Checkpoint::Format::kSafetensors, path,
                                                   std::move(files), std::move(metadata),
                                                   std::move(tensors));
}

}  // namespace mneme::engine
