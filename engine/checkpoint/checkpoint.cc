#include "engine/checkpoint/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/checkpoint/finite.h"
#include "engine/checkpoint/gguf_checkpoint.h"
#include "engine/checkpoint/rwkv_cpp_checkpoint.h"
#include "engine/checkpoint/safetensors_checkpoint.h"
#include "engine/core/half.h"
#include "engine/core/status_macros.h"

namespace mneme::engine {
namespace {

std::string_view TypeName(const MetadataValue& value) {
  static constexpr std::string_view kNames[] = {"a bool",
                                                "an integer",
                                                "a float",
                                                "a string",
                                                "an array of bool",
                                                "an array of integers",
                                                "an array of floats",
                                                "an array of strings"};
  static_assert(std::size(kNames) == std::variant_size_v<MetadataValue>);
  return kNames[value.index()];
}

absl::Status WrongType(const Checkpoint& checkpoint, std::string_view key,
                       const MetadataValue& value, std::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(checkpoint.path(), ": metadata \"", std::string(key), "\" is ",
                   std::string(TypeName(value)), ", expected ", std::string(expected)));
}

absl::Status Missing(const Checkpoint& checkpoint, std::string_view key,
                     std::string_view expected) {
  return absl::NotFoundError(absl::StrCat(checkpoint.path(), ": metadata \"", std::string(key),
                                          "\" is missing, expected ", std::string(expected)));
}

const MetadataValue* Find(const Checkpoint& checkpoint, std::string_view key) {
  const auto it = checkpoint.metadata().find(key);
  return it == checkpoint.metadata().end() ? nullptr : &it->second;
}

template <typename T>
absl::StatusOr<T> Get(const Checkpoint& checkpoint, std::string_view key, std::optional<T> fallback,
                      std::string_view expected) {
  const MetadataValue* const value = Find(checkpoint, key);
  if (value == nullptr) {
    if (fallback) return *std::move(fallback);
    return Missing(checkpoint, key, expected);
  }
  if (const T* const held = std::get_if<T>(value)) return *held;
  return WrongType(checkpoint, key, *value, expected);
}

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file or folder"));
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be opened: ", std::strerror(errno)));
  }
  const std::string_view name = path;
  if (S_ISDIR(info.st_mode)) return OpenSafetensors(path, /*is_folder=*/true);
  if (name.ends_with(".safetensors")) return OpenSafetensors(path, /*is_folder=*/false);
  if (name.ends_with(".gguf")) return OpenGguf(path);
  if (name.ends_with(".bin")) return OpenRwkvCpp(path);
  return absl::InvalidArgumentError(absl::StrCat(
      path,
      ": expected a .gguf file, a .safetensors file, rwkv.cpp's .bin file or a folder with "
      "config.json"));
}

absl::StatusOr<int64_t> Checkpoint::GetInt(std::string_view key,
                                           std::optional<int64_t> fallback) const {
  return Get<int64_t>(*this, key, fallback, "an integer");
}

absl::StatusOr<double> Checkpoint::GetFloat(std::string_view key,
                                            std::optional<double> fallback) const {
  const MetadataValue* const value = Find(*this, key);
  // JSON does not tell 10000 from 10000.0.
  if (value != nullptr) {
    if (const auto* integer = std::get_if<int64_t>(value)) return static_cast<double>(*integer);
  }
  MNEME_ASSIGN_OR_RETURN(const double number, Get<double>(*this, key, fallback, "a float"));
  if (!std::isfinite(number)) {
    return absl::InvalidArgumentError(absl::StrCat(path(), ": metadata \"", std::string(key),
                                                   "\" is not finite, expected a finite float"));
  }
  return number;
}

absl::StatusOr<bool> Checkpoint::GetBool(std::string_view key, std::optional<bool> fallback) const {
  return Get<bool>(*this, key, fallback, "a bool");
}

absl::StatusOr<std::string> Checkpoint::GetString(std::string_view key,
                                                  std::optional<std::string> fallback) const {
  return Get<std::string>(*this, key, std::move(fallback), "a string");
}

bool Checkpoint::Has(std::string_view key) const { return Find(*this, key) != nullptr; }

absl::StatusOr<const Tensor*> Checkpoint::GetTensor(std::string_view name,
                                                    std::span<const int64_t> shape) const {
  const auto it = tensors().find(name);
  if (it == tensors().end()) {
    return absl::NotFoundError(absl::StrCat(path(), ": tensor \"", std::string(name),
                                            "\" is missing, expected shape ", ShapeText(shape)));
  }
  const Tensor& tensor = it->second;
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor \"", std::string(name),
                                                   "\" has shape ", ShapeText(tensor.shape),
                                                   ", expected ", ShapeText(shape)));
  }
  return &tensor;
}

absl::StatusOr<Weight> Checkpoint::GetWeight(std::string_view name, int64_t rows,
                                             int64_t columns) const {
  const int64_t shape[] = {rows, columns};
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, GetTensor(name, shape));
  if (!AllFinite(tensor->dtype, {tensor->data, tensor->size_bytes})) {
    return absl::InvalidArgumentError(absl::StrCat(
        path(), ": tensor \"", std::string(name), "\" holds a NaN or infinity, expected finite ",
        std::string(Traits(tensor->dtype).name), " values"));
  }
  return Weight{tensor->dtype, rows, columns, tensor->data};
}

absl::StatusOr<std::vector<float>> Checkpoint::GetVector(std::string_view name,
                                                         int64_t size) const {
  MNEME_ASSIGN_OR_RETURN(const Tensor* tensor, GetTensor(name, {&size, 1}));
  if (IsQuantized(tensor->dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path(), ": tensor \"", std::string(name), "\" has type ",
                     std::string(Traits(tensor->dtype).name), ", expected F32, F16 or BF16"));
  }
  if (!AllFinite(tensor->dtype, {tensor->data, tensor->size_bytes})) {
    return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor \"", std::string(name),
                                                   "\" holds a NaN or infinity, expected finite"));
  }
  std::vector<float> values(static_cast<size_t>(size));
  if (tensor->dtype == DType::kF32) {
    if (size > 0) std::memcpy(values.data(), tensor->data, tensor->size_bytes);
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t stored;
    std::memcpy(&stored, tensor->data + 2 * i, sizeof(stored));
    if (tensor->dtype == DType::kF16) {
      values[i] = HalfToFloat(stored);
    } else {
      const uint32_t bits = uint32_t{stored} << 16;
      std::memcpy(&values[i], &bits, sizeof(bits));
    }
  }
  return values;
}

}  // namespace mneme::engine
