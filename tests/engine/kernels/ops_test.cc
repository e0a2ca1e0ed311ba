// What ops.h adds to the kernels: which rows of a state and of a pass a call means. The arithmetic
// is tested kernel by kernel.
#include "engine/kernels/ops.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "engine/device/raw.h"
#include "engine/kernels/host.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using testing::Each;
using testing::ElementsAre;

// 0, 1, 2, ...
std::vector<float> Counted(int64_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

class OpsTest : public testing::TestWithParam<const Kernels*> {
 protected:
  KernelExec exec_{*GetParam(), Contract::kF32, 2};
};

TEST_P(OpsTest, GathersAndScattersRows) {
  std::vector<float> x = Counted(6 * 3), y(4 * 3), z(6 * 3, -1);
  const int64_t rows[] = {0, 3, 4, 1};
  ops::Gather(exec_, RowsAt(x.data(), 6, 3), rows, RowsAt(y.data(), 4, 3));
  EXPECT_THAT(y, ElementsAre(0, 1, 2, 9, 10, 11, 12, 13, 14, 3, 4, 5));
  const engine::Run pieces[] = {{.first_row = 4, .rows = 2}, {.first_row = 1, .rows = 1}};
  ops::Scatter(exec_, RowsAt(y.data(), 4, 3).Slice(0, 3), pieces, RowsAt(z.data(), 6, 3));
  EXPECT_THAT(z, ElementsAre(-1, -1, -1, 12, 13, 14, -1, -1, -1, -1, -1, -1, 0, 1, 2, 9, 10, 11));
}

TEST_P(OpsTest, CopiesOneRowOrAllOfThem) {
  const std::vector<float> six = Counted(6);
  std::vector<float> y(6);
  ops::Copy(exec_, VectorAt(six.data(), 6), RowsAt(y.data(), 2, 3));
  EXPECT_EQ(y, six);
  ops::Copy(exec_, VectorAt(six.data(), 3), RowsAt(y.data(), 2, 3));
  EXPECT_THAT(y, ElementsAre(0, 1, 2, 0, 1, 2));
}

// Rows of a ring of 4: where it wraps, and of more rows than it has the last ones.
TEST_P(OpsTest, StoresRowsWhereTheirPositionsLie) {
  std::vector<float> x = Counted(9 * 2), state(3 + 2 * 4, -1);
  const StateField field{.offset_bytes = 3 * sizeof(float)};
  const auto store = [&](int64_t position, int64_t first_row, int64_t rows) {
    const engine::Run run{.slot = SlotAt(reinterpret_cast<std::byte*>(state.data())),
                          .position = position,
                          .first_row = first_row,
                          .rows = rows};
    ops::StoreRows(exec_, {&run, 1}, RowsAt(x.data(), 9, 2), field, 4);
  };
  store(7, 1, 2);  // positions 7 and 8
  EXPECT_THAT(state, ElementsAre(-1, -1, -1, 4, 5, -1, -1, -1, -1, 2, 3));
  store(5, 0, 9);  // positions 5 to 13, of which 10 to 13 stay
  EXPECT_THAT(state, ElementsAre(-1, -1, -1, 14, 15, 16, 17, 10, 11, 12, 13));
}

TEST_P(OpsTest, WritesAndReadsTheBeginningOfAField) {
  std::vector<float> x = Counted(4 * 2), y(4 * 2), state(8);
  const StateField field{.offset_bytes = sizeof(float)};
  const engine::Run run{
      .slot = SlotAt(reinterpret_cast<std::byte*>(state.data())), .first_row = 1, .rows = 2};
  ops::WriteState(exec_, {&run, 1}, RowsAt(x.data(), 4, 2), field);
  EXPECT_THAT(state, ElementsAre(0, 2, 3, 4, 5, 0, 0, 0));
  ops::ReadState(exec_, {&run, 1}, field, RowsAt(y.data(), 4, 2));
  EXPECT_THAT(y, ElementsAre(0, 0, 2, 3, 4, 5, 0, 0));
  ops::WriteState(exec_, run.slot, VectorAt(x.data(), 3), field);
  EXPECT_THAT(state, ElementsAre(0, 0, 1, 2, 5, 0, 0, 0));
}

// Equal keys: a query answers with the mean of the values it sees.
class BlockAttentionRowsTest : public OpsTest {
 protected:
  // A ring of 3 blocks of 2 with values 1, 10, ..., and a memory of one row of a million.
  std::vector<float> state_ = {0, 0, 0, 0, 0, 0, 1, 10, 100, 1e3f, 1e4f, 1e5f, 0, 1e6f};
  ops::BlockAttention Attention(float* q, float* out, int64_t rows) const {
    const auto at = [](int64_t floats) {
      return StateField{.offset_bytes = floats * int64_t{sizeof(float)}};
    };
    return {.k = at(0),
            .v = at(6),
            .block_tokens = 2,
            .ring_blocks = 3,
            .past_blocks = 2,
            .memory_k = at(12),
            .memory_v = at(13),
            .memory_rows = 0,
            .query_heads = 1,
            .kv_heads = 1,
            .key_dim = 1,
            .value_dim = 1,
            .scale = 1,
            .q = RowsAt(q, rows, 1),
            .out = RowsAt(out, rows, 1)};
  }
  engine::Run At(int64_t position, int64_t rows) {
    return {.slot = SlotAt(reinterpret_cast<std::byte*>(state_.data())),
            .position = position,
            .rows = rows};
  }
};

TEST_P(BlockAttentionRowsTest, SeesPastBlocksMemoryAndTheBlockSoFar) {
  float q[2] = {}, out[2] = {};
  const auto attend = [&](int64_t position, int64_t rows, auto... change) {
    ops::BlockAttention attention = Attention(q, out, rows);
    (change(attention), ...);
    const engine::Run run = At(position, rows);
    ops::Attend(exec_, {&run, 1}, attention);
  };
  const auto with_memory = [](ops::BlockAttention& a) { a.memory_rows = 1; };
  attend(0, 2);  // rows 0 and 1 of the ring
  EXPECT_FLOAT_EQ(out[0], 1);
  EXPECT_FLOAT_EQ(out[1], 11 / 2.0f);
  attend(3, 1);
  EXPECT_FLOAT_EQ(out[0], 1111 / 4.0f);
  // Position 8 lies in row 2; behind it blocks of rows 4, 5 and 0, 1.
  attend(8, 1);
  EXPECT_FLOAT_EQ(out[0], 110'111 / 5.0f);
  attend(8, 1, with_memory);
  EXPECT_FLOAT_EQ(out[0], 1'110'111 / 6.0f);
  // All of its block, no past.
  attend(8, 2, with_memory, [](ops::BlockAttention& a) {
    a.causal = false;
    a.past_blocks = 0;
  });
  EXPECT_THAT(out, Each(testing::FloatEq(1'001'100 / 3.0f)));
  attend(0, 1, with_memory, [](ops::BlockAttention& a) {
    a.causal = false;
    a.block_tokens = 0;
  });
  EXPECT_FLOAT_EQ(out[0], 1e6f);
}

INSTANTIATE_TEST_SUITE_P(Backends, OpsTest, testing::ValuesIn(TestBackends()),
                         [](const auto& info) { return ParameterName(info.param->name); });
INSTANTIATE_TEST_SUITE_P(Backends, BlockAttentionRowsTest, testing::ValuesIn(TestBackends()),
                         [](const auto& info) { return ParameterName(info.param->name); });

}  // namespace
}  // namespace mneme::engine
