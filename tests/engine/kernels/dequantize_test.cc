#include "engine/kernels/dequantize.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/kernels/kernel_setup.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using mneme::test::SameBits;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

std::string Lower(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = static_cast<char>(std::tolower(c));
  return out;
}

// Blocks and values written by train/make_quant_golden.py with another implementation.
class DequantizeGoldenTest : public ::testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(Types, DequantizeGoldenTest,
                         ::testing::Values(DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                                           DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ4_K,
                                           DType::kQ5_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(Traits(info.param).name); });

TEST_P(DequantizeGoldenTest, EveryBitAgrees) {
  constexpr int64_t kRows = 2, kColumns = 512;
  const std::string file =
      ReadFile(std::string(MNEME_QUANT_GOLDEN) + "/" + Lower(Traits(GetParam()).name) + ".bin");
  const size_t row_bytes = RowBytes(GetParam(), kColumns);
  ASSERT_EQ(file.size(), kRows * (row_bytes + kColumns * sizeof(float)));
  std::vector<float> expected(kRows * kColumns);
  std::memcpy(expected.data(), file.data() + kRows * row_bytes, expected.size() * sizeof(float));
  std::vector<float> actual(kRows * kColumns);
  const auto* rows = reinterpret_cast<const std::byte*>(file.data());
  for (int64_t n = 0; n < kRows; ++n) {
    DequantizeRow(GetParam(), rows + n * row_bytes, kColumns, actual.data() + n * kColumns);
  }
  EXPECT_TRUE(SameBits(actual, expected));

  // Embedding rows are the same on every backend.
  const Weight table = {GetParam(), kRows, kColumns, rows};
  const std::vector<int32_t> ids = {1, 0, 1};
  for (const Variant& variant : AllVariants()) {
    SCOPED_TRACE(variant.Name());
    variant.Select();
    KernelExec exec(*variant.kernels, Contract::kInt8, 2);
    std::vector<float> y(ids.size() * kColumns);
    variant.kernels->embed_rows(exec, table, ids, y.data());
    for (size_t t = 0; t < ids.size(); ++t) {
      EXPECT_TRUE(SameBits(std::span(y).subspan(t * kColumns, kColumns),
                           std::span(expected).subspan(ids[t] * kColumns, kColumns)));
    }
  }
  PinSimdTarget("");
}

TEST(DequantizeTest, HandWrittenBlocks) {
  std::vector<uint8_t> q4_0 = {0x00, 0x3c};  // d = 1
  q4_0.insert(q4_0.end(), 16, 0x80);
  float out[32];
  DequantizeRow(DType::kQ4_0, reinterpret_cast<const std::byte*>(q4_0.data()), 32, out);
  for (int e = 0; e < 32; ++e) EXPECT_EQ(out[e], e < 16 ? -8 : 0);

  std::vector<uint8_t> q8_0 = {0x00, 0x38};  // d = 0.5
  for (int e = 0; e < 32; ++e) q8_0.push_back(static_cast<uint8_t>(e - 128));
  DequantizeRow(DType::kQ8_0, reinterpret_cast<const std::byte*>(q8_0.data()), 32, out);
  for (int e = 0; e < 32; ++e) EXPECT_EQ(out[e], 0.5f * (e - 128));
}

// Rows of any type anywhere, float rows of any length: what DequantizeRow says, on every backend.
TEST(DequantizeTest, EmbeddingRowsAreTheSameOnEveryBackend) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DType dtype = static_cast<DType>(i);
    const int64_t D = Traits(dtype).block_elements == 1 ? 1031 : 1280, V = 5;
    const std::vector<int32_t> ids = {4, 0, 2, 2, 3, 1, 4};
    for (const size_t misalign : {0, 1, 2}) {
      const TestWeight table(dtype, V, D, 90 + i, misalign);
      const std::vector<float> values = table.Dequantized();
      for (const Variant& variant : AllVariants()) {
        SCOPED_TRACE(variant.Name() + " " + std::string(Traits(dtype).name));
        variant.Select();
        KernelExec exec(*variant.kernels, Contract::kF32, 2);
        std::vector<float> y(ids.size() * D + 1, -7.0f);
        variant.kernels->embed_rows(exec, table.view(), ids, y.data());
        for (size_t t = 0; t < ids.size(); ++t) {
          ASSERT_TRUE(
              SameBits(std::span(y).subspan(t * D, D), std::span(values).subspan(ids[t] * D, D)));
        }
        ASSERT_EQ(y.back(), -7.0f) << "wrote beyond the rows";
      }
    }
  }
  PinSimdTarget("");
}

// The pieces that integer products use are the same numbers.
TEST(DequantizeTest, CodesAgreeWithValues) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DType dtype = static_cast<DType>(i);
    if (!IsQuantized(dtype)) continue;
    const TestWeight weight(dtype, 1, 512, 77);
    const std::vector<float> values = weight.Dequantized();
    for (int64_t b = 0; b < 512 / kCodeBlock; ++b) {
      CodeBlock block;
      UnpackCodes(dtype, weight.view().data, b, &block);
      for (int e = 0; e < kCodeBlock; ++e) {
        float x = block.scale[e / 16] * static_cast<float>(block.code[e] - CodeOffset(dtype));
        if (HasMin(dtype)) x += block.min;
        ASSERT_EQ(values[b * kCodeBlock + e], x) << Traits(dtype).name;
      }
    }
  }
}

}  // namespace
}  // namespace mneme::engine
