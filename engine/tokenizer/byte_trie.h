// A dictionary of byte strings, searched for the longest one that a text starts with.
//
// Immutable and thread-safe once built. Children of a node are neighbours in memory, in ascending
// order of their byte; a node costs 12 bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

class ByteTrie {
 public:
  struct Match {
    TokenId id = -1;     // -1: no entry is a prefix of the text
    size_t length = 0;   // of the entry
    bool final = false;  // no text that continues this one has a longer match
  };

  // `entries` must be distinct, not empty and in ascending order of their bytes; every id is 0 or
  // more. At most 2^31 bytes together.
  void Build(std::span<const std::pair<std::string_view, TokenId>> entries);

  // Takes at most as many steps as the longest entry has bytes.
  Match Longest(std::string_view text) const;
  // The id of exactly this entry, or -1.
  TokenId Find(std::string_view entry) const;

 private:
  struct Node {
    uint32_t first_child = 0;
    TokenId id = -1;
    uint16_t num_children = 0;  // up to 256
    uint8_t byte = 0;           // on the edge that leads here
  };

  const Node* Child(const Node& node, char byte) const;

  std::vector<Node> nodes_ = std::vector<Node>(1);  // the root first
};

}  // namespace mneme::engine
