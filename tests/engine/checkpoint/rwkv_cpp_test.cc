// rwkv.cpp files built byte by byte: what is read, and every refusal with its message.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/cleanup/cleanup.h"
#include "engine/checkpoint/rwkv_cpp_checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"

namespace mneme::engine {
namespace {

using ::mneme::test::AsBytes;
using ::mneme::test::Bytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string U32s(std::initializer_list<uint32_t> values) {
  std::string out;
  for (const uint32_t value : values) out += Bytes(value);
  return out;
}

std::string Header(uint32_t version = 101, uint32_t type = 0) {
  return U32s({0x67676d66, version, 256, 32, 2, type});
}

std::string Record(const std::string& name, std::initializer_list<uint32_t> dimensions,
                   uint32_t type, size_t size_bytes) {
  return U32s(
             {static_cast<uint32_t>(dimensions.size()), static_cast<uint32_t>(name.size()), type}) +
         U32s(dimensions) + name + std::string(size_bytes, '\1');
}

void ExpectRefused(const std::string& file, std::string_view message) {
  const auto content = ParseRwkvCpp(AsBytes(file), "x.bin");
  ASSERT_FALSE(content.ok()) << "accepted, expected: " << message;
  EXPECT_EQ(content.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(content.status().message()), HasSubstr("x.bin: "));
  EXPECT_THAT(std::string(content.status().message()), HasSubstr(std::string(message)));
}

TEST(RwkvCppTest, ReadsHeaderAndEveryType) {
  const std::string types[] = {
      Record("t0", {3}, 0, 12),         Record("t1", {3, 2}, 1, 12),
      Record("t2", {32, 2}, 2, 36),     Record("t3", {32}, 3, 20),
      Record("t7", {64}, 7, 44),        Record("t8", {32, 1, 2}, 8, 48),
      Record("t9", {32}, 9, 34),        Record("t13", {256}, 13, 144),
      Record("t14", {256, 2}, 14, 352), Record("t15", {256}, 15, 210),
  };
  std::string file = Header();
  for (const std::string& record : types) file += record;
  const auto content = ParseRwkvCpp(AsBytes(file), "x.bin");
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(content->version, 101);
  EXPECT_EQ(content->vocab_size, 256);
  EXPECT_EQ(content->width, 32);
  EXPECT_EQ(content->num_layers, 2);
  EXPECT_EQ(content->tensors.size(), std::size(types));
  const Tensor& last = content->tensors.at("t8");
  EXPECT_EQ(last.dtype, DType::kQ5_1);
  EXPECT_THAT(last.shape, ElementsAre(2, 1, 32));
  EXPECT_EQ(last.size_bytes, 48u);
  EXPECT_EQ(static_cast<int>(last.data[0]), 1);
  EXPECT_EQ(content->tensors.at("t15").dtype, DType::kQ6_K);
  // No tensor at all is a file too.
  EXPECT_TRUE(ParseRwkvCpp(AsBytes(Header()), "x.bin").ok());
  EXPECT_TRUE(ParseRwkvCpp(AsBytes(Header(100) + types[1]), "x.bin").ok());
}

TEST(RwkvCppTest, RefusesHeaders) {
  ExpectRefused("", "header: the file has 0 bytes");
  ExpectRefused(Header().substr(0, 23), "header: the file has 23 bytes");
  ExpectRefused("GGUF" + Header().substr(4), "magic: 0x46554747, expected 0x67676d66");
  ExpectRefused(Header(102), "version: 102, expected 100 or 101");
  ExpectRefused(Header(99), "version: 99");
  ExpectRefused(U32s({0x67676d66, 101, 0, 32, 2, 0}), "vocabulary size: 0");
  ExpectRefused(U32s({0x67676d66, 101, 256, 0x80000000, 2, 0}), "width: 2147483648");
  ExpectRefused(U32s({0x67676d66, 101, 256, 32, 0, 0}), "layer count: 0");
  ExpectRefused(Header(101, 4), "data type: type 4 (Q4_1_O (removed from rwkv.cpp))");
  ExpectRefused(Header(101, 17), "data type: type 17 (unknown)");
  ExpectRefused(Header(100, 2), "Q4_0 in a file of version 100");
}

TEST(RwkvCppTest, RefusesRecords) {
  const auto refused = [](const std::string& record, std::string_view message) {
    ExpectRefused(Header() + record, message);
  };
  const std::string good = Record("good", {4}, 0, 16);
  for (size_t size = 1; size < good.size(); ++size) {
    ExpectRefused(Header() + good.substr(0, size), "x.bin: tensor");
  }
  refused(good + "abc", "tensor 1: the file ends here: 4 bytes expected, 3 left");
  refused(U32s({0, 1, 0}) + "x", "tensor 0: 0 dimensions");
  refused(U32s({4, 1, 0, 1, 1, 1, 1}) + "x", "tensor 0: 4 dimensions");
  refused(U32s({1, 0, 0, 1}), "a name of 0 bytes");
  refused(U32s({1, 256, 0, 1}) + std::string(300, 'x'), "a name of 256 bytes");
  refused(U32s({1, 200, 0, 1}) + "x", "exceeds the 1 bytes left");
  refused(Record("a b", {1}, 0, 4), "expected printable ASCII");
  refused(Record(std::string("a\0b", 3), {1}, 0, 4), "a\\x00");
  refused(Record("x", {4, 0}, 0, 0), "dimension 1 is 0");
  refused(Record("x", {33}, 8, 0), "rows of 33 elements, expected a multiple of 32 for type Q5_1");
  refused(Record("x", {32}, 10, 36), "tensor \"x\": type 10 (Q8_1)");
  refused(Record("x", {32}, 5, 36), "removed from rwkv.cpp");
  refused(Record("x", {32}, 1000, 36), "type 1000 (unknown)");
  refused(Record("x", {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, 0, 0), "overflows 64 bits");
  refused(Record("x", {0x10000000, 0x1000}, 1, 0), "exceed the 0 bytes left");
  refused(Record("x", {4}, 0, 15), "its 16 bytes exceed the 15 bytes left");
  refused(good + good, "tensor \"good\": the name occurs twice");
  ExpectRefused(Header(100) + Record("x", {32}, 7, 22), "tensor \"x\": type Q5_0 in a file of");
}

TEST(RwkvCppTest, OpensWithTheFilesBeside) {
  std::string folder = testing::TempDir() + "mneme_rwkv_cpp_XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const absl::Cleanup remove = [&] { std::filesystem::remove_all(folder); };
  const std::string path = folder + "/model.Q5_1.bin";
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder + "/" + name, std::ios::binary) << text;
  };
  write("model.Q5_1.bin", Header() + Record("emb.weight", {32, 256}, 1, 2 * 32 * 256));
  const auto alone = Checkpoint::Open(path);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ((*alone)->format(), Checkpoint::Format::kRwkvCpp);
  EXPECT_EQ((*alone)->GetInt("hidden_size").value(), 32);
  EXPECT_EQ((*alone)->GetInt("num_hidden_layers").value(), 2);
  EXPECT_EQ((*alone)->ReadSideFile("tokenizer.json", 100).status().code(),
            absl::StatusCode::kNotFound);
  // The header wins over config.json; the other keys count.
  write("config.json", R"({"hidden_size": 7, "tokenizer": "bytes"})");
  write("rwkv_vocab_v20230424.txt", "1 '\\x00' 1\n");
  const auto beside = Checkpoint::Open(path);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_EQ((*beside)->GetInt("hidden_size").value(), 32);
  EXPECT_EQ((*beside)->GetString("tokenizer").value(), "bytes");
  EXPECT_EQ((*beside)->ReadSideFile("rwkv_vocab_v20230424.txt", 100).value(), "1 '\\x00' 1\n");
  EXPECT_NE((*beside)->Fingerprint(), (*alone)->Fingerprint());
  write("config.json", "{");
  EXPECT_FALSE(Checkpoint::Open(path).ok());
  EXPECT_EQ(Checkpoint::Open(folder + "/none.bin").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mneme::engine
