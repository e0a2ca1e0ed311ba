// Writes safetensors files in memory.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/gguf_builder.h"

namespace mneme::test {

class SafetensorsBuilder {
 public:
  // A file of any header text and any buffer.
  static std::string File(std::string_view header, std::string_view buffer) {
    return Bytes(uint64_t{header.size()}) + std::string(header) + std::string(buffer);
  }

  // Placed behind the tensor before. `dtype` as the format spells it.
  SafetensorsBuilder& Tensor(std::string_view name, std::string_view dtype,
                             const std::vector<int64_t>& shape, std::string_view data) {
    if (!entries_.empty()) entries_ += ',';
    entries_.append("\"").append(name).append("\":{\"dtype\":\"").append(dtype);
    entries_ += "\",\"shape\":[";
    for (size_t i = 0; i < shape.size(); ++i) {
      if (i > 0) entries_ += ',';
      entries_ += std::to_string(shape[i]);
    }
    entries_ += "],\"data_offsets\":[";
    entries_ += std::to_string(buffer_.size());
    entries_ += ',';
    entries_ += std::to_string(buffer_.size() + data.size());
    entries_ += "]}";
    buffer_ += data;
    return *this;
  }
  // `spaces` behind the header's closing brace.
  std::string Build(size_t spaces = 0) const {
    std::string header = "{";
    header += entries_;
    header += '}';
    header.append(spaces, ' ');
    return File(header, buffer_);
  }

 private:
  std::string entries_, buffer_;
};

}  // namespace mneme::test
