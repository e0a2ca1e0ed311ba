#include "engine/state/state_layout.h"

#include <algorithm>

#include "engine/state/snapshot.h"

namespace mneme::engine {

StateLayout::StateLayout(const StateSchema& schema) {
  for (const StateTensor& tensor : schema.tensors()) {
    if (tensor.kind == StateKind::kFixed) {
      fixed.push_back(&tensor);
      fixed_bytes += tensor.size_bytes;
      continue;
    }
    const int64_t window = tensor.kind == StateKind::kPaged ? tensor.rows() : tensor.window;
    auto ring = std::find_if(rings.begin(), rings.end(), [&](const RingClass& r) {
      return r.sinks == tensor.sinks && r.window == window;
    });
    if (ring == rings.end()) {
      RingClass& added = rings.emplace_back();
      added.sinks = tensor.sinks;
      added.window = window;
      ring = std::prev(rings.end());
    }
    ring->tensors.push_back(&tensor);
    ring->position_bytes += tensor.row_bytes();
  }
  for (RingClass& ring : rings) {
    while (2 * ring.group_positions * ring.position_bytes <= kMaxChunkBytes)
      ring.group_positions *= 2;
  }
}

std::vector<PositionRange> ValidRanges(const RingClass& ring, int64_t n) {
  std::vector<PositionRange> ranges;
  const auto add = [&](int64_t first, int64_t end) {
    while (first < end) {
      const int64_t line = (first / ring.group_positions + 1) * ring.group_positions;
      const int64_t cut = std::min(line, end);
      ranges.push_back({first, cut});
      first = cut;
    }
  };
  const int64_t sinks_end = std::min(n, ring.sinks);
  const int64_t recent_first = std::max(ring.sinks, n - ring.window);
  if (recent_first <= sinks_end) {
    add(0, n);
  } else {
    add(0, sinks_end);
    add(recent_first, n);
  }
  return ranges;
}

}  // namespace mneme::engine
