// A schema for people and for other programs: the text that its hash is of.
// docs/state_format.md, "Schema hash", shows one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/state/schema.h"

namespace mneme::engine {

// One line a tensor.
std::string SchemaText(const std::vector<StateTensor>& tensors);
// StateSchema::hash() of the schema with this text.
std::string SchemaHash(std::string_view text);

}  // namespace mneme::engine
