#include "engine/kernels/rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/core/half.h"
#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using test::SameBits;

class RowsTest : public testing::Test {
 protected:
  void TearDown() override { PinSimdTarget(""); }
};

TEST_F(RowsTest, StoredRowsRoundAsTheScalarConversionDoes) {
  const std::vector<float> x = Random(36).Floats(5 * 37);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    for (const int64_t width : {1, 7, 8, 9, 33}) {
      std::vector<uint16_t> half(5 * width), expected(5 * width);
      std::vector<float> full(5 * width), full_expected(5 * width);
      for (int64_t i = 0; i < 5 * width; ++i) {
        full_expected[i] = x[i / width * 37 + i % width];
        expected[i] = FloatToHalf(full_expected[i]);
      }
      const auto args = [&](DType dtype, void* to) {
        return StoreRowsArgs{.x = x.data(),
                             .x_stride = 37,
                             .rows = 5,
                             .width = width,
                             .dtype = dtype,
                             .to = static_cast<std::byte*>(to)};
      };
      const std::array batch = {args(DType::kF16, half.data()), args(DType::kF32, full.data())};
      variant.kernels->store_rows(exec, batch);
      EXPECT_EQ(half, expected) << width;
      EXPECT_TRUE(SameBits(full, full_expected)) << width;
    }
  }
}

// More than a launch's arguments hold, on backends that have launches; each entry copies another
// row.
TEST_F(RowsTest, ManyEntriesAreAllCopiedAndStored) {
  constexpr int64_t kEntries = 300, kWidth = 5;
  const std::vector<float> x = Random(39).Floats(kEntries * kWidth);
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 2);
    std::vector<float> copied(x.size()), stored(x.size()), expected(x.size());
    std::vector<CopyRowsArgs> copies;
    std::vector<StoreRowsArgs> stores;
    for (int64_t i = 0; i < kEntries; ++i) {
      const int64_t from = i * kWidth, to = (kEntries - 1 - i) * kWidth;
      std::copy_n(x.begin() + from, kWidth, expected.begin() + to);
      copies.push_back({x.data() + from, kWidth, copied.data() + to, kWidth, 1, kWidth});
      stores.push_back({x.data() + from, kWidth, 1, kWidth, DType::kF32,
                        reinterpret_cast<std::byte*>(stored.data() + to)});
    }
    variant.kernels->copy_rows(exec, copies);
    variant.kernels->store_rows(exec, stores);
    EXPECT_TRUE(SameBits(copied, expected));
    EXPECT_TRUE(SameBits(stored, expected));
  }
}

// Entries of unlike sizes, an empty one among them, large enough for several threads; one repeats a
// row. What lies between the rows is left alone.
TEST_F(RowsTest, CopiesEveryRowOfEveryEntryAndNothingElse) {
  const std::vector<float> x = Random(37).Floats(300 * 131);
  struct Entry {
    int64_t rows, width, from_stride, to_stride;
  };
  const std::vector<Entry> entries = {
      {3, 5, 7, 6}, {0, 9, 9, 9}, {300, 131, 131, 133}, {40, 17, 0, 17}, {1, 64, 64, 64}};
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 3);
    std::vector<std::vector<float>> actual, expected;
    for (const Entry& e : entries) {
      actual.emplace_back(e.rows * e.to_stride, -3.0f);
      expected.push_back(actual.back());
      for (int64_t r = 0; r < e.rows; ++r) {
        for (int64_t i = 0; i < e.width; ++i) {
          expected.back()[r * e.to_stride + i] = x[r * e.from_stride + i];
        }
      }
    }
    std::vector<CopyRowsArgs> batch;
    for (size_t i = 0; i < entries.size(); ++i) {
      const Entry& e = entries[i];
      batch.push_back({.from = x.data(),
                       .from_stride = e.from_stride,
                       .to = actual[i].data(),
                       .to_stride = e.to_stride,
                       .rows = e.rows,
                       .width = e.width});
    }
    variant.kernels->copy_rows(exec, batch);
    for (size_t i = 0; i < entries.size(); ++i) {
      EXPECT_TRUE(SameBits(actual[i], expected[i])) << "entry " << i;
    }
  }
}

TEST_F(RowsTest, FindsTheRowsThatHoldWhatIsNoNumber) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kF32, 3);
    for (const int64_t width : {1, 7, 33, 20'000}) {
      std::vector<float> x(5 * width, std::numeric_limits<float>::max());
      x[width - 1] = NAN;
      x[2 * width] = kInf;
      x[4 * width + width / 2] = -kInf;
      std::vector<uint8_t> finite(5, 7);
      variant.kernels->finite_rows(exec, x.data(), 5, width, finite.data());
      EXPECT_EQ(finite, (std::vector<uint8_t>{0, 1, 0, 1, 0})) << width;
    }
  }
}

}  // namespace
}  // namespace mneme::engine
