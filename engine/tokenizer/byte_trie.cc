#include "engine/tokenizer/byte_trie.h"

#include <algorithm>

namespace mneme::engine {

void ByteTrie::Build(std::span<const std::pair<std::string_view, TokenId>> entries) {
  // The entries below a node are neighbours: breadth first, each node splits its own range by the
  // next byte.
  struct Range {
    size_t begin, end;
  };
  nodes_.assign(1, Node());
  std::vector<Range> level = {{0, entries.size()}};
  size_t first_of_level = 0;
  for (size_t depth = 0; !level.empty(); ++depth) {
    const size_t first_of_next = nodes_.size();
    std::vector<Range> next;
    for (size_t i = 0; i < level.size(); ++i) {
      auto [begin, end] = level[i];
      Node node = nodes_[first_of_level + i];
      if (begin < end && entries[begin].first.size() == depth) {
        node.id = entries[begin].second;
        ++begin;
      }
      node.first_child = static_cast<uint32_t>(nodes_.size());
      while (begin < end) {
        const char byte = entries[begin].first[depth];
        size_t stop = begin + 1;
        while (stop < end && entries[stop].first[depth] == byte) ++stop;
        nodes_.push_back({.byte = static_cast<uint8_t>(byte)});
        next.push_back({begin, stop});
        ++node.num_children;
        begin = stop;
      }
      nodes_[first_of_level + i] = node;
    }
    level = std::move(next);
    first_of_level = first_of_next;
  }
}

const ByteTrie::Node* ByteTrie::Child(const Node& node, char byte) const {
  const auto begin = nodes_.begin() + node.first_child;
  const auto end = begin + node.num_children;
  const auto wanted = static_cast<uint8_t>(byte);
  // The root usually has all 256.
  if (node.num_children == 256) return &*(begin + wanted);
  const auto it = std::lower_bound(begin, end, wanted,
                                   [](const Node& child, uint8_t b) { return child.byte < b; });
  return it != end && it->byte == wanted ? &*it : nullptr;
}

ByteTrie::Match ByteTrie::Longest(std::string_view text) const {
  Match match;
  const Node* node = &nodes_.front();
  for (size_t i = 0; i < text.size(); ++i) {
    node = Child(*node, text[i]);
    if (node == nullptr) {
      match.final = true;
      return match;
    }
    if (node->id >= 0) {
      match.id = node->id;
      match.length = i + 1;
    }
  }
  match.final = node->num_children == 0;
  return match;
}

TokenId ByteTrie::Find(std::string_view entry) const {
  const Node* node = &nodes_.front();
  for (const char byte : entry) {
    node = Child(*node, byte);
    if (node == nullptr) return -1;
  }
  return node->id;
}

}  // namespace mneme::engine
