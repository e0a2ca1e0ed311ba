// Checkpoints on disk: which files make one, the typed getters, side files and the fingerprint.
#include "engine/checkpoint/checkpoint.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/gguf_builder.h"
#include "tests/support/safetensors_builder.h"

namespace mneme::engine {
namespace {

using ::mneme::test::Bytes;
using ::mneme::test::GgufBuilder;
using ::mneme::test::SafetensorsBuilder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() {
    std::string path =
        (std::filesystem::temp_directory_path() / "mneme-checkpoint-XXXXXX").string();
    folder_ = ::mkdtemp(path.data());
  }
  ~CheckpointTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, std::string_view content) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }
  std::string Folder(const std::string& name) { return (folder_ / name).string(); }

  static std::shared_ptr<const Checkpoint> Open(const std::string& path) {
    auto checkpoint = Checkpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *checkpoint : nullptr;
  }
  static void ExpectRefused(const std::string& path, std::string_view message,
                            absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_FALSE(checkpoint.ok()) << "accepted, expected: " << message;
    EXPECT_EQ(checkpoint.status().code(), code);
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(std::string(message)));
  }

  std::filesystem::path folder_;
};

template <typename Result>
void ExpectError(const Result& result, absl::StatusCode code, std::string_view message) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), code);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(std::string(message)));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

std::string OneTensor(std::string_view name, float value) {
  return SafetensorsBuilder().Tensor(name, "F32", {1}, Bytes(value)).Build();
}

TEST_F(CheckpointTest, GettersCheckTypes) {
  GgufBuilder builder;
  builder.U32("int", 7).F32("float", 0.5f).Bool("bool", true).Str("str", "x");
  builder.F32("nan", std::numeric_limits<float>::quiet_NaN());
  const auto checkpoint = Open(Write("a.gguf", builder.Build()));
  EXPECT_EQ(checkpoint->format(), Checkpoint::Format::kGguf);
  EXPECT_EQ(*checkpoint->GetInt("int"), 7);
  EXPECT_EQ(*checkpoint->GetFloat("float"), 0.5);
  EXPECT_EQ(*checkpoint->GetFloat("int"), 7.0) << "an integer is a float";
  EXPECT_EQ(*checkpoint->GetBool("bool"), true);
  EXPECT_EQ(*checkpoint->GetString("str"), "x");
  EXPECT_TRUE(checkpoint->Has("int"));
  EXPECT_FALSE(checkpoint->Has("in"));
  EXPECT_EQ(*checkpoint->GetInt("absent", 3), 3);
  EXPECT_EQ(*checkpoint->GetString("absent", "y"), "y");
  ExpectError(checkpoint->GetInt("absent"), kNotFound,
              "a.gguf: metadata \"absent\" is missing, expected an integer");
  ExpectError(checkpoint->GetInt("float"), kInvalid,
              "metadata \"float\" is a float, expected an integer");
  ExpectError(checkpoint->GetInt("str", 3), kInvalid, "is a string, expected an integer");
  ExpectError(checkpoint->GetFloat("bool"), kInvalid, "is a bool, expected a float");
  ExpectError(checkpoint->GetFloat("nan"), kInvalid, "\"nan\" is not finite");
}

TEST_F(CheckpointTest, TensorsAreCheckedAgainstShapes) {
  const auto checkpoint = Open(Write("a.gguf", GgufBuilder()
                                                   .F32Tensor("norm", {3}, {1, -2, 0.5f})
                                                   .Tensor("w", {32, 2}, 8, std::string(68, '\1'))
                                                   .Build()));
  const auto weight = checkpoint->GetWeight("w", 2, 32);
  ASSERT_TRUE(weight.ok()) << weight.status();
  EXPECT_EQ(weight->dtype, DType::kQ8_0);
  EXPECT_EQ(weight->rows, 2);
  EXPECT_EQ(weight->columns, 32);
  EXPECT_EQ(weight->data, checkpoint->tensors().at("w").data);
  ExpectError(checkpoint->GetWeight("w", 32, 2), kInvalid,
              "tensor \"w\" has shape [2, 32], expected [32, 2]");
  ExpectError(checkpoint->GetWeight("v", 1, 2), kNotFound,
              "tensor \"v\" is missing, expected shape [1, 2]");
  EXPECT_THAT(*checkpoint->GetVector("norm", 3), ElementsAre(1, -2, 0.5));
  ExpectError(checkpoint->GetVector("norm", 4), kInvalid, "has shape [3], expected [4]");
}

TEST_F(CheckpointTest, VectorsOfEveryFloatType) {
  // f16: smallest subnormal, smallest normal, 1, -2, largest.
  const std::string halves = Bytes(uint16_t{0x0001}) + Bytes(uint16_t{0x0400}) +
                             Bytes(uint16_t{0x3C00}) + Bytes(uint16_t{0xC000}) +
                             Bytes(uint16_t{0x7BFF});
  const std::string brains = Bytes(uint16_t{0x3F80}) + Bytes(uint16_t{0xC000});
  const auto checkpoint = Open(Write("a.gguf", GgufBuilder()
                                                   .Tensor("h", {5}, 1, halves)
                                                   .Tensor("b", {2}, 30, brains)
                                                   .Tensor("q", {32}, 8, std::string(34, '\0'))
                                                   .Build()));
  EXPECT_THAT(*checkpoint->GetVector("h", 5), ElementsAre(0x1p-24f, 0x1p-14f, 1, -2, 65504));
  EXPECT_THAT(*checkpoint->GetVector("b", 2), ElementsAre(1, -2));
  ExpectError(checkpoint->GetVector("q", 32), kInvalid, "has type Q8_0, expected F32, F16 or BF16");
}

TEST_F(CheckpointTest, NonFiniteWeightsAreRefused) {
  struct Case {
    uint32_t type;  // ggml's id
    uint64_t columns;
    size_t block_bytes;
    std::vector<size_t> float_offsets;  // of the scales and minima in a block
  };
  const Case cases[] = {{2, 32, 18, {0}},       {3, 32, 20, {0, 2}},   {6, 32, 22, {0}},
                        {7, 32, 24, {0, 2}},    {8, 32, 34, {0}},      {12, 256, 144, {0, 2}},
                        {13, 256, 176, {0, 2}}, {14, 256, 210, {208}}, {1, 1, 2, {0}}};
  for (const Case& c : cases) {
    for (const size_t offset : c.float_offsets) {
      for (const uint16_t bad : {0x7C00, 0xFC00, 0x7E01}) {
        std::string data(3 * c.block_bytes, '\0');
        const auto open = [&] {
          return Open(
              Write("a.gguf", GgufBuilder().Tensor("w", {c.columns, 3}, c.type, data).Build()));
        };
        EXPECT_TRUE(open()->GetWeight("w", 3, c.columns).ok());
        std::memcpy(data.data() + 2 * c.block_bytes + offset, &bad, 2);
        ExpectError(open()->GetWeight("w", 3, c.columns), kInvalid,
                    "tensor \"w\" holds a NaN or infinity");
      }
    }
  }
  const float inf = std::numeric_limits<float>::infinity();
  const auto checkpoint =
      Open(Write("a.gguf", GgufBuilder()
                               .F32Tensor("v", {2}, {1, -inf})
                               .Tensor("b", {2, 1}, 30, Bytes(uint32_t{0x7FC03F80}))
                               .Build()));
  ExpectError(checkpoint->GetVector("v", 2), kInvalid, "tensor \"v\" holds a NaN or infinity");
  ExpectError(checkpoint->GetWeight("b", 1, 2), kInvalid, "tensor \"b\" holds a NaN or infinity");
}

TEST_F(CheckpointTest, RefusesPathsThatAreNoCheckpoint) {
  ExpectRefused(Folder("absent.gguf"), "no such file", kNotFound);
  ExpectRefused(Folder("absent/x.safetensors"), "no such file", kNotFound);
  ExpectRefused(Write("a.txt", "x"), "expected a .gguf file, a .safetensors file, rwkv.cpp's");
  ExpectRefused(Write("empty.gguf", ""), "header: the file has 0 bytes");
  Write("folder/x", "");
  ExpectRefused(Folder("folder"), "has no config.json");
  Write("folder/config.json", "{}");
  ExpectRefused(Folder("folder"), "has neither model.safetensors nor");
  ASSERT_EQ(::mkfifo(Folder("pipe.gguf").c_str(), 0600), 0);
  ExpectRefused(Folder("pipe.gguf"), "is not a regular file");
  std::filesystem::create_directory(folder_ / "folder/model.safetensors");
  ExpectRefused(Folder("folder"), "is not a regular file");
}

TEST_F(CheckpointTest, FolderAndFileAreTheSameCheckpoint) {
  Write("m/config.json", R"({"hidden_size": 4, "rope_scaling": {"factor": 2.0}})");
  const std::string file = Write("m/model.safetensors", OneTensor("w", 1.5f));
  Write("m/tokenizer.json", "{\"x\":1}");
  const auto folder = Open(Folder("m"));
  EXPECT_EQ(folder->format(), Checkpoint::Format::kSafetensors);
  EXPECT_EQ(folder->path(), Folder("m"));
  EXPECT_EQ(*folder->GetInt("hidden_size"), 4);
  EXPECT_EQ(*folder->GetFloat("rope_scaling.factor"), 2.0);
  EXPECT_THAT(*folder->GetVector("w", 1), ElementsAre(1.5f));
  const auto single = Open(file);
  EXPECT_EQ(single->path(), file);
  EXPECT_EQ(single->Fingerprint(), folder->Fingerprint());
  const std::string renamed = Write("m/other.safetensors", OneTensor("w", 1.5f));
  EXPECT_EQ(Open(renamed)->Fingerprint(), folder->Fingerprint());
}

TEST_F(CheckpointTest, MisalignedTensorsAreReadable) {
  for (size_t spaces = 0; spaces < 8; ++spaces) {
    Write("m/config.json", "{}");
    Write("m/model.safetensors", SafetensorsBuilder()
                                     .Tensor("h", "F16", {1}, Bytes(uint16_t{0x3C00}))
                                     .Tensor("w", "F32", {1, 2}, Bytes(1.f) + Bytes(2.f))
                                     .Tensor("v", "F32", {2}, Bytes(3.f) + Bytes(4.f))
                                     .Build(spaces));
    const auto checkpoint = Open(Folder("m"));
    EXPECT_THAT(*checkpoint->GetVector("v", 2), ElementsAre(3, 4)) << spaces;
    EXPECT_TRUE(checkpoint->GetWeight("w", 1, 2).ok()) << spaces;
  }
}

TEST_F(CheckpointTest, SideFiles) {
  Write("m/config.json", "{}");
  Write("m/model.safetensors", OneTensor("w", 1));
  Write("m/tokenizer.json", "{\"x\":1}");
  Write("m/secret.txt", "s");
  Write("secret.txt", "s");
  const auto checkpoint = Open(Folder("m"));
  EXPECT_EQ(*checkpoint->ReadSideFile("tokenizer.json", 7), "{\"x\":1}");
  ExpectError(checkpoint->ReadSideFile("tokenizer.json", 6), kInvalid,
              "tokenizer.json: 7 bytes, at most 6");
  ExpectError(checkpoint->ReadSideFile("tokenizer.model", 100), kNotFound,
              "has no tokenizer.model");
  for (const char* name : {"../secret.txt", "secret.txt", "/etc/passwd", "", "config.json"}) {
    ExpectError(checkpoint->ReadSideFile(name, 100), kInvalid, "is no tokenizer file");
  }
  const auto gguf = Open(Write("m/a.gguf", GgufBuilder().Build()));
  ExpectError(gguf->ReadSideFile("tokenizer.json", 100), kNotFound, "a GGUF file has no");
}

TEST_F(CheckpointTest, ShardsMustMatchTheIndex) {
  const auto index = [&](std::string_view map) {
    Write("m/model.safetensors.index.json", "{\"weight_map\":" + std::string(map) + "}");
  };
  Write("m/config.json", "{}");
  Write("m/s1.safetensors", OneTensor("a", 1));
  Write("m/s2.safetensors", OneTensor("b", 2));
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  const auto checkpoint = Open(Folder("m"));
  EXPECT_THAT(*checkpoint->GetVector("a", 1), ElementsAre(1));
  EXPECT_THAT(*checkpoint->GetVector("b", 1), ElementsAre(2));

  index(R"({"a":"s1.safetensors","b":"s3.safetensors"})");
  ExpectRefused(Folder("m"), "shard of tensor \"b\": ");
  index(R"({"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"})");
  ExpectRefused(Folder("m"), "tensor \"c\" is missing from s2.safetensors");
  index(R"({"a":"s1.safetensors"})");
  EXPECT_TRUE(Checkpoint::Open(Folder("m")).ok()) << "an unnamed shard is no part of it";
  Write("m/s1.safetensors", SafetensorsBuilder()
                                .Tensor("a", "F32", {1}, Bytes(1.f))
                                .Tensor("x", "F32", {1}, Bytes(1.f))
                                .Build());
  ExpectRefused(Folder("m"), "tensor \"x\" is not listed in the index");
  index(R"({"a":"s1.safetensors","x":"s2.safetensors"})");
  ExpectRefused(Folder("m"), "tensor \"x\" is listed in another shard");
  Write("m/model.safetensors", OneTensor("a", 1));
  ExpectRefused(Folder("m"), "has both model.safetensors and");
}

TEST_F(CheckpointTest, SymbolicLinksInsideAFolderAreRefused) {
  const std::string outside = Write("outside.safetensors", OneTensor("w", 1));
  Write("m/config.json", "{}");
  std::filesystem::create_symlink(outside, folder_ / "m/model.safetensors");
  ExpectRefused(Folder("m"), "model.safetensors: is a symbolic link");
  std::filesystem::remove(folder_ / "m/model.safetensors");
  Write("m/model.safetensors", OneTensor("w", 1));
  EXPECT_TRUE(Checkpoint::Open(Folder("m")).ok());
  std::filesystem::create_symlink(outside, folder_ / "m/tokenizer.json");
  ExpectRefused(Folder("m"), "tokenizer.json: is a symbolic link");
  // The path that the user names may be a link itself.
  std::filesystem::remove(folder_ / "m/tokenizer.json");
  std::filesystem::create_directory_symlink(folder_ / "m", folder_ / "link");
  EXPECT_TRUE(Checkpoint::Open(Folder("link")).ok());
}

TEST_F(CheckpointTest, FingerprintCoversEveryByteOnce) {
  const std::string file = GgufBuilder().U32("k", 1).F32Tensor("v", {1}, {1}).Build();
  const auto checkpoint = Open(Write("a.gguf", file));
  EXPECT_EQ(checkpoint->Fingerprint().size(), 32u);
  EXPECT_EQ(Open(Write("b.gguf", file))->Fingerprint(), checkpoint->Fingerprint());
  const std::string other = GgufBuilder().U32("k", 2).F32Tensor("v", {1}, {1}).Build();
  EXPECT_NE(Open(Write("c.gguf", other))->Fingerprint(), checkpoint->Fingerprint());
  // SHA-256 of the 24 bytes of an empty file, from sha256sum.
  EXPECT_EQ(absl::BytesToHexString(Open(Write("d.gguf", GgufBuilder().Build()))->Fingerprint()),
            "a4e5e156ddec27e286f75328784d7106b60a4eb1d246e950a001a3f944fbda99");

  const auto folder = [&](std::string_view config, float weight, std::string_view tokenizer) {
    std::filesystem::remove_all(folder_ / "m");
    Write("m/config.json", config);
    Write("m/model.safetensors", OneTensor("w", weight));
    if (!tokenizer.empty()) Write("m/tokenizer.json", tokenizer);
    return Open(Folder("m"))->Fingerprint();
  };
  const std::string base = folder("{}", 1, "{}");
  EXPECT_EQ(folder("{}", 1, "{}"), base);
  EXPECT_NE(folder("{ }", 1, "{}"), base);
  EXPECT_NE(folder("{}", 2, "{}"), base);
  EXPECT_NE(folder("{}", 1, "{ }"), base);
  EXPECT_NE(folder("{}", 1, ""), base);
}

TEST_F(CheckpointTest, FingerprintIsThreadSafe) {
  const auto checkpoint = Open(
      Write("a.gguf", GgufBuilder().Tensor("w", {1 << 18}, 0, std::string(1 << 20, 'x')).Build()));
  std::vector<std::string> results(8);
  {
    std::vector<std::jthread> threads;
    for (std::string& result : results) {
      threads.emplace_back([&] { result = checkpoint->Fingerprint(); });
    }
  }
  for (const std::string& result : results) EXPECT_EQ(result, results[0]);
}

TEST(TinyCheckpointTest, CommittedFilesOpenAndMatchTheirManifest) {
  const std::string folder = MNEME_TINY_FOLDER;
  std::ifstream stream(folder + "/manifest.json");
  const nlohmann::json manifest = nlohmann::json::parse(stream);
  int num_gguf = 0;
  for (const auto& [name, entry] : manifest["files"].items()) {
    if (!name.ends_with(".gguf")) continue;
    ++num_gguf;
    const auto checkpoint = Checkpoint::Open(folder + "/" + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ(absl::BytesToHexString((*checkpoint)->Fingerprint()), entry["sha256"]) << name;
    const int64_t d = *(*checkpoint)->GetInt("llama.embedding_length");
    const int64_t vocab = *(*checkpoint)->GetInt("llama.vocab_size");
    EXPECT_TRUE((*checkpoint)->GetWeight("token_embd.weight", vocab, d).ok()) << name;
    for (const auto& [tensor_name, tensor] : (*checkpoint)->tensors()) {
      if (tensor.shape.size() == 2) {
        const auto weight = (*checkpoint)->GetWeight(tensor_name, tensor.shape[0], tensor.shape[1]);
        EXPECT_TRUE(weight.ok()) << weight.status();
      } else {
        EXPECT_TRUE((*checkpoint)->GetVector(tensor_name, tensor.shape[0]).ok()) << tensor_name;
      }
    }
  }
  EXPECT_EQ(num_gguf, 3);
  const auto hf = Checkpoint::Open(folder + "/tiny-llama-hf");
  ASSERT_TRUE(hf.ok()) << hf.status();
  EXPECT_EQ(*(*hf)->GetString("model_type"), "llama");
  EXPECT_TRUE((*hf)->GetWeight("model.layers.1.mlp.down_proj.weight", 48, 80).ok());
  EXPECT_TRUE((*hf)->ReadSideFile("tokenizer.json", 1 << 20).ok());
}

}  // namespace
}  // namespace mneme::engine
