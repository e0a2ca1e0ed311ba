#include "engine/state/schema.h"

#include <gtest/gtest.h>

#include "engine/state/state_pool.h"

namespace mneme::engine {
namespace {

TEST(StateSchemaTest, LaysTensorsOutAligned) {
  const StateSchema schema({{.layer = 0, .name = "a", .dtype = DType::kF32, .shape = {3}},
                            {.layer = 1, .name = "b", .dtype = DType::kF16, .shape = {5, 7}}});
  ASSERT_EQ(schema.tensors().size(), 2u);
  EXPECT_EQ(schema.tensors()[0].size_bytes, 12u);
  EXPECT_EQ(schema.tensors()[1].offset_bytes, 64u);
  EXPECT_EQ(schema.tensors()[1].size_bytes, 70u);
  EXPECT_EQ(schema.size_bytes(), 192u);
  EXPECT_EQ(schema.Find(1, "b"), &schema.tensors()[1]);
  EXPECT_EQ(schema.Find(0, "b"), nullptr);
}

TEST(StateSchemaTest, HashCoversEveryProperty) {
  const StateTensor base = {.layer = 0,
                            .name = "k",
                            .dtype = DType::kF16,
                            .shape = {12, 4},
                            .kind = StateKind::kRing,
                            .sinks = 4,
                            .window = 8};
  const std::string hash = StateSchema({base}).hash();
  EXPECT_EQ(hash.size(), 32u);
  EXPECT_EQ(hash, StateSchema({base}).hash());
  for (int change = 0; change < 6; ++change) {
    StateTensor other = base;
    if (change == 0) other.layer = 1;
    if (change == 1) other.name = "v";
    if (change == 2) other.dtype = DType::kF32;
    if (change == 3) other.shape = {12, 5};
    if (change == 4) other.kind = StateKind::kFixed;
    if (change == 5) other.sinks = 2, other.window = 10;
    EXPECT_NE(hash, StateSchema({other}).hash()) << "change " << change;
  }
}

StateSchema PagedSchema() {
  return StateSchema({{.layer = 0, .name = "sum", .shape = {3}},
                      {.layer = 0,
                       .name = "k",
                       .dtype = DType::kF16,
                       .shape = {1000, 5},
                       .kind = StateKind::kPaged},
                      {.layer = 0,
                       .name = "v",
                       .dtype = DType::kF32,
                       .shape = {1000, 7},
                       .kind = StateKind::kPaged}});
}

TEST(StateSchemaTest, PagedTensorsLieInPages) {
  const StateSchema schema = PagedSchema();
  EXPECT_EQ(schema.size_bytes(), 64u);
  EXPECT_EQ(schema.position_limit(), 1000);
  EXPECT_EQ(schema.tensors()[1].offset_bytes, 0u);
  EXPECT_EQ(schema.tensors()[2].offset_bytes, 640u) << "64 rows of 5 halves";
  EXPECT_EQ(schema.page_bytes(), 640u + 64 * 28);
  EXPECT_EQ(schema.StateBytes(0), 64u);
  EXPECT_EQ(schema.StateBytes(64), 64 + schema.page_bytes());
  EXPECT_EQ(schema.StateBytes(65), 64 + 2 * schema.page_bytes());
  EXPECT_TRUE(schema.Field(2).paged);
  EXPECT_FALSE(schema.Field(0).paged);
}

TEST(PagesTest, AClonesPagesAreSharedUntilOneWrites) {
  const StateSchema schema = PagedSchema();
  const StatePool states(HostMemory(), schema);
  State state = states.New();
  states.Reserve(state, 100);
  ASSERT_EQ(state.pages.count(), 2);
  state.position = 100;
  state.pages[0].data()[0] = state.pages[1].data()[0] = std::byte{7};

  State clone = state.Clone();
  EXPECT_EQ(&clone.pages[0], &state.pages[0]);
  EXPECT_EQ(&clone.pages[1], &state.pages[1]);
  states.Reserve(clone, 1);  // position 100 lies in page 1
  EXPECT_EQ(&clone.pages[0], &state.pages[0]);
  EXPECT_NE(&clone.pages[1], &state.pages[1]);
  EXPECT_EQ(clone.pages.addresses()[1], clone.pages[1].address());
  EXPECT_EQ(clone.pages[1].data()[0], std::byte{7}) << "with what was in it";
  const Block* own = &state.pages[1];
  states.Reserve(state, 29);  // nobody else has it any more; one more page
  EXPECT_EQ(&state.pages[1], own);
  EXPECT_EQ(state.pages.count(), 3);
  EXPECT_EQ(clone.pages.count(), 2);
}

}  // namespace
}  // namespace mneme::engine
