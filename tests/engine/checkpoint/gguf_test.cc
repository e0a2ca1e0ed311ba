// GGUF files built byte by byte: what is read, and every refusal with its message.
#include <chrono>
#include <cmath>
#include <limits>
#include <random>

#include "engine/checkpoint/gguf_checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"

namespace mneme::engine {
namespace {

using ::mneme::test::AsBytes;
using ::mneme::test::Bytes;
using ::mneme::test::GgufBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<GgufContent> Parse(const std::string& file) {
  return ParseGguf(AsBytes(file), "x.gguf");
}

void ExpectRefused(const std::string& file, std::string_view message) {
  const auto content = Parse(file);
  ASSERT_FALSE(content.ok()) << "accepted, expected: " << message;
  EXPECT_EQ(content.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(content.status().message()), HasSubstr("x.gguf: "));
  EXPECT_THAT(std::string(content.status().message()), HasSubstr(std::string(message)));
}

GgufBuilder Small() {
  GgufBuilder builder;
  builder.Str("general.architecture", "llama").U32("llama.block_count", 1).F32("eps", 1e-5f);
  builder.Strings("names", {"a", "\xC3\xA9"}).Bool("flag", true);
  builder.F32Tensor("norm", {3}, {1, 2, 3});
  builder.Tensor("matrix", {32, 2}, 8, std::string(68, '\1'));
  return builder;
}

TEST(GgufTest, ReadsMetadataAndTensors) {
  GgufBuilder builder = Small();
  builder.I32s("per_layer", {3, -4}).F32s("scores", {0.5f});
  builder.Raw("u8", 0, Bytes(uint8_t{255})).Raw("i8", 1, Bytes(int8_t{-1}));
  builder.Raw("u16", 2, Bytes(uint16_t{65535})).Raw("i16", 3, Bytes(int16_t{-2}));
  builder.Raw("i32", 5, Bytes(int32_t{-3})).Raw("i64", 11, Bytes(int64_t{-5}));
  builder.Raw("u64", 10, Bytes(uint64_t{1} << 62)).Raw("f64", 12, Bytes(0.25));
  builder.Raw("bools", 9, Bytes(uint32_t{7}) + Bytes(uint64_t{2}) + std::string("\1\0", 2));
  builder.Raw("empty", 9, Bytes(uint32_t{8}) + Bytes(uint64_t{0}));
  const std::string file = builder.Build();
  const auto content = Parse(file);
  ASSERT_TRUE(content.ok()) << content.status();
  const auto& m = content->metadata;
  EXPECT_EQ(std::get<std::string>(m.at("general.architecture")), "llama");
  EXPECT_EQ(std::get<int64_t>(m.at("llama.block_count")), 1);
  EXPECT_EQ(std::get<double>(m.at("eps")), 1e-5f);
  EXPECT_TRUE(std::get<bool>(m.at("flag")));
  EXPECT_THAT(std::get<std::vector<std::string>>(m.at("names")), ElementsAre("a", "\xC3\xA9"));
  EXPECT_THAT(std::get<std::vector<int64_t>>(m.at("per_layer")), ElementsAre(3, -4));
  EXPECT_THAT(std::get<std::vector<double>>(m.at("scores")), ElementsAre(0.5));
  EXPECT_EQ(std::get<int64_t>(m.at("u8")), 255);
  EXPECT_EQ(std::get<int64_t>(m.at("i8")), -1);
  EXPECT_EQ(std::get<int64_t>(m.at("u16")), 65535);
  EXPECT_EQ(std::get<int64_t>(m.at("i16")), -2);
  EXPECT_EQ(std::get<int64_t>(m.at("i32")), -3);
  EXPECT_EQ(std::get<int64_t>(m.at("i64")), -5);
  EXPECT_EQ(std::get<int64_t>(m.at("u64")), int64_t{1} << 62);
  EXPECT_EQ(std::get<double>(m.at("f64")), 0.25);
  EXPECT_THAT(std::get<std::vector<bool>>(m.at("bools")), ElementsAre(true, false));
  EXPECT_TRUE(std::get<std::vector<std::string>>(m.at("empty")).empty());

  const Tensor& norm = content->tensors.at("norm");
  EXPECT_EQ(norm.dtype, DType::kF32);
  EXPECT_THAT(norm.shape, ElementsAre(3));
  EXPECT_EQ(std::memcmp(norm.data, (Bytes(1.f) + Bytes(2.f) + Bytes(3.f)).data(), 12), 0);
  const Tensor& matrix = content->tensors.at("matrix");
  EXPECT_EQ(matrix.dtype, DType::kQ8_0);
  EXPECT_THAT(matrix.shape, ElementsAre(2, 32)) << "outermost first";
  EXPECT_EQ(matrix.size_bytes, 68u);
  EXPECT_EQ(matrix.data, AsBytes(file).data() + file.size() - 68);
}

TEST(GgufTest, AcceptsVersion2MissingPaddingOtherAlignmentsAndNoTensors) {
  EXPECT_TRUE(Parse(Small().Build(2, 2, 5)).ok());
  EXPECT_TRUE(Parse(GgufBuilder().Build()).ok());
  for (const uint32_t alignment : {8u, 64u, 4096u}) {
    GgufBuilder builder;
    builder.Alignment(alignment).F32Tensor("a", {1}, {1}).F32Tensor("b", {1}, {2});
    EXPECT_TRUE(Parse(builder.Build()).ok()) << alignment;
    EXPECT_TRUE(Parse(builder.Build() + std::string(8, '\0')).ok()) << "padding at the end";
  }
}

TEST(GgufTest, EveryAcceptedTypeHasItsBlockSize) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DTypeTraits& traits = Traits(static_cast<DType>(i));
    // ggml's ids, in the order of DType.
    static constexpr uint32_t kIds[] = {0, 1, 30, 8, 2, 3, 6, 7, 12, 13, 14};
    const uint64_t columns = 2 * traits.block_elements;
    GgufBuilder builder;
    builder.Tensor("w", {columns, 3}, kIds[i], std::string(6 * traits.block_bytes, '\0'));
    const auto content = Parse(builder.Build());
    EXPECT_TRUE(content.ok()) << traits.name << ": " << content.status();
    GgufBuilder ragged;
    ragged.Tensor("w", {columns + 1, 3}, kIds[i], std::string(9 * traits.block_bytes, '\0'));
    if (traits.block_elements > 1) {
      ExpectRefused(ragged.Build(), "tensor \"w\": rows of ");
    }
  }
}

TEST(GgufTest, RefusesBadHeaders) {
  ExpectRefused("", "header: the file has 0 bytes, at least 24");
  ExpectRefused(std::string("GGUX") + std::string(20, '\0'), "magic: expected \"GGUF\"");
  ExpectRefused(GgufBuilder().Build(1, 0, 0), "version: 1, expected 2 or 3");
  ExpectRefused(GgufBuilder().Build(4, 0, 0), "version: 4, expected 2 or 3");
  ExpectRefused(GgufBuilder().Build(0x03000000, 0, 0), "a big-endian file");
  ExpectRefused(GgufBuilder().Build(3, 0, 1), "metadata count: 1 entries do not fit");
  ExpectRefused(GgufBuilder().Build(3, 1, 0), "tensor count: 1 tensors do not fit");
  ExpectRefused(GgufBuilder().Build(3, 0, ~uint64_t{0}), "metadata count: ");
  ExpectRefused(GgufBuilder().Build(3, ~uint64_t{0}, 0), "tensor count: ");
  ExpectRefused(GgufBuilder().Build(3, 0, 65'537), "at most 65536 are allowed");
  ExpectRefused(GgufBuilder().Build(3, 1'048'577, 0), "at most 1048576 are allowed");
}

TEST(GgufTest, RefusesBadMetadata) {
  const std::string filler(64, '\0');  // so that counts fit and the entry itself is judged
  const auto raw = [&](std::string_view key, uint32_t type, const std::string& value) {
    return GgufBuilder().Raw(key, type, value).Build() + filler;
  };
  ExpectRefused(raw("", 4, Bytes(1)), "key of metadata entry 0: is empty");
  ExpectRefused(raw("k\xC3\xA9", 4, Bytes(1)), "expected printable ASCII");
  ExpectRefused(raw("a b", 4, Bytes(1)), "expected printable ASCII");
  ExpectRefused(raw(std::string(65'536, 'k'), 4, Bytes(1)), "at most 65535 are allowed");
  ExpectRefused(GgufBuilder().U32("k", 1).U32("k", 1).Build(), "\"k\": the key occurs twice");
  ExpectRefused(raw("k", 13, Bytes(1)), "\"k\": unknown value type 13");
  ExpectRefused(raw("k", 7, "\2"), "\"k\": bool byte 2, expected 0 or 1");
  ExpectRefused(raw("k", 9, Bytes(uint32_t{7}) + Bytes(uint64_t{2}) + "\1\2"),
                "\"k\" element 1: bool byte 2");
  ExpectRefused(raw("k", 10, Bytes(uint64_t{1} << 63)),
                "\"k\": 9223372036854775808 exceeds 2^63-1");
  ExpectRefused(raw("k", 8, Bytes(uint64_t{1000}) + "x"), "\"k\": length 1000 exceeds the ");
  ExpectRefused(raw("k", 8, Bytes(~uint64_t{0}) + "x"), "exceeds the ");
  for (const char* bad : {"\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82",
                          "\x80", "\xE0\x80\x80", "\xF0\x80\x80\x80", "\xF5\x80\x80\x80"}) {
    ExpectRefused(raw("k", 8, GgufBuilder::String(bad)), "\"k\": is not valid UTF-8");
  }
  ExpectRefused(raw("k", 9, Bytes(uint32_t{9}) + Bytes(uint64_t{0})), "\"k\": an array of arrays");
  ExpectRefused(raw("k", 9, Bytes(uint32_t{99}) + Bytes(uint64_t{0})),
                "\"k\": unknown array element type 99");
  for (const uint32_t type : {0u, 3u, 4u, 8u, 12u}) {
    ExpectRefused(raw("k", 9, Bytes(type) + Bytes(uint64_t{1} << 61)), "\"k\": array of ");
  }
  ExpectRefused(raw("k", 9, Bytes(uint32_t{8}) + Bytes(uint64_t{1}) + Bytes(uint64_t{500})),
                "\"k\" element 0: length 500 exceeds");
  ExpectRefused(GgufBuilder().U32("split.count", 2).Build(), "\"split.count\": 2 shards");
}

TEST(GgufTest, RefusesTooLargeStringsAndArrays) {
  GgufBuilder text;
  text.Str("k", std::string((size_t{16} << 20) + 1, 'x'));
  ExpectRefused(text.Build(), "at most 16777216 are allowed");
  GgufBuilder array;
  const std::string elements(size_t{9} << 20, '\0');
  const std::string value = Bytes(uint32_t{0}) + Bytes(uint64_t{elements.size()}) + elements;
  array.Raw("a", 9, value).Raw("b", 9, value);
  ExpectRefused(array.Build(), "\"b\": array of 9437184 elements, at most 16777216");
}

TEST(GgufTest, RefusesBadAlignment) {
  const std::string field = "\"general.alignment\": ";
  ExpectRefused(GgufBuilder().Raw("general.alignment", 10, Bytes(uint64_t{32})).Build(),
                field + "value type 10, expected u32");
  for (const uint32_t bad : {0u, 1u, 4u, 24u, 33u, 2097152u, 0x80000000u}) {
    ExpectRefused(GgufBuilder().U32("general.alignment", bad).Build(),
                  field + std::to_string(bad) + ", expected a power of two from 8 to 1048576");
  }
}

TEST(GgufTest, RefusesBadVocabularies) {
  const auto with = [] {
    GgufBuilder builder;
    builder.Strings("tokenizer.ggml.tokens", {"a", "b"});
    return builder;
  };
  ExpectRefused(with().F32s("tokenizer.ggml.scores", {1}).Build(),
                "\"tokenizer.ggml.scores\": 1 elements, expected 2");
  ExpectRefused(with().I32s("tokenizer.ggml.token_type", {1, 1, 1}).Build(),
                "\"tokenizer.ggml.token_type\": 3 elements, expected 2");
  ExpectRefused(with().U32("tokenizer.ggml.eos_token_id", 2).Build(),
                "\"tokenizer.ggml.eos_token_id\": 2, expected a token id below 2");
  ExpectRefused(with().Raw("tokenizer.ggml.bos_token_id", 5, Bytes(int32_t{-1})).Build(),
                "\"tokenizer.ggml.bos_token_id\": -1, expected a token id below 2");
  EXPECT_TRUE(Parse(with().U32("tokenizer.ggml.eos_token_id", 1).Build()).ok());
}

TEST(GgufTest, RefusesBadTensors) {
  const std::string filler(256, '\0');
  const auto info = [&](std::string_view name, const std::vector<uint64_t>& dimensions,
                        uint32_t type = 0, uint64_t offset = 0) {
    return GgufBuilder().TensorInfo(name, dimensions, type, offset).Data(filler).Build();
  };
  ExpectRefused(info("", {1}), "name of tensor 0: is empty");
  ExpectRefused(info(std::string(64, 'n'), {1}), "name of tensor 0: length 64 bytes, at most 63");
  ExpectRefused(info(std::string_view("a\0b", 3), {1}), "contains a control character");
  ExpectRefused(info("\xFF", {1}), "name of tensor 0: is not valid UTF-8");
  ExpectRefused(info("t", {}), "tensor \"t\": 0 dimensions, expected 1 to 4");
  ExpectRefused(info("t", {1, 1, 1, 1, 1}), "tensor \"t\": 5 dimensions, expected 1 to 4");
  ExpectRefused(info("t", {4, 0}), "tensor \"t\": dimension 1 is 0, expected 1 to 2^40");
  ExpectRefused(info("t", {(uint64_t{1} << 40) + 1}), "expected 1 to 2^40");
  ExpectRefused(info("t", {uint64_t{1} << 32, uint64_t{1} << 32}), "its size overflows 64 bits");
  ExpectRefused(info("t", {uint64_t{1} << 40, uint64_t{1} << 40, 4, 4}), "overflows 64 bits");
  ExpectRefused(info("t", {4}, 99), "tensor \"t\": type 99 (unknown), expected one of F32, ");
  ExpectRefused(info("t", {4}, 4), "type 4 (Q4_2 (removed from GGUF))");
  ExpectRefused(info("t", {256}, 10), "type 10 (Q2_K)");
  ExpectRefused(info("t", {4}, 26), "type 26 (I32)");
  ExpectRefused(info("t", {4}, 28), "type 28 (F64)");
  ExpectRefused(info("t", {31}, 2), "rows of 31 elements, expected a multiple of 32 for type Q4_0");
  ExpectRefused(info("t", {4}, 0, 16),
                "tensor \"t\": offset 16 is not a multiple of the alignment");
  ExpectRefused(info("t", {4}, 0, 32), "tensor \"t\": offset 32 leaves a gap, expected 0");
  ExpectRefused(info("t", {4}, 0, ~uint64_t{31}), "leaves a gap");
  ExpectRefused(info("t", {65}, 0, 0), "tensor \"t\": its 260 bytes at ");

  GgufBuilder twice;
  twice.F32Tensor("t", {1}, {1}).F32Tensor("t", {1}, {1});
  ExpectRefused(twice.Build(), "tensor \"t\": the name occurs twice");
  GgufBuilder overlap;
  overlap.TensorInfo("a", {16}, 0, 0).TensorInfo("b", {8}, 0, 32).Data(std::string(96, '\0'));
  ExpectRefused(overlap.Build(), "tensor \"b\": offset 32 overlaps the tensor before, expected 64");
  GgufBuilder tail;
  tail.F32Tensor("a", {8}, std::vector<float>(8));
  EXPECT_TRUE(Parse(tail.Build() + std::string(32, '\0')).ok());
  ExpectRefused(tail.Build() + std::string(33, '\0'),
                "end of file: 33 bytes after the last tensor");
}

TEST(GgufTest, EveryTruncationIsRefused) {
  const std::string file = Small().Build();
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    // An exact allocation, so that AddressSanitizer sees a read past the end.
    const std::vector<char> cut(file.begin(), file.begin() + size);
    const auto content = ParseGguf(std::as_bytes(std::span(cut)), "x.gguf");
    EXPECT_FALSE(content.ok()) << size << " of " << file.size() << " bytes accepted";
  }
}

TEST(GgufTest, BitFlipsNeverLeadOutsideTheFile) {
  const std::string file = Small().Build();
  int num_accepted = 0;
  for (size_t bit = 0; bit < 8 * std::min<size_t>(256, file.size()); ++bit) {
    std::vector<char> flipped(file.begin(), file.end());
    flipped[bit / 8] ^= 1 << (bit % 8);
    const auto content = ParseGguf(std::as_bytes(std::span(flipped)), "x.gguf");
    if (!content.ok()) {
      EXPECT_EQ(content.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++num_accepted;  // a value changed, or a letter of a key
    for (const auto& [name, tensor] : content->tensors) {
      const auto* begin = reinterpret_cast<const char*>(tensor.data);
      EXPECT_GE(begin, flipped.data());
      EXPECT_LE(begin + tensor.size_bytes, flipped.data() + flipped.size());
    }
  }
  EXPECT_GT(num_accepted, 0);
}

TEST(GgufTest, ManyKeysAndTokensAreRead) {
  std::vector<std::string> tokens;
  for (int i = 0; i < 200'000; ++i) tokens.push_back("token" + std::to_string(i));
  GgufBuilder builder;
  builder.Strings("tokenizer.ggml.tokens", tokens);
  for (int i = 0; i < 20'000; ++i) builder.U32("key" + std::to_string(i), i);
  const auto content = Parse(builder.Build());
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(std::get<std::vector<std::string>>(content->metadata.at("tokenizer.ggml.tokens")),
            tokens);
  EXPECT_EQ(content->metadata.size(), 20'001u);
}

}  // namespace
}  // namespace mneme::engine
