// Numbers of bytes as people write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace mneme::server {

// How a refusal goes on after "must be ".
inline constexpr char kByteSizeForm[] = "a number of bytes such as 1048576, 512KiB, 16MiB or 2GiB";
std::optional<int64_t> ParseByteSize(std::string_view text);

}  // namespace mneme::server
