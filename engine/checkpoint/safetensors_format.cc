// The parsers of safetensors_checkpoint.h: what is written inside the files.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/safetensors_checkpoint.h"
#include "engine/checkpoint/strict_json.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the file's byte order is used as it is");

// Our own bounds: the largest published models need headers of a few hundred kilobytes.
constexpr uint64_t kMaxHeaderBytes = uint64_t{16} << 20;
constexpr size_t kMaxHeaderValues = size_t{4} << 20;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxFileMetadataBytes = size_t{1} << 20;
constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr size_t kMaxShards = 1024;

// dtypes of the format that are no weights of ours: refused by name.
constexpr std::string_view kOtherDTypes[] = {
    "BOOL",        "U8",  "I8",  "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ",
    "F8_E5M2FNUZ", "I16", "U16", "I32",     "U32",     "I64",     "U64",
    "F64",         "C64", "F4",  "F6_E2M3", "F6_E3M2"};

absl::Status Refuse(std::string_view what, std::string_view field, std::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(what), ": ", std::string(field), ": ", std::string(message)));
}

std::string Quoted(std::string_view name) {
  name = name.substr(0, 80);
  return absl::StrCat("\"", absl::CHexEscape(absl::string_view(name.data(), name.size())), "\"");
}

bool HasControlCharacter(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](unsigned char c) { return c < 0x20 || c == 0x7F; });
}

absl::Status CheckTensorName(std::string_view what, std::string_view name) {
  if (name.empty()) return Refuse(what, "tensor name", "is empty");
  if (name.size() > kMaxNameBytes) {
    return Refuse(what, "tensor name",
                  absl::StrCat(name.size(), " bytes, at most ", kMaxNameBytes, " are allowed"));
  }
  if (HasControlCharacter(name)) {
    return Refuse(what, "tensor name", absl::StrCat(Quoted(name), " contains a control character"));
  }
  return absl::OkStatus();
}

// Plain digits only. nlohmann types a number as unsigned exactly if it has no sign, fraction or
// exponent and fits 64 bits.
std::optional<int64_t> PlainInteger(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return static_cast<int64_t>(number);
}

struct PlacedTensor {
  Tensor tensor;
  uint64_t begin = 0;  // in the buffer
  uint64_t end = 0;
};

absl::StatusOr<PlacedTensor> ParseTensor(std::string_view what, const std::string& name,
                                         const json& entry) {
  const auto refuse = [&](std::string_view message) {
    return Refuse(what, absl::StrCat("tensor ", Quoted(name)), message);
  };
  MNEME_RETURN_IF_ERROR(CheckTensorName(what, name));
  if (!entry.is_object()) return refuse("expected an object");
  for (const auto& [field, value] : entry.items()) {
    if (field != "dtype" && field != "shape" && field != "data_offsets") {
      return refuse(absl::StrCat("unknown field ", Quoted(field)));
    }
  }
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(field)) return refuse(absl::StrCat("field \"", field, "\" is missing"));
  }

  PlacedTensor placed;
  placed.tensor.name = name;
  const json& dtype = entry["dtype"];
  if (!dtype.is_string()) return refuse("dtype: expected a string");
  const auto& dtype_name = dtype.get_ref<const std::string&>();
  const std::optional<DType> known = DTypeFromName(dtype_name);
  if (!known || IsQuantized(*known)) {
    const bool other = std::find(std::begin(kOtherDTypes), std::end(kOtherDTypes), dtype_name) !=
                       std::end(kOtherDTypes);
    return refuse(absl::StrCat("dtype ", Quoted(dtype_name), other ? "" : " is unknown",
                               ", expected F32, F16 or BF16"));
  }
  placed.tensor.dtype = *known;

  const json& shape = entry["shape"];
  if (!shape.is_array()) return refuse("shape: expected an array");
  if (shape.size() > kMaxDimensions) {
    return refuse(absl::StrCat("shape: ", shape.size(), " dimensions, at most ", kMaxDimensions,
                               " are allowed"));
  }
  bool empty = false;
  for (const json& dimension : shape) {
    const std::optional<int64_t> size = PlainInteger(dimension);
    if (!size) return refuse("shape: expected non-negative integers below 2^63");
    placed.tensor.shape.push_back(*size);
    empty |= *size == 0;
  }
  size_t size_bytes = empty ? 0 : static_cast<size_t>(Traits(*known).block_bytes);
  for (const int64_t dimension : placed.tensor.shape) {
    if (__builtin_mul_overflow(size_bytes, static_cast<size_t>(dimension), &size_bytes)) {
      return refuse("shape: its size overflows 64 bits");
    }
  }
  placed.tensor.size_bytes = size_bytes;

  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) {
    return refuse("data_offsets: expected two integers");
  }
  const std::optional<int64_t> begin = PlainInteger(offsets[0]), end = PlainInteger(offsets[1]);
  if (!begin || !end) {
    return refuse("data_offsets: expected non-negative integers below 2^63");
  }
  if (*begin > *end) {
    return refuse(absl::StrCat("data_offsets: begin ", *begin, " exceeds end ", *end));
  }
  if (static_cast<uint64_t>(*end - *begin) != size_bytes) {
    return refuse(absl::StrCat("data_offsets: ", *end - *begin, " bytes, expected ", size_bytes,
                               " by dtype and shape"));
  }
  placed.begin = static_cast<uint64_t>(*begin);
  placed.end = static_cast<uint64_t>(*end);
  return placed;
}

absl::Status CheckFileMetadata(std::string_view what, const json& metadata) {
  const auto refuse = [&](std::string_view message) {
    return Refuse(what, "\"__metadata__\"", message);
  };
  if (!metadata.is_object()) return refuse("expected an object of strings");
  size_t total = 0;
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) return refuse(absl::StrCat(Quoted(key), ": expected a string"));
    total += key.size() + value.get_ref<const std::string&>().size();
  }
  if (total > kMaxFileMetadataBytes) {
    return refuse(absl::StrCat(total, " bytes, at most ", kMaxFileMetadataBytes, " are allowed"));
  }
  return absl::OkStatus();
}

// Tensors sorted by place must cover the buffer exactly: no hole, no overlap, nothing behind them.
absl::Status CheckCoverage(std::string_view what, std::vector<PlacedTensor>& tensors,
                           uint64_t buffer_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const PlacedTensor& a, const PlacedTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t position = 0;
  for (const PlacedTensor& placed : tensors) {
    const auto refuse = [&](std::string_view message) {
      return Refuse(what, absl::StrCat("tensor ", Quoted(placed.tensor.name)), message);
    };
    if (placed.begin != position) {
      return refuse(
          absl::StrCat("data_offsets: begins at ", placed.begin,
                       placed.begin < position ? ", overlaps the tensor before" : ", leaves a hole",
                       ", expected ", position));
    }
    if (placed.end > buffer_bytes) {
      return refuse(absl::StrCat("data_offsets: ends at ", placed.end, ", the buffer has ",
                                 buffer_bytes, " bytes"));
    }
    position = placed.end;
  }
  if (position != buffer_bytes) {
    return Refuse(
        what, "end of file",
        absl::StrCat(buffer_bytes - position, " bytes after the last tensor, expected none"));
  }
  return absl::OkStatus();
}

using Config = std::map<std::string, MetadataValue, std::less<>>;

// The array as one MetadataValue if its elements are scalars of one kind.
std::optional<MetadataValue> UniformArray(const json& array) {
  const auto all = [&](auto is) { return std::all_of(array.begin(), array.end(), is); };
  const auto is_int64 = [](const json& x) {
    return x.is_number_integer() && (!x.is_number_unsigned() || PlainInteger(x));
  };
  if (all(is_int64)) return array.get<std::vector<int64_t>>();
  if (all([](const json& x) { return x.is_number(); })) return array.get<std::vector<double>>();
  if (all([](const json& x) { return x.is_boolean(); })) return array.get<std::vector<bool>>();
  if (all([](const json& x) { return x.is_string(); })) {
    return array.get<std::vector<std::string>>();
  }
  return std::nullopt;
}

absl::Status Flatten(std::string_view what, const std::string& key, const json& value,
                     Config& config) {
  const auto put = [&](MetadataValue&& flat) -> absl::Status {
    if (config.try_emplace(key, std::move(flat)).second) return absl::OkStatus();
    return Refuse(what, absl::StrCat("key ", Quoted(key)), "occurs twice, once spelled with a dot");
  };
  const std::string prefix = key.empty() ? "" : absl::StrCat(key, ".");
  switch (value.type()) {
    case json::value_t::null:
      return absl::OkStatus();
    case json::value_t::boolean:
      return put(value.get<bool>());
    case json::value_t::number_integer:
      return put(value.get<int64_t>());
    case json::value_t::number_unsigned: {
      const std::optional<int64_t> number = PlainInteger(value);
      if (!number) return Refuse(what, absl::StrCat("key ", Quoted(key)), "exceeds 2^63-1");
      return put(*number);
    }
    case json::value_t::number_float:
      return put(value.get<double>());
    case json::value_t::string:
      return put(value.get<std::string>());
    case json::value_t::array: {
      if (std::optional<MetadataValue> flat = UniformArray(value)) return put(*std::move(flat));
      for (size_t i = 0; i < value.size(); ++i) {
        MNEME_RETURN_IF_ERROR(Flatten(what, absl::StrCat(prefix, i), value[i], config));
      }
      return absl::OkStatus();
    }
    case json::value_t::object: {
      for (const auto& [name, element] : value.items()) {
        if (name.empty() || HasControlCharacter(name)) {
          return Refuse(what, absl::StrCat("key ", Quoted(prefix + name)),
                        "expected a name without control characters");
        }
        MNEME_RETURN_IF_ERROR(Flatten(what, prefix + name, element, config));
      }
      return absl::OkStatus();
    }
    default:
      return Refuse(what, absl::StrCat("key ", Quoted(key)), "unexpected kind of value");
  }
}

bool IsPlainShardName(std::string_view name) {
  return name.size() <= 255 && name.ends_with(".safetensors") && !name.starts_with(".") &&
         name.find("..") == name.npos && name.find_first_of("/\\:") == name.npos &&
         !HasControlCharacter(name);
}

}  // namespace

absl::StatusOr<std::map<std::string, Tensor, std::less<>>> ParseSafetensors(
    std::span<const std::byte> file, std::string_view what) {
  uint64_t header_bytes;
  if (file.size() < sizeof(header_bytes)) {
    return Refuse(what, "header length",
                  absl::StrCat("the file has ", file.size(), " bytes, at least 8 expected"));
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file = file.subspan(sizeof(header_bytes));
  if (header_bytes < 2) {
    return Refuse(what, "header length", absl::StrCat(header_bytes, " bytes, at least 2 expected"));
  }
  if (header_bytes > kMaxHeaderBytes) {
    return Refuse(what, "header length",
                  absl::StrCat(header_bytes, " bytes, at most ", kMaxHeaderBytes, " are allowed"));
  }
  if (header_bytes > file.size()) {
    return Refuse(
        what, "header length",
        absl::StrCat(header_bytes, " bytes exceed the ", file.size(), " left in the file"));
  }
  std::string_view text(reinterpret_cast<const char*>(file.data()),
                        static_cast<size_t>(header_bytes));
  const std::span<const std::byte> buffer = file.subspan(header_bytes);
  if (text.front() != '{') return Refuse(what, "header", "expected '{' as its first byte");
  if (const size_t last = text.find_last_not_of(' '); text[last] != '}') {
    return Refuse(what, "header", "expected nothing but spaces after the closing brace");
  }
  const JsonLimits limits{.max_bytes = kMaxHeaderBytes,
                          .max_depth = 3,
                          .max_values = kMaxHeaderValues,
                          .max_string_bytes = kMaxFileMetadataBytes};
  MNEME_ASSIGN_OR_RETURN(
      const json header,
      ParseStrictJson(text, absl::StrCat(std::string(what), ": header"), limits));

  std::vector<PlacedTensor> placed;
  placed.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      MNEME_RETURN_IF_ERROR(CheckFileMetadata(what, entry));
      continue;
    }
    MNEME_ASSIGN_OR_RETURN(PlacedTensor tensor, ParseTensor(what, name, entry));
    placed.push_back(std::move(tensor));
  }
  MNEME_RETURN_IF_ERROR(CheckCoverage(what, placed, buffer.size()));
  std::map<std::string, Tensor, std::less<>> tensors;
  for (PlacedTensor& p : placed) {
    p.tensor.data = buffer.data() + p.begin;
    tensors.emplace(p.tensor.name, std::move(p.tensor));
  }
  return tensors;
}

absl::StatusOr<Config> ParseModelConfig(std::string_view text, std::string_view what) {
  MNEME_ASSIGN_OR_RETURN(const json root, ParseStrictJson(text, what,
                                                          {.max_bytes = kMaxConfigBytes,
                                                           .max_depth = 8,
                                                           .max_values = size_t{1} << 17,
                                                           .max_string_bytes = size_t{1} << 16}));
  if (!root.is_object()) return Refuse(what, "config", "expected an object");
  Config config;
  MNEME_RETURN_IF_ERROR(Flatten(what, "", root, config));
  return config;
}

absl::StatusOr<std::map<std::string, std::string, std::less<>>> ParseShardIndex(
    std::string_view text, std::string_view what) {
  MNEME_ASSIGN_OR_RETURN(const json root, ParseStrictJson(text, what,
                                                          {.max_bytes = kMaxHeaderBytes,
                                                           .max_depth = 3,
                                                           .max_values = kMaxHeaderValues,
                                                           .max_string_bytes = size_t{1} << 16}));
  if (!root.is_object()) return Refuse(what, "index", "expected an object");
  for (const auto& [field, value] : root.items()) {
    if (field != "metadata" && field != "weight_map") {
      return Refuse(what, "index", absl::StrCat("unknown field ", Quoted(field)));
    }
  }
  const auto it = root.find("weight_map");
  if (it == root.end() || !it->is_object()) {
    return Refuse(what, "\"weight_map\"", "expected an object of shard names");
  }
  std::map<std::string, std::string, std::less<>> weight_map;
  std::set<std::string> shards;
  for (const auto& [name, shard] : it->items()) {
    MNEME_RETURN_IF_ERROR(CheckTensorName(what, name));
    if (!shard.is_string() || !IsPlainShardName(shard.get_ref<const std::string&>())) {
      return Refuse(what, absl::StrCat("shard of tensor ", Quoted(name)),
                    "expected a plain file name ending in .safetensors");
    }
    weight_map.emplace(name, shard.get<std::string>());
    shards.insert(shard.get<std::string>());
  }
  if (shards.empty()) return Refuse(what, "\"weight_map\"", "names no shard");
  if (shards.size() > kMaxShards) {
    return Refuse(what, "\"weight_map\"",
                  absl::StrCat(shards.size(), " shards, at most ", kMaxShards, " are allowed"));
  }
  return weight_map;
}

}  // namespace mneme::engine
