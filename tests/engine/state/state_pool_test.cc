#include "engine/state/state_pool.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/remote_memory.h"

namespace mneme::engine {
namespace {

const StateSchema& Schema() {
  static const StateSchema schema({{.name = "zeros", .shape = {3, 50}},
                                   {.name = "weights", .shape = {20}},
                                   {.name = "rows", .dtype = DType::kF16, .shape = {7, 3}}});
  return schema;
}

std::vector<std::byte> Bytes(const State& state) {
  std::vector<std::byte> bytes(state.block.size());
  EXPECT_TRUE(state.block.memory()->Read(state.block, 0, bytes).ok());
  return bytes;
}

class StatePoolTest : public testing::TestWithParam<Memory*> {};

TEST_P(StatePoolTest, EveryStateBeginsAlike) {
  Memory& memory = *GetParam();
  StatePool states(memory, Schema());
  const std::vector<std::byte> zeros(Schema().size_bytes());
  EXPECT_EQ(Bytes(states.New()), zeros);

  std::vector<std::byte> expected = zeros;
  const float weight = -1e30f;
  std::memcpy(&expected[Schema().tensors()[1].offset_bytes + 19 * 4], &weight, sizeof(weight));
  expected[Schema().tensors()[2].offset_bytes] = std::byte{1};
  State initial = states.Blank();
  memory.Write(initial.block, 0, expected);
  ASSERT_TRUE(states.SetInitial(std::move(initial)).ok());
  State first = states.New();
  EXPECT_EQ(first.position, 0);
  EXPECT_EQ(Bytes(first), expected);
  // What a sequence writes is its own.
  memory.Write(first.block, 0, std::vector<std::byte>(expected.size(), std::byte{0x55}));
  EXPECT_EQ(Bytes(states.New()), expected);
  EXPECT_EQ(Bytes(states.Blank()), zeros);
}

TEST_P(StatePoolTest, ClonesAreApart) {
  Memory& memory = *GetParam();
  State state = StatePool(memory, Schema()).Blank();
  state.position = 42;
  const std::vector<std::byte> written(state.block.size(), std::byte{7});
  memory.Write(state.block, 0, written);
  const State clone = state.Clone();
  memory.Write(state.block, 99, std::vector{std::byte{8}});
  EXPECT_EQ(clone.position, 42);
  EXPECT_EQ(clone.block.memory(), &memory);
  EXPECT_EQ(Bytes(clone), written);
}

test::RemoteMemory remote;
INSTANTIATE_TEST_SUITE_P(Memories, StatePoolTest,
                         testing::Values(&HostMemory(), static_cast<Memory*>(&remote)),
                         [](const auto& info) { return info.param->OnHost() ? "host" : "remote"; });

}  // namespace
}  // namespace mneme::engine
