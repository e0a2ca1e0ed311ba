// RWKV checkpoints in the formats of llama.cpp and rwkv.cpp against the same weights as safetensors
// (train/tiny_rwkv_formats.py wrote them), and files that must be refused by the name of a tensor
// or key.
#include "engine/arch/rwkv/rwkv_formats.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using testing::HasSubstr;

constexpr int kTokens = 96;

std::string Formats(const std::string& name) { return MNEME_GOLDEN_DIR "/formats/" + name; }

// Logits after every token, then the state's bytes as f32.
std::vector<float> Outputs(const std::string& path, const std::string& backend) {
  auto engine = Engine::Load(
      {.checkpoint_path = path, .backend = backend, .contract = Contract::kF32, .num_threads = 1});
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return {};
  std::vector<TokenId> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back((i * 89 + i * i * 7 + 31) % 256);
  State state = (*engine)->CreateState();
  const int64_t V = (*engine)->info().vocab_size;
  std::vector<float> out(kTokens * V);
  const EngineSlice slice{
      .state = &state, .tokens = tokens, .num_logits = kTokens, .logits = out.data()};
  const absl::Status status = (*engine)->Step({&slice, 1});
  EXPECT_TRUE(status.ok()) << status;
  for (const StateTensor& tensor : (*engine)->schema().tensors()) {
    const float* values = state.block.as<float>(tensor.offset_bytes);
    out.insert(out.end(), values, values + tensor.size_bytes / sizeof(float));
  }
  return out;
}

struct Pair {
  const char* folder;     // of tests/golden/tiny
  const char* file;       // of tests/golden/formats
  test::Tolerance bound;  // 0: the same bits
};

class RwkvFormatsTest : public testing::TestWithParam<Pair> {};

TEST_P(RwkvFormatsTest, SameLogitsAndStateAsSafetensors) {
  const Pair& pair = GetParam();
  for (const Kernels* kernels : AllBackends()) {
    const std::string backend(kernels->name);
    const std::vector<float> expected =
        Outputs(std::string(MNEME_GOLDEN_DIR "/tiny/") + pair.folder, backend);
    const std::vector<float> actual = Outputs(Formats(pair.file), backend);
    ASSERT_GT(expected.size(), size_t{kTokens} * 256);
    EXPECT_TRUE(test::AllClose(actual, expected, pair.bound)) << backend;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RwkvFormatsTest,
                         testing::Values(Pair{"tiny-rwkv7-a", "tiny-rwkv7-a.gguf"},
                                         Pair{"tiny-rwkv7-b", "tiny-rwkv7-b.gguf"},
                                         Pair{"tiny-rwkv7-a", "tiny-rwkv7-a.bin"},
                                         // Outputs divided by 2^(l div 2).
                                         Pair{"tiny-rwkv6-a", "tiny-rwkv6-a.gguf"},
                                         Pair{"tiny-rwkv6-b", "tiny-rwkv6-b.gguf"},
                                         Pair{"tiny-rwkv6-a", "tiny-rwkv6-a.bin"},
                                         // Decays went through exp and log.
                                         Pair{"tiny-rwkv4-a", "tiny-rwkv4-a.bin", {1e-5, 1e-5}},
                                         Pair{"tiny-rwkv51-a", "tiny-rwkv51-a.bin", {1e-5, 1e-5}},
                                         Pair{"tiny-rwkv52-a", "tiny-rwkv52-a.bin", {1e-5, 1e-5}}),
                         [](const auto& info) {
                           std::string name = info.param.file;
                           for (char& c : name) {
                             if (!isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

// A checkpoint with some entries changed.
class Edited final : public Checkpoint {
 public:
  explicit Edited(std::shared_ptr<const Checkpoint> source)
      : metadata_(source->metadata()), tensors_(source->tensors()), source_(std::move(source)) {}

  Format format() const override { return source_->format(); }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return source_->path(); }
  std::string Fingerprint() const override { return source_->Fingerprint(); }
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t max_bytes) const override {
    return source_->ReadSideFile(name, max_bytes);
  }

  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;

 private:
  const std::shared_ptr<const Checkpoint> source_;
};

void ExpectRefused(const std::string& file, absl::StatusCode code, const std::string& message,
                   const std::function<void(Edited&)>& edit) {
  auto checkpoint = Checkpoint::Open(Formats(file));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto edited = std::make_shared<Edited>(*std::move(checkpoint));
  edit(*edited);
  const auto arch = CreateArch(edited, {});
  EXPECT_EQ(arch.status().code(), code) << file << ": " << arch.status();
  EXPECT_THAT(std::string(arch.status().message()), HasSubstr(message));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(RwkvFormatsHostileTest, EveryTensorIsNeededAndChecked) {
  for (const std::string file :
       {"tiny-rwkv7-a.gguf", "tiny-rwkv6-a.gguf", "tiny-rwkv6-b.gguf", "tiny-rwkv7-a.bin",
        "tiny-rwkv6-a.bin", "tiny-rwkv52-a.bin", "tiny-rwkv51-a.bin", "tiny-rwkv4-a.bin"}) {
    const auto checkpoint = Checkpoint::Open(Formats(file));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
      if (name.starts_with("blk.0.time_mix_v") && !name.ends_with("value.weight")) continue;
      // What tells the versions of .bin files apart, and the number of heads.
      if (name == "blocks.0.att.r_k" || name == "blocks.0.att.ln_x.weight" ||
          name == "blocks.0.att.time_maa_x" || name == "blocks.0.att.time_faaaa" ||
          name == "blocks.0.att.time_decay") {
        continue;
      }
      const std::string quoted = "\"" + name + "\"";
      ExpectRefused(file, kNotFound, quoted, [&, key = name](Edited& c) { c.tensors_.erase(key); });
      if (name == "token_embd.weight") continue;  // says what V is
      ExpectRefused(file, kInvalid, quoted, [&, key = name](Edited& c) {
        for (int64_t& dimension : c.tensors_.find(key)->second.shape) {
          if (dimension > 1) --dimension;
        }
      });
    }
  }
}

TEST(RwkvFormatsHostileTest, Gguf) {
  const std::string file = "tiny-rwkv7-a.gguf";
  const auto with_key = [&](const std::string& key, MetadataValue value) {
    return [=](Edited& c) { c.metadata_.insert_or_assign(key, value); };
  };
  for (const char* name : {"arwkv7", "rwkv6qwen2", "rwkv8"}) {
    ExpectRefused(file, kUnimplemented, std::string("'") + name + "'",
                  with_key("general.architecture", std::string(name)));
  }
  for (const char* key : {"rwkv7.block_count", "rwkv7.embedding_length",
                          "rwkv7.feed_forward_length", "rwkv7.wkv.head_size"}) {
    ExpectRefused(file, kNotFound, key, [&](Edited& c) { c.metadata_.erase(key); });
    ExpectRefused(file, kInvalid, key, with_key(key, int64_t{0}));
    ExpectRefused(file, kInvalid, key, with_key(key, int64_t{1} << 40));
    ExpectRefused(file, kInvalid, key, with_key(key, std::string("36")));
  }
  ExpectRefused(file, kInvalid, "head_size' is 7", with_key("rwkv7.wkv.head_size", int64_t{7}));
  ExpectRefused(file, kNotFound, "blk.3.", with_key("rwkv7.block_count", int64_t{4}));
  ExpectRefused(file, kInvalid, "\"blk.2.", with_key("rwkv7.block_count", int64_t{2}));
  ExpectRefused(file, kInvalid, "blk.0.", with_key("rwkv7.embedding_length", int64_t{24}));
  ExpectRefused(file, kInvalid, "channel_mix_key",
                with_key("rwkv7.feed_forward_length", int64_t{99}));
  ExpectRefused(file, kNotFound, "layer_norm_epsilon",
                [](Edited& c) { c.metadata_.erase("rwkv7.attention.layer_norm_epsilon"); });
  ExpectRefused(file, kUnimplemented, "token_shift_count",
                with_key("rwkv7.token_shift_count", int64_t{1}));
  ExpectRefused(file, kInvalid, "\"blk.1.ffn_gate.weight\" is not part of the rwkv7",
                [](Edited& c) {
                  Tensor tensor = c.tensors_.at("blk.1.channel_mix_key.weight");
                  tensor.name = "blk.1.ffn_gate.weight";
                  c.tensors_[tensor.name] = tensor;
                });
}

TEST(RwkvFormatsHostileTest, RwkvCpp) {
  const auto add = [](const std::string& name) {
    return [=](Edited& c) {
      Tensor tensor = c.tensors_.at("blocks.1.ln1.weight");
      tensor.name = name;
      c.tensors_[name] = tensor;
    };
  };
  const std::string file = "tiny-rwkv7-a.bin";
  ExpectRefused(file, kUnimplemented, "RWKV-7a", add("blocks.1.ffn.s_emb.weight"));
  ExpectRefused(file, kUnimplemented, "RWKV-7b", add("blocks.1.qkv.q.weight"));
  ExpectRefused(file, kNotFound, "blocks.3.",
                [](Edited& c) { c.metadata_.insert_or_assign("num_hidden_layers", int64_t{4}); });
  ExpectRefused(file, kInvalid, "layers", [](Edited& c) {
    c.metadata_.insert_or_assign("num_hidden_layers", int64_t{1} << 30);
  });
  ExpectRefused(file, kInvalid, "head.weight",
                [](Edited& c) { c.metadata_.insert_or_assign("vocab_size", int64_t{255}); });
  // Other names are passed over, as rwkv.cpp does, and so is layer 0's unused map.
  auto checkpoint = Checkpoint::Open(Formats(file));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto edited = std::make_shared<Edited>(*std::move(checkpoint));
  add("blocks.0.att.v0")(*edited);
  add("blocks.1.att.time_state")(*edited);
  const auto arch = CreateArch(edited, {});
  EXPECT_TRUE(arch.ok()) << arch.status();
}

}  // namespace
}  // namespace mneme::engine
