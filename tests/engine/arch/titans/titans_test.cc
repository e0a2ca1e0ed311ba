// Properties of the architecture that hold for any weights (the goldens hold for some).
#include "engine/arch/titans/titans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/arch_runner.h"
#include "tests/engine/arch/titans/fake_titans.h"
#include "tests/support/compare.h"

namespace mneme::engine::titans {
namespace {

using test::SameBits;

constexpr int64_t kVocab = 10;
constexpr int64_t kChunk = 4;
const std::vector<TokenId> kTokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};

using Runner = ArchRunner;

std::span<const float> From(const std::vector<float>& logits, int64_t token) {
  return std::span(logits).subspan(token * kVocab);
}

std::span<const float> Before(const std::vector<float>& logits, int64_t token) {
  return std::span(logits).first(token * kVocab);
}

std::vector<float> InitOf(const FakeCheckpoint& c, int layer, int matrix) {
  const std::string name =
      "model.layers." + std::to_string(layer) + ".memory.init." + std::to_string(matrix);
  const Tensor& tensor = c.tensors().at(name);
  const float* values = c.Values(name);
  return {values, values + tensor.size_bytes / sizeof(float)};
}

// Variants with the read modes they have.
std::vector<FakeTitansOptions> AllOptions() {
  std::vector<FakeTitansOptions> all;
  for (const char* variant : kTitansVariants) {
    all.push_back({.variant = variant});
    if (std::string(variant) != "mac") all.push_back({.variant = variant, .read_mode = "token"});
  }
  all.push_back({.variant = "lmm", .depth = 1});
  all.push_back({.variant = "mag", .depth = 3, .norm = "layer", .read_mode = "token"});
  all.push_back({.variant = "mac", .depth = 1, .norm = "rms", .persistent = 0});
  return all;
}

std::string Describe(const FakeTitansOptions& o) {
  return o.variant + ", " + o.read_mode + ", depth " + std::to_string(o.depth);
}

class TitansTest : public testing::TestWithParam<std::string_view> {};

TEST_P(TitansTest, AFreshStateIsTheTrainedMemory) {
  for (const FakeTitansOptions& options : AllOptions()) {
    SCOPED_TRACE(Describe(options));
    const auto c = FakeTitans(options);
    Runner run(c, GetParam());
    for (int layer = 0; layer < 2; ++layer) {
      for (int l = 0; l < options.depth; ++l) {
        const std::vector<float> init = InitOf(*c, layer, l);
        const std::string matrix = std::to_string(l);
        EXPECT_TRUE(SameBits(run.Copy(layer, "memory_" + matrix), init));
        EXPECT_TRUE(
            SameBits(run.Copy(layer, "momentum_" + matrix), std::vector<float>(init.size())));
        if (options.read_mode == "token") {
          EXPECT_TRUE(SameBits(run.Copy(layer, "running_" + matrix), init));
        }
      }
    }
  }
}

// Weights of the last commit change when the last token of a chunk has been read, and only then.
TEST_P(TitansTest, CommitsComeAtTheEndOfChunks) {
  for (const FakeTitansOptions& options : AllOptions()) {
    SCOPED_TRACE(Describe(options));
    Runner run(FakeTitans(options), GetParam());
    std::vector<float> last = run.Copy(1, "memory_0");
    for (size_t n = 0; n < kTokens.size(); ++n) {
      run.Feed({&kTokens[n], 1});
      const std::vector<float> now = run.Copy(1, "memory_0");
      EXPECT_EQ(bool{SameBits(now, last)}, n % kChunk != kChunk - 1) << "after token " << n;
      if (options.read_mode == "token" && n % kChunk == kChunk - 1) {
        EXPECT_TRUE(SameBits(now, run.Copy(1, "running_0")));
      }
      last = now;
    }
  }
}

// What is written does not depend on what is read where nothing lies above it: a commit of b rows
// leaves what b single updates leave.
TEST_P(TitansTest, ACommitEqualsItsRows) {
  for (const int64_t depth : {1, 2, 3}) {
    const FakeTitansOptions chunk = {.layers = 1, .depth = depth, .norm = "layer"};
    FakeTitansOptions token = chunk;
    token.read_mode = "token";
    Runner together(FakeTitans(chunk), GetParam()), one_by_one(FakeTitans(token), GetParam());
    together.Feed(kTokens);
    one_by_one.Feed(kTokens);
    for (const char* name : {"memory_", "momentum_"}) {
      for (int l = 0; l < depth; ++l) {
        const std::string tensor = name + std::to_string(l);
        EXPECT_TRUE(test::AllClose(together.Copy(0, tensor), one_by_one.Copy(0, tensor),
                                   {.absolute = 1e-5, .relative = 1e-5}))
            << tensor << " of " << depth;
      }
    }
  }
}

TEST_P(TitansTest, TheFutureDoesNotReachThePast) {
  for (const FakeTitansOptions& options : AllOptions()) {
    SCOPED_TRACE(Describe(options));
    const std::vector<float> one = Runner(FakeTitans(options), GetParam()).Feed(kTokens);
    for (const size_t changed : {1, 6, 11, 16}) {
      std::vector<TokenId> tokens = kTokens;
      for (size_t i = changed; i < tokens.size(); ++i) tokens[i] = (tokens[i] + 1) % kVocab;
      const std::vector<float> other = Runner(FakeTitans(options), GetParam()).Feed(tokens);
      EXPECT_TRUE(SameBits(Before(other, changed), Before(one, changed)));
      EXPECT_FALSE(SameBits(From(other, changed), From(one, changed)));
    }
  }
}

// With a learning rate of 0 the memory is a fixed network: what is beyond windows and convolutions
// is gone. With the trained rate the memory carries it.
TEST_P(TitansTest, OnlyTheMemoryReachesBeyondTheWindow) {
  constexpr int64_t kLayers = 2, W = 6, K = 3;
  for (const std::string variant : {"lmm", "mag", "mal"}) {
    int64_t reach = kLayers * (K - 1);
    if (variant == "mag") reach = kLayers * (W - 1);
    if (variant == "mal") reach = kLayers * (W - 1 + K - 1);
    for (const bool learns : {false, true}) {
      SCOPED_TRACE(variant + (learns ? ", learning" : ""));
      auto c = FakeTitans({.variant = variant, .layers = kLayers});
      if (!learns) c->Set("theta_max", 0.0);
      std::vector<TokenId> tokens = kTokens;
      const std::vector<float> one = Runner(c, GetParam()).Feed(tokens);
      tokens[0] = (tokens[0] + 1) % kVocab;
      const std::vector<float> other = Runner(c, GetParam()).Feed(tokens);
      EXPECT_FALSE(SameBits(From(other, reach).first(kVocab), From(one, reach).first(kVocab)));
      EXPECT_EQ(bool{SameBits(From(other, reach + 1), From(one, reach + 1))}, !learns);
    }
  }
}

TEST_P(TitansTest, RatesOfZeroLeaveTheMemoryAsItWas) {
  for (const FakeTitansOptions& options : AllOptions()) {
    SCOPED_TRACE(Describe(options));
    auto c = FakeTitans(options);
    c->Set("theta_max", 0.0);
    c->Set("forget", false);
    Runner run(c, GetParam());
    run.Feed(kTokens);
    for (int l = 0; l < options.depth; ++l) {
      EXPECT_TRUE(SameBits(run.Copy(0, "memory_" + std::to_string(l)), InitOf(*c, 0, l)));
    }
  }
}

// Everything is relative: a text that begins at a late chunk's border gives the same bits where no
// rotation by the position is involved.
TEST_P(TitansTest, PositionsAreRelative) {
  for (const char* variant : {"lmm", "mac"}) {
    Runner early(FakeTitans({.variant = variant}), GetParam());
    Runner late(FakeTitans({.variant = variant}), GetParam());
    late.state().position = kChunk * (int64_t{1} << 40);
    // Convolutions keep their rows by position modulo K - 1 = 2, which divides the chunk.
    EXPECT_TRUE(SameBits(late.Feed(kTokens), early.Feed(kTokens)));
  }
}

TEST_P(TitansTest, MomentumAndForgettingMatter) {
  const std::vector<float> base = Runner(FakeTitans(), GetParam()).Feed(kTokens);
  const std::pair<const char*, MetadataValue> options[] = {
      {"eta_max", 0.0},
      {"forget", false},
      {"gradient_clip", 0.01},
      {"gate_floor", 0.5},
      {"memory_residual", false},
      {"decay_to", std::string("zero")},
      {"memory_activation", std::string("gelu_erf")}};
  for (const auto& [key, value] : options) {
    auto c = FakeTitans();
    c->Set(key, value);
    EXPECT_FALSE(SameBits(Runner(c, GetParam()).Feed(kTokens), base)) << key;
  }
}

// Long texts, among them the ones that repeat: finite, and within what the clip allows.
TEST_P(TitansTest, LongTextsStayFinite) {
  constexpr int64_t kPass = 512;
  constexpr uint32_t kSeed = 20240613;
  std::cout << "seed " << kSeed << "\n";
  for (const FakeTitansOptions& options : AllOptions()) {
    // The reference is there to be read, not for speed.
    int64_t total = options.variant == "lmm" && options.depth == 2 ? 50'000 : 5'000;
    if (std::string(GetParam()) == "reference") total = 2'000;
    for (const std::string text : {"random", "constant", "alternating"}) {
      const int64_t tokens_of_text = text == "random" ? total : total / 4;
      SCOPED_TRACE(Describe(options) + ", " + text);
      auto c = FakeTitans({.variant = options.variant,
                           .layers = 1,
                           .depth = options.depth,
                           .norm = options.norm,
                           .read_mode = options.read_mode,
                           .persistent = options.persistent});
      c->Set("forget", false);  // nothing pulls the weights back
      Runner run(c, GetParam());
      const size_t bytes = run.state().block.size();
      std::vector<TokenId> tokens(kPass);
      for (int64_t n = 0; n < tokens_of_text; n += kPass) {
        for (int64_t i = 0; i < kPass; ++i) {
          tokens[i] = text == "random"     ? static_cast<TokenId>(CounterUniform(kSeed, n + i) * 10)
                      : text == "constant" ? 0
                                           : static_cast<TokenId>(i % 2);
        }
        for (const float logit : run.Feed(tokens)) ASSERT_TRUE(std::isfinite(logit));
      }
      EXPECT_EQ(run.state().block.size(), bytes);
      // theta_max c / (1 - eta_max) a token is the most that the weights of a head can move.
      const double bound = static_cast<double>(run.state().position) / (1 - 0.95);
      double moved = 0;
      for (int l = 0; l < options.depth; ++l) {
        const std::vector<float> now = run.Copy(0, "memory_" + std::to_string(l));
        const std::vector<float> init = InitOf(*c, 0, l);
        for (size_t i = 0; i < now.size() / 2; ++i) moved += std::pow(now[i] - init[i], 2);
      }
      EXPECT_LE(std::sqrt(moved), bound);
      EXPECT_GT(moved, 0);
    }
  }
}

// Activations of any size: the norms before and behind the memory take it away.
TEST_P(TitansTest, HugeEmbeddingsStayFinite) {
  for (const FakeTitansOptions& options : AllOptions()) {
    SCOPED_TRACE(Describe(options));
    auto c = FakeTitans(options);
    for (float& x : c->Add("model.embed_tokens.weight", {10, 12}, 1)) x *= 1e15f;
    for (const float logit : Runner(c, GetParam()).Feed(kTokens)) EXPECT_TRUE(std::isfinite(logit));
    // A projection of zeros gives keys of zeros.
    c = FakeTitans(options);
    for (const char* layer : {"0", "1"}) {
      const std::string name = "model.layers." + std::string(layer) + ".memory.k_proj.weight";
      for (float& x : c->Add(name, {10, 12})) x = 0;
    }
    for (const float logit : Runner(c, GetParam()).Feed(kTokens)) EXPECT_TRUE(std::isfinite(logit));
  }
}

TEST_P(TitansTest, PersistentTokensAreSeenForever) {
  for (const char* variant : {"mac", "mag", "mal"}) {
    auto c = FakeTitans({.variant = variant});
    const std::vector<float> base = Runner(c, GetParam()).Feed(kTokens);
    for (float& x : c->Add("model.layers.0.self_attn.persistent", {2, 12}, 1)) x += 1;
    const std::vector<float> other = Runner(c, GetParam()).Feed(kTokens);
    for (size_t t = 0; t < kTokens.size(); ++t) {
      EXPECT_FALSE(SameBits(From(other, t).first(kVocab), From(base, t).first(kVocab))) << t;
    }
  }
}

// The document's formula, written out once more.
int64_t DocumentedBytes(const FakeTitansOptions& o, int64_t kv_bytes) {
  const int64_t H = 2, e = 5, h = 7, b = 4, K = 3, dm = 10, d = 12, W = 6;
  const int64_t P = o.depth == 1 ? e * e : 2 * e * h + (o.depth - 2) * h * h;
  int64_t bytes = 8 * H * P;
  bytes += o.read_mode == "token" ? 4 * H * P : 4 * (b - 1) * H * (2 * e + 3);
  bytes += 4 * (K - 1) * dm * (o.variant == "mac" ? 4 : 3);
  if (o.variant == "mac") bytes += 4 * kv_bytes * (b - 1) * d;
  if (o.variant == "mag" || o.variant == "mal") bytes += 2 * kv_bytes * (W - 1) * d;
  return o.layers * bytes;
}

TEST_P(TitansTest, StateIsWhatTheDocumentSays) {
  for (const FakeTitansOptions& options : AllOptions()) {
    for (const auto& [dtype, bytes] : {std::pair{DType::kF32, 4}, std::pair{DType::kF16, 2}}) {
      SCOPED_TRACE(Describe(options));
      Runner run(FakeTitans(options), GetParam(), {.kv_dtype = dtype});
      int64_t sum = 0;
      for (const StateTensor& tensor : run.arch().schema().tensors()) {
        sum += static_cast<int64_t>(tensor.size_bytes);
      }
      EXPECT_EQ(sum, DocumentedBytes(options, bytes));
      EXPECT_THAT(run.arch().info().state_formula,
                  testing::EndsWith(" = " + std::to_string(sum) + " bytes"));
      EXPECT_EQ(run.arch().info().effective_context_tokens, 0);
      EXPECT_EQ(run.arch().schema().Find(1, "memory_0")->dtype, DType::kF32);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TitansTest, testing::ValuesIn(BackendNameList()),
                         [](const auto& info) { return std::string(info.param); });

TEST(TitansStateTest, OrderOfTensors) {
  const auto names = [](const FakeTitansOptions& options) {
    auto arch = Titans::Create(FakeTitans(options), {.kv_dtype = DType::kF16});
    EXPECT_TRUE(arch.ok()) << arch.status();
    std::vector<std::string> names;
    for (const StateTensor& tensor : (*arch)->schema().tensors()) {
      if (tensor.layer == 1) names.push_back(tensor.name);
      const bool ring = tensor.kind == StateKind::kRing;
      EXPECT_EQ(ring, tensor.name == "k" || tensor.name == "v");
      const bool keys = ring || tensor.name.starts_with("h_") || tensor.name.starts_with("x_");
      EXPECT_EQ(tensor.dtype, keys ? DType::kF16 : DType::kF32) << tensor.name;
      EXPECT_EQ(tensor.window, ring ? 5 : 0);
    }
    return names;
  };
  EXPECT_THAT(names({.variant = "mag", .read_mode = "token"}),
              testing::ElementsAre("memory_0", "memory_1", "momentum_0", "momentum_1", "running_0",
                                   "running_1", "conv_q", "conv_k", "conv_v", "k", "v"));
  EXPECT_THAT(
      names({.variant = "mac", .depth = 1}),
      testing::ElementsAre("memory_0", "momentum_0", "pending_k", "pending_v", "pending_rates",
                           "conv_q", "conv_k", "conv_v", "conv_q2", "h_k", "h_v", "x_k", "x_v"));
}

TEST(TitansOptionsTest, ChunksAndTapsOfOne) {
  auto c = FakeTitans();
  c->Set("memory_chunk_tokens", int64_t{1});
  c->Set("conv_taps", int64_t{1});
  for (const char* layer : {"0", "1"}) {
    for (const char* name : {"q", "k", "v"}) {
      c->Add("model.layers." + std::string(layer) + ".memory." + name + "_conv.weight", {10, 1});
    }
  }
  Runner whole(c, "cpu"), cut(c, "cpu");
  EXPECT_EQ(whole.arch().schema().tensors().size(), 2 * 4);
  const std::vector<float> logits = whole.Feed(kTokens);
  EXPECT_FALSE(SameBits(whole.Copy(0, "memory_0"), InitOf(*c, 0, 0)));
  for (size_t t = 0; t < kTokens.size(); ++t) {
    EXPECT_TRUE(SameBits(cut.Feed({&kTokens[t], 1}), From(logits, t).first(kVocab)));
  }
}

TEST(TitansOptionsTest, RefusesOtherTypesOfKeysAndValues) {
  const absl::Status status = Titans::Create(FakeTitans(), {.kv_dtype = DType::kQ8_0}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("kv_dtype"));
}

TEST(TitansOptionsTest, RefusesAStateBeyondAnyMachine) {
  auto c = FakeTitans({.variant = "mag", .layers = 1});
  c->Set("window_tokens", int64_t{1} << 24);
  c->Set("memory_chunk_tokens", int64_t{1} << 24);
  EXPECT_TRUE(Titans::Create(c, {}).ok());  // 1.8 GB: a wish
  absl::StatusOr<Config> config = ParseConfig(*c);
  ASSERT_TRUE(config.ok());
  config->width = 1 << 24;
  const absl::Status status = StateMap::Create(*config, DType::kF32).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("window_tokens"));
}

}  // namespace
}  // namespace mneme::engine::titans
