// Reads safetensors weights with config.json beside them: one file, a folder, or a folder of
// shards.
//
//   file = u64 N little-endian, N bytes of JSON, tensor bytes to the end
//   JSON = {name: {"dtype": .., "shape": [..], "data_offsets": [begin, end]}, ..,
//           "__metadata__": {string: string}}
// Source: the safetensors format description (huggingface/safetensors).
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/checkpoint/checkpoint.h"

namespace mneme::engine {

// The parsers work on memory; `what` names the text in messages. INVALID_ARGUMENT naming field and
// expectation.

// The tensors of one whole file, which may be unaligned and must outlive them. "__metadata__" is
// checked and dropped.
absl::StatusOr<std::map<std::string, Tensor, std::less<>>> ParseSafetensors(
    std::span<const std::byte> file, std::string_view what);

// config.json flattened with dots: {"a": {"b": 1}} gives "a.b". An array of one kind of scalar
// stays an array (integers beside floats become floats); elements of any other array get their
// index as a name ("a.0.b"). Nulls are left out, as if absent.
absl::StatusOr<std::map<std::string, MetadataValue, std::less<>>> ParseModelConfig(
    std::string_view text, std::string_view what);

// model.safetensors.index.json: tensor name -> plain name of its shard.
absl::StatusOr<std::map<std::string, std::string, std::less<>>> ParseShardIndex(
    std::string_view text, std::string_view what);

// `path` is a .safetensors file or a folder.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenSafetensors(const std::string& path,
                                                                  bool is_folder);

}  // namespace mneme::engine
