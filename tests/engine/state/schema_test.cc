#include "engine/state/schema.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace mneme::engine
