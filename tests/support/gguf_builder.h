// Writes GGUF files in memory, well-formed or (where a call says so) not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace mneme::test {

// The bytes of a little-endian number.
template <typename T>
std::string Bytes(T value) {
  static_assert(std::is_arithmetic_v<T>);
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class GgufBuilder {
 public:
  static std::string String(std::string_view text) {
    return Bytes(uint64_t{text.size()}) + std::string(text);
  }

  // Metadata. Value types by their GGUF ids; `value` as it is stored.
  GgufBuilder& Raw(std::string_view key, uint32_t type, std::string_view value) {
    metadata_ += String(key) + Bytes(type) + std::string(value);
    ++num_entries_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t value) { return Raw(key, 4, Bytes(value)); }
  GgufBuilder& F32(std::string_view key, float value) { return Raw(key, 6, Bytes(value)); }
  GgufBuilder& Bool(std::string_view key, bool value) { return Raw(key, 7, Bytes(uint8_t{value})); }
  GgufBuilder& Str(std::string_view key, std::string_view value) {
    return Raw(key, 8, String(value));
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string array = Bytes(uint32_t{8}) + Bytes(uint64_t{values.size()});
    for (const std::string& value : values) array += String(value);
    return Raw(key, 9, array);
  }
  GgufBuilder& I32s(std::string_view key, const std::vector<int32_t>& values) {
    return Raw(key, 9, Array(5, values));
  }
  GgufBuilder& F32s(std::string_view key, const std::vector<float>& values) {
    return Raw(key, 9, Array(6, values));
  }
  template <typename T>
  static std::string Array(uint32_t element_type, const std::vector<T>& values) {
    std::string array = Bytes(element_type) + Bytes(uint64_t{values.size()});
    for (const T value : values) array += Bytes(value);
    return array;
  }

  // Also written as general.alignment unless it is the default 32. Call before the first tensor.
  GgufBuilder& Alignment(uint32_t alignment) {
    alignment_ = alignment;
    if (alignment != 32) U32("general.alignment", alignment);
    return *this;
  }

  // `dimensions` fastest first; `type` is ggml's id. Placed behind the tensor before.
  GgufBuilder& Tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                      std::string_view data) {
    Pad(data_);
    TensorInfo(name, dimensions, type, data_.size());
    data_ += data;
    return *this;
  }
  GgufBuilder& F32Tensor(std::string_view name, const std::vector<uint64_t>& dimensions,
                         const std::vector<float>& values) {
    std::string data;
    for (const float value : values) data += Bytes(value);
    return Tensor(name, dimensions, 0, data);
  }
  // An info alone, true or not.
  GgufBuilder& TensorInfo(std::string_view name, const std::vector<uint64_t>& dimensions,
                          uint32_t type, uint64_t offset) {
    infos_ += String(name) + Bytes(static_cast<uint32_t>(dimensions.size()));
    for (const uint64_t dimension : dimensions) infos_ += Bytes(dimension);
    infos_ += Bytes(type) + Bytes(offset);
    ++num_tensors_;
    return *this;
  }
  // Bytes of the data section that no info describes.
  GgufBuilder& Data(std::string_view bytes) {
    data_ += bytes;
    return *this;
  }

  std::string Build() const { return Build(3, num_tensors_, num_entries_); }
  // With a header that may lie.
  std::string Build(uint32_t version, uint64_t num_tensors, uint64_t num_entries) const {
    std::string file =
        "GGUF" + Bytes(version) + Bytes(num_tensors) + Bytes(num_entries) + metadata_ + infos_;
    if (!data_.empty()) Pad(file);
    return file + data_;
  }

 private:
  void Pad(std::string& bytes) const {
    while (bytes.size() % alignment_ != 0) bytes += '\0';
  }

  std::string metadata_, infos_, data_;
  uint64_t num_entries_ = 0, num_tensors_ = 0;
  uint32_t alignment_ = 32;
};

}  // namespace mneme::test
