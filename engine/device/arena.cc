#include "engine/device/arena.h"

#include "engine/kernels/raw.h"

namespace mneme::engine {

void Arena::Reserve(std::span<const Part> parts) {
  constexpr int64_t kLine = AlignedBuffer::kAlignment / sizeof(float);
  const auto padded = [](const Part& part) {
    return (part.count * part.width + kLine - 1) / kLine * kLine;
  };
  int64_t total = 0;
  for (const Part& part : parts) total += padded(part);
  if (block_.size() < total * sizeof(float)) block_ = AlignedBuffer(total * sizeof(float));
  float* next = block_.as<float>();
  for (const Part& part : parts) {
    *part.rows = padded(part) == 0 ? Rows() : RowsAt(next, part.count, part.width);
    next += padded(part);
  }
}

}  // namespace mneme::engine
