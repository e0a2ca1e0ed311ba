// Safetensors, config.json and shard index text: what is read, and every refusal with its message.
#include <limits>

#include "engine/checkpoint/safetensors_checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_builder.h"

namespace mneme::engine {
namespace {

using ::mneme::test::AsBytes;
using ::mneme::test::Bytes;
using ::mneme::test::SafetensorsBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<std::map<std::string, Tensor, std::less<>>> Parse(const std::string& file) {
  return ParseSafetensors(AsBytes(file), "x.safetensors");
}

template <typename Result>
void ExpectInvalid(const Result& result, std::string_view what, std::string_view message) {
  ASSERT_FALSE(result.ok()) << "accepted, expected: " << message;
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(std::string(what) + ": "));
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(std::string(message)));
}

void ExpectRefused(const std::string& file, std::string_view message) {
  ExpectInvalid(Parse(file), "x.safetensors", message);
}

// A file with this header text and a buffer of so many zeros.
void ExpectHeaderRefused(std::string_view header, std::string_view message, size_t buffer = 4) {
  ExpectRefused(SafetensorsBuilder::File(header, std::string(buffer, '\0')), message);
}

std::string Entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return "{\"t\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":" + std::string(shape) +
         ",\"data_offsets\":" + std::string(offsets) + "}}";
}

TEST(SafetensorsTest, ReadsTensors) {
  const std::string data = Bytes(1.f) + Bytes(2.f);
  const std::string file = SafetensorsBuilder()
                               .Tensor("m", "F32", {1, 2}, data)
                               .Tensor("h", "F16", {3}, "abcdef")
                               .Tensor("scalar", "BF16", {}, "xy")
                               .Build(3);
  const auto tensors = Parse(file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const Tensor& m = tensors->at("m");
  EXPECT_EQ(m.dtype, DType::kF32);
  EXPECT_THAT(m.shape, ElementsAre(1, 2));
  EXPECT_EQ(m.size_bytes, 8u);
  EXPECT_EQ(std::memcmp(m.data, data.data(), 8), 0);
  EXPECT_EQ(tensors->at("h").dtype, DType::kF16);
  EXPECT_EQ(std::memcmp(tensors->at("h").data, "abcdef", 6), 0);
  EXPECT_TRUE(tensors->at("scalar").shape.empty());
  EXPECT_EQ(tensors->at("scalar").size_bytes, 2u);
}

TEST(SafetensorsTest, AcceptsNoTensorsZeroSizesAndAnyOrder) {
  EXPECT_TRUE(Parse(SafetensorsBuilder::File("{}", "")).ok());
  for (int empty_at = 0; empty_at < 3; ++empty_at) {
    SafetensorsBuilder builder;
    for (int i = 0; i < 3; ++i) {
      const std::string name = "t" + std::to_string(2 - i);  // names against the order of places
      if (i == empty_at) {
        builder.Tensor(name, "F32", {0, 1000}, "");
      } else {
        builder.Tensor(name, "F32", {1}, Bytes(1.f));
      }
    }
    const auto tensors = Parse(builder.Build());
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    EXPECT_EQ(tensors->size(), 3u);
  }
}

TEST(SafetensorsTest, RefusesBadHeaderLengths) {
  ExpectRefused("", "header length: the file has 0 bytes");
  ExpectRefused("1234567", "header length: the file has 7 bytes");
  ExpectRefused(Bytes(uint64_t{0}), "header length: 0 bytes, at least 2");
  ExpectRefused(Bytes(uint64_t{1}) + "{", "header length: 1 bytes, at least 2");
  ExpectRefused(Bytes(uint64_t{3}) + "{}", "header length: 3 bytes exceed the 2 left");
  ExpectRefused(Bytes(uint64_t{1} << 63) + "{}", "at most 16777216 are allowed");
  ExpectRefused(Bytes(~uint64_t{0}) + "{}", "at most 16777216 are allowed");
  ExpectRefused(Bytes((uint64_t{16} << 20) + 1) + "{}", "at most 16777216 are allowed");
  ExpectRefused(Bytes(uint64_t{100'000'000}) + std::string(100'000'000, ' '), "at most 16777216");
  ExpectHeaderRefused(std::string(size_t{1} << 20, ' '), "expected '{'", 0);
}

TEST(SafetensorsTest, RefusesBadHeaderText) {
  ExpectHeaderRefused(" {}", "header: expected '{' as its first byte", 0);
  ExpectHeaderRefused("\xEF\xBB\xBF{}", "header: expected '{' as its first byte", 0);
  ExpectHeaderRefused("[]", "header: expected '{'", 0);
  ExpectHeaderRefused("{}\n", "nothing but spaces after the closing brace", 0);
  ExpectHeaderRefused("{}\t ", "nothing but spaces after the closing brace", 0);
  ExpectHeaderRefused(std::string_view("{}\0", 3), "nothing but spaces", 0);
  ExpectHeaderRefused(std::string_view("{\0}", 3), "NUL byte", 0);
  ExpectHeaderRefused("{} {}", "not valid JSON", 0);
  ExpectHeaderRefused("{,}", "not valid JSON", 0);
  ExpectHeaderRefused("{\"\xFF\":1}", "not valid JSON", 0);
  ExpectHeaderRefused("{\"\xC0\xAF\":1}", "not valid JSON", 0);
  ExpectHeaderRefused("{\"\\ud800\":1}", "not valid JSON", 0);
  std::string nested = "{\"a\":" + std::string(10'000, '[') + std::string(10'000, ']') + "}";
  ExpectHeaderRefused(nested, "nested deeper than 3", 0);
}

TEST(SafetensorsTest, RefusesDuplicateKeysAtAnyLevel) {
  const std::string t = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  ExpectHeaderRefused("{\"a\":" + t + ",\"a\":" + t + "}", "key \"a\" occurs twice");
  ExpectHeaderRefused("{\"a\":" + t + ",\"\\u0061\":" + t + "}", "key \"a\" occurs twice");
  ExpectHeaderRefused(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                      "key \"dtype\" occurs twice");
  ExpectHeaderRefused(R"({"__metadata__":{"x":"1","x":"2"}})", "key \"x\" occurs twice", 0);
}

TEST(SafetensorsTest, RefusesBadEntries) {
  const std::string tensor = "tensor \"t\": ";
  ExpectHeaderRefused(R"({"t":1})", tensor + "expected an object");
  ExpectHeaderRefused(R"({"t":{"dtype":"F32","shape":[1]}})", "field \"data_offsets\" is missing");
  ExpectHeaderRefused(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})",
                      tensor + "unknown field \"x\"");
  ExpectHeaderRefused(R"({"t":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})",
                      tensor + "dtype: expected a string");
  for (const char* other : {"F64", "I64", "BOOL", "F8_E4M3", "C64", "F4"}) {
    ExpectHeaderRefused(Entry(other, "[1]", "[0,4]"),
                        tensor + "dtype \"" + other + "\", expected F32, F16 or BF16");
  }
  ExpectHeaderRefused(Entry("Q8_0", "[1]", "[0,4]"), "dtype \"Q8_0\" is unknown");
  ExpectHeaderRefused(Entry("f32", "[1]", "[0,4]"), "dtype \"f32\" is unknown");
  ExpectHeaderRefused(Entry("F32", "1", "[0,4]"), tensor + "shape: expected an array");
  ExpectHeaderRefused(Entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), "shape: 9 dimensions");
  for (const char* number :
       {"-1", "-0", "1.0", "1e0", "\"1\"", "null", "9223372036854775808", "18446744073709551616"}) {
    const std::string list = std::string("[") + number + "]";
    ExpectHeaderRefused(Entry("F32", list, "[0,4]"), "shape: expected non-negative integers");
    ExpectHeaderRefused(Entry("F32", "[1]", std::string("[0,") + number + "]"),
                        "data_offsets: expected non-negative integers");
  }
  ExpectHeaderRefused(Entry("F32", "[01]", "[0,4]"), "not valid JSON");
  ExpectHeaderRefused(Entry("F32", "[+1]", "[0,4]"), "not valid JSON");
  ExpectHeaderRefused(Entry("F32", "[4294967296,4294967296]", "[0,4]"), "overflows 64 bits");
  ExpectHeaderRefused(Entry("F32", "[4611686018427387904]", "[0,4]"), "overflows 64 bits");
  ExpectHeaderRefused(Entry("F32", "[1]", "[0,4,4]"), "data_offsets: expected two integers");
  ExpectHeaderRefused(Entry("F32", "[1]", "[4,0]"), "data_offsets: begin 4 exceeds end 0");
  ExpectHeaderRefused(Entry("F32", "[2]", "[0,4]"), "data_offsets: 4 bytes, expected 8");
  ExpectHeaderRefused(Entry("F32", "[2]", "[0,8]"), "data_offsets: ends at 8, the buffer has 4");
  ExpectHeaderRefused(Entry("F32", "[0]", "[4,4]"), "leaves a hole");
  ExpectHeaderRefused(R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                      "tensor name: is empty");
  ExpectHeaderRefused(R"({"a\u0000b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                      "contains a control character");
  ExpectHeaderRefused("{\"" + std::string(1025, 'n') + "\":{}}", "tensor name: 1025 bytes");
  ExpectHeaderRefused(R"({"__metadata__":[]})", "expected an object of strings", 0);
  ExpectHeaderRefused(R"({"__metadata__":{"a":1}})", "\"a\": expected a string", 0);
  ExpectHeaderRefused("{\"__metadata__\":{\"a\":\"" + std::string(600'000, 'x') + "\",\"b\":\"" +
                          std::string(600'000, 'x') + "\"}}",
                      "\"__metadata__\": 1200002 bytes, at most 1048576", 0);
}

TEST(SafetensorsTest, BufferMustBeCoveredExactly) {
  const auto two = [](std::string_view a, std::string_view b, size_t buffer) {
    return SafetensorsBuilder::File(
        "{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":" + std::string(a) +
            "},\"b\":{\"dtype\":\"F16\",\"shape\":[2],"
            "\"data_offsets\":" +
            std::string(b) + "}}",
        std::string(buffer, '\0'));
  };
  EXPECT_TRUE(Parse(two("[0,4]", "[4,8]", 8)).ok());
  EXPECT_TRUE(Parse(two("[4,8]", "[0,4]", 8)).ok());
  ExpectRefused(two("[0,4]", "[3,7]", 7), "begins at 3, overlaps the tensor before, expected 4");
  ExpectRefused(two("[0,4]", "[0,4]", 4), "begins at 0, overlaps the tensor before, expected 4");
  ExpectRefused(two("[0,4]", "[5,9]", 9), "begins at 5, leaves a hole, expected 4");
  ExpectRefused(two("[1,5]", "[5,9]", 9), "begins at 1, leaves a hole, expected 0");
  ExpectRefused(two("[0,4]", "[4,8]", 9), "end of file: 1 bytes after the last tensor");
  ExpectRefused(two("[0,4]", "[4,8]", 7), "ends at 8, the buffer has 7");
}

TEST(SafetensorsTest, EveryTruncationIsRefusedAndBitFlipsStayInside) {
  const std::string file = SafetensorsBuilder()
                               .Tensor("a", "F32", {2}, Bytes(1.f) + Bytes(2.f))
                               .Tensor("b", "BF16", {2, 2}, "12345678")
                               .Build(1);
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    const std::vector<char> cut(file.begin(), file.begin() + size);  // exact, for AddressSanitizer
    EXPECT_FALSE(ParseSafetensors(std::as_bytes(std::span(cut)), "x").ok()) << size;
  }
  for (size_t bit = 0; bit < 8 * file.size(); ++bit) {
    std::vector<char> flipped(file.begin(), file.end());
    flipped[bit / 8] ^= 1 << (bit % 8);
    const auto tensors = ParseSafetensors(std::as_bytes(std::span(flipped)), "x");
    if (!tensors.ok()) continue;
    for (const auto& [name, tensor] : *tensors) {
      const auto* begin = reinterpret_cast<const char*>(tensor.data);
      EXPECT_GE(begin, flipped.data());
      EXPECT_LE(begin + tensor.size_bytes, flipped.data() + flipped.size());
    }
  }
}

TEST(ModelConfigTest, FlattensWithDots) {
  const auto config = ParseModelConfig(
      R"({"i": 3, "neg": -3, "f": 1e-5, "b": true, "s": "x", "none": null,
          "rope": {"factor": 8.0, "deep": {"n": 1}}, "names": ["a", "b"], "ints": [1, -2],
          "mixed_numbers": [1, 2.5], "bools": [true], "mixed": [1, "a", {"k": 2}]})",
      "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(std::get<int64_t>(config->at("i")), 3);
  EXPECT_EQ(std::get<int64_t>(config->at("neg")), -3);
  EXPECT_EQ(std::get<double>(config->at("f")), 1e-5);
  EXPECT_EQ(std::get<bool>(config->at("b")), true);
  EXPECT_EQ(std::get<std::string>(config->at("s")), "x");
  EXPECT_FALSE(config->contains("none"));
  EXPECT_EQ(std::get<double>(config->at("rope.factor")), 8.0);
  EXPECT_EQ(std::get<int64_t>(config->at("rope.deep.n")), 1);
  EXPECT_THAT(std::get<std::vector<std::string>>(config->at("names")), ElementsAre("a", "b"));
  EXPECT_THAT(std::get<std::vector<int64_t>>(config->at("ints")), ElementsAre(1, -2));
  EXPECT_THAT(std::get<std::vector<double>>(config->at("mixed_numbers")), ElementsAre(1, 2.5));
  EXPECT_THAT(std::get<std::vector<bool>>(config->at("bools")), ElementsAre(true));
  EXPECT_EQ(std::get<int64_t>(config->at("mixed.0")), 1);
  EXPECT_EQ(std::get<std::string>(config->at("mixed.1")), "a");
  EXPECT_EQ(std::get<int64_t>(config->at("mixed.2.k")), 2);
}

TEST(ModelConfigTest, Refuses) {
  const auto refused = [](std::string_view text, std::string_view message) {
    ExpectInvalid(ParseModelConfig(text, "config.json"), "config.json", message);
  };
  refused("", "not valid JSON");
  refused("[]", "expected an object");
  refused("{\"a\":1,\"a\":2}", "key \"a\" occurs twice");
  refused("{\"a.b\":1,\"a\":{\"b\":2}}", "key \"a.b\": occurs twice");
  refused("{\"a\":18446744073709551615}", "key \"a\": exceeds 2^63-1");
  refused("{\"a\":1e999}", "not valid JSON");
  refused("{\"a\":NaN}", "not valid JSON");
  refused("{\"\":1}", "expected a name");
  refused("\xEF\xBB\xBF{}", "byte order mark");
  refused(std::string((size_t{1} << 20) + 1, ' '), "at most 1048576 are allowed");
  refused("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", "nested deeper than 8");
}

TEST(ShardIndexTest, ReadsAndRefuses) {
  const auto index = ParseShardIndex(
      R"({"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})",
      "index.json");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->at("a"), "m-1.safetensors");
  EXPECT_EQ(index->at("b"), "m-2.safetensors");

  const auto refused = [](std::string_view text, std::string_view message) {
    ExpectInvalid(ParseShardIndex(text, "index.json"), "index.json", message);
  };
  refused("[]", "expected an object");
  refused("{}", "\"weight_map\": expected an object");
  refused("{\"weight_map\":{},\"x\":1}", "unknown field \"x\"");
  refused("{\"weight_map\":{}}", "names no shard");
  refused("{\"weight_map\":{\"a\":1}}", "shard of tensor \"a\"");
  for (const char* name :
       {"../m.safetensors", "/m.safetensors", "d/m.safetensors", "d\\\\m.safetensors", "m.bin",
        "..safetensors", "C:m.safetensors", "m\\u0000.safetensors", ".safetensors", ""}) {
    refused(std::string("{\"weight_map\":{\"a\":\"") + name + "\"}}",
            "shard of tensor \"a\": expected a plain file name ending in .safetensors");
  }
  std::string many = "{\"weight_map\":{\"t\":\"s.safetensors\"";
  for (int i = 0; i < 1024; ++i) {
    many += ",\"t" + std::to_string(i) + "\":\"s" + std::to_string(i) + ".safetensors\"";
  }
  refused(many + "}}", "1025 shards, at most 1024");
}

}  // namespace
}  // namespace mneme::engine
