#include "engine/state/initial_state.h"

#include <gtest/gtest.h>

#include <cstring>

namespace mneme::engine {
namespace {

TEST(InitialStateTest, EveryCopyBeginsAlike) {
  const StateSchema schema({{.name = "zeros", .shape = {3, 50}},
                            {.name = "weights", .shape = {20}},
                            {.name = "rows", .dtype = DType::kF16, .shape = {7, 3}}});
  State state{.block = AlignedBuffer(schema.size_bytes())};
  state.block.as<float>(schema.tensors()[1].offset_bytes)[19] = -1e30f;
  state.block.data()[schema.tensors()[2].offset_bytes] = std::byte{1};
  const AlignedBuffer expected = state.Clone().block;
  const InitialState initial(schema, std::move(state));
  State first = initial.Copy();
  EXPECT_EQ(first.position, 0);
  ASSERT_EQ(first.block.size(), expected.size());
  EXPECT_EQ(std::memcmp(first.block.data(), expected.data(), expected.size()), 0);
  // What a sequence writes is its own.
  std::memset(first.block.data(), 0x55, first.block.size());
  EXPECT_EQ(std::memcmp(initial.Copy().block.data(), expected.data(), expected.size()), 0);
}

}  // namespace
}  // namespace mneme::engine
