#include "engine/kernels/batch.h"

#include <tuple>
#include <vector>

#include "engine/device/raw.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using testing::ElementsAre;

class BatchTest : public testing::Test {
 protected:
  // One sequence that has read 3 tokens, and one that has read 7.
  BatchTest() {
    const std::vector<int32_t> a = {10, 11, 12, 13, 14, 15}, b = {20, 21};
    batch_.Add(SlotAt(states_), 3, a, /*num_wanted=*/2);
    batch_.Add(SlotAt(states_ + 1), 7, b, /*num_wanted=*/0);
  }

  // State, position, first row, rows, completes.
  using Piece = std::tuple<int, int64_t, int64_t, int64_t, bool>;
  std::vector<Piece> Describe(const std::vector<engine::Run>& runs) const {
    std::vector<Piece> pieces;
    for (const engine::Run& run : runs) {
      pieces.emplace_back(Raw(run.slot) - states_, run.position, run.first_row, run.rows,
                          run.completes);
    }
    return pieces;
  }

  std::byte states_[2];
  Batch batch_;
};

TEST_F(BatchTest, LaysRunsBehindEachOther) {
  EXPECT_EQ(batch_.rows(), 8);
  EXPECT_THAT(batch_.tokens, ElementsAre(10, 11, 12, 13, 14, 15, 20, 21));
  EXPECT_THAT(batch_.positions, ElementsAre(3, 4, 5, 6, 7, 8, 7, 8));
  EXPECT_THAT(batch_.wanted, ElementsAre(4, 5));
  EXPECT_THAT(Describe(batch_.runs),
              ElementsAre(Piece(0, 3, 0, 6, false), Piece(1, 7, 6, 2, false)));
}

TEST_F(BatchTest, CutsAtMultiplesOfABlockOfAbsolutePositions) {
  const std::vector<std::vector<engine::Run>> cut = batch_.CutAt(4);
  ASSERT_EQ(cut.size(), 3u);
  EXPECT_THAT(Describe(cut[0]), ElementsAre(Piece(0, 3, 0, 1, true), Piece(1, 7, 6, 1, true)));
  EXPECT_THAT(Describe(cut[1]), ElementsAre(Piece(0, 4, 1, 4, true), Piece(1, 8, 7, 1, false)));
  EXPECT_THAT(Describe(cut[2]), ElementsAre(Piece(0, 8, 5, 1, false)));
  // One block holds them all.
  ASSERT_EQ(batch_.CutAt(100).size(), 1u);
}

TEST_F(BatchTest, SelectsPiecesAsABatchOfTheirOwn) {
  const Batch selected = batch_.Select(batch_.CutAt(4)[1]);
  EXPECT_THAT(selected.tokens, ElementsAre(11, 12, 13, 14, 21));
  EXPECT_THAT(selected.positions, ElementsAre(4, 5, 6, 7, 8));
  EXPECT_THAT(selected.wanted, ElementsAre());
  EXPECT_THAT(Describe(selected.runs),
              ElementsAre(Piece(0, 4, 0, 4, true), Piece(1, 8, 4, 1, false)));
}

}  // namespace
}  // namespace mneme::engine
