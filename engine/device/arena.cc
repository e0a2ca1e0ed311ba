#include "engine/device/arena.h"

#include "engine/core/aligned_buffer.h"
#include "engine/device/raw.h"

namespace mneme::engine {

void Arena::Reserve(std::span<const Part> parts) {
  constexpr int64_t kLine = kBlockAlignment / sizeof(float);
  const auto padded = [](const Part& part) {
    return (part.count * part.width + kLine - 1) / kLine * kLine;
  };
  int64_t total = 0;
  for (const Part& part : parts) total += padded(part);
  if (block_.size() < total * sizeof(float)) block_ = memory_.Allocate(total * sizeof(float));
  auto* next = reinterpret_cast<float*>(block_.address());
  for (const Part& part : parts) {
    *part.rows = padded(part) == 0 ? Rows() : RowsAt(next, part.count, part.width);
    next += padded(part);
  }
}

}  // namespace mneme::engine
