// Where a person's own files of this tool are, by the XDG rules.
#pragma once

#include <string>

namespace mneme::cli {

// $VARIABLE/mneme if that is an absolute path, else ~/FALLBACK/mneme; "" if there is no home. May
// not exist yet.
std::string UserFolder(const char* variable, const char* fallback);

}  // namespace mneme::cli
