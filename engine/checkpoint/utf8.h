// UTF-8 validity of strings that come from a file.
#pragma once

#include <string_view>

namespace mneme::engine {

// As RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
bool IsValidUtf8(std::string_view text);

}  // namespace mneme::engine
