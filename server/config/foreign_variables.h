// Variables that begin with MNEME_ and are no settings of the server, though it may well be started
// where they are set.
#pragma once

#include <string_view>

namespace mneme::server {

// True for those of the client, in a shell that serves both, and for those that Kubernetes sets in
// every container for services of its namespace whose names begin with "mneme".
bool IsForeignVariable(std::string_view name, std::string_view value);

}  // namespace mneme::server
