// Properties of the architecture that hold for any weights (the goldens hold for some).
#include "engine/arch/infini/infini.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "engine/kernels/exec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/arch/infini/fake_infini.h"
#include "tests/support/compare.h"

namespace mneme::engine::infini {
namespace {

using test::AllClose;
using test::SameBits;

constexpr int64_t kVocab = 10;
constexpr int64_t kSegment = 5;

// One model on one backend, and one sequence.
class Runner {
 public:
  Runner(std::shared_ptr<const Checkpoint> checkpoint, std::string_view backend,
         ArchOptions options = {.kv_dtype = DType::kF32})
      : exec_(*FindBackend(backend), Contract::kF32, 1) {
    auto arch = Infini::Create(std::move(checkpoint), options);
    EXPECT_TRUE(arch.ok()) << arch.status();
    arch_ = *std::move(arch);
    state_.block = AlignedBuffer(arch_->schema().size_bytes());
  }

  // Logits after every token.
  std::vector<float> Feed(const std::vector<TokenId>& tokens) {
    std::vector<float> logits(tokens.size() * kVocab);
    const ArchSlice slice{.state = &state_,
                          .tokens = tokens,
                          .num_logits = static_cast<int64_t>(tokens.size()),
                          .logits = logits.data()};
    const absl::Status status = arch_->Forward(exec_, {&slice, 1});
    EXPECT_TRUE(status.ok()) << status;
    state_.position += static_cast<int64_t>(tokens.size());
    return logits;
  }

  std::vector<float> Values(int layer, const char* name) const {
    const StateTensor* tensor = arch_->schema().Find(layer, name);
    std::vector<float> values(tensor->size_bytes / sizeof(float));
    std::memcpy(values.data(), state_.block.data() + tensor->offset_bytes, tensor->size_bytes);
    return values;
  }
  const Arch& arch() const { return *arch_; }

 private:
  Exec exec_;
  std::unique_ptr<Arch> arch_;
  State state_;
};

std::span<const float> From(const std::vector<float>& logits, int64_t token) {
  return std::span(logits).subspan(token * kVocab);
}

class InfiniTest : public testing::TestWithParam<std::string_view> {};

TEST_P(InfiniTest, MemoryIsWrittenAtTheEndOfASegmentOnly) {
  for (const bool delta : {false, true}) {
    Runner run(FakeInfini(2, delta), GetParam());
    const std::vector<float> zeros(2 * 4 * 6);
    run.Feed({1, 2, 3, 4});
    EXPECT_TRUE(SameBits(run.Values(1, "memory"), zeros));
    EXPECT_FALSE(SameBits(run.Values(1, "pending_memory"), zeros));
    run.Feed({5});
    const std::vector<float> memory = run.Values(1, "memory");
    const std::vector<float> normalizer = run.Values(1, "normalizer");
    EXPECT_FALSE(SameBits(memory, zeros));
    for (const float z : normalizer) EXPECT_GT(z, 0);
    EXPECT_TRUE(SameBits(run.Values(1, "pending_memory"), zeros));
    EXPECT_TRUE(SameBits(run.Values(1, "pending_normalizer"), std::vector<float>(2 * 4)));
    run.Feed({6, 7, 8});  // a partial segment changes neither
    EXPECT_TRUE(SameBits(run.Values(1, "memory"), memory));
    EXPECT_TRUE(SameBits(run.Values(1, "normalizer"), normalizer));
  }
}

TEST_P(InfiniTest, AClosedGateLeavesSegmentsToThemselves) {
  auto closed = FakeInfini();
  for (const char* layer : {"0", "1"}) {
    closed->Add("model.layers." + std::string(layer) + ".self_attn.memory_gate", {4}) = {
        -1e9f, -1e9f, -1e9f, -1e9f};
  }
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
  const std::vector<float> all = Runner(closed, GetParam()).Feed(tokens);
  for (size_t begin = 0; begin < tokens.size(); begin += kSegment) {
    const size_t end = std::min(tokens.size(), begin + kSegment);
    const std::vector<float> alone =
        Runner(closed, GetParam()).Feed({tokens.begin() + begin, tokens.begin() + end});
    EXPECT_TRUE(SameBits(alone, From(all, begin).first(alone.size())));
  }
}

// One layer: what a segment stored does not depend on the order of its tokens.
TEST_P(InfiniTest, OrderInsideAnEarlierSegmentDoesNotMatter) {
  for (const bool delta : {false, true}) {
    const std::vector<float> straight =
        Runner(FakeInfini(1, delta), GetParam()).Feed({3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8});
    const std::vector<float> permuted =
        Runner(FakeInfini(1, delta), GetParam()).Feed({5, 1, 1, 3, 4, 9, 2, 6, 5, 3, 5, 8});
    EXPECT_FALSE(AllClose(From(permuted, 0), From(straight, 0), {1e-5, 1e-5}));
    EXPECT_TRUE(AllClose(From(permuted, kSegment), From(straight, kSegment), {1e-5, 1e-5}));
  }
}

// Linear adds segments up; delta writes what the memory does not say yet.
TEST_P(InfiniTest, OrderOfSegmentsMattersForDeltaOnly) {
  const std::vector<TokenId> ab = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 7, 8},
                             ba = {9, 2, 6, 5, 3, 3, 1, 4, 1, 5, 7, 8};
  for (const bool delta : {false, true}) {
    const std::vector<float> one = Runner(FakeInfini(1, delta), GetParam()).Feed(ab);
    const std::vector<float> other = Runner(FakeInfini(1, delta), GetParam()).Feed(ba);
    EXPECT_EQ(bool{AllClose(From(other, 10), From(one, 10), {1e-5, 1e-5})}, !delta);
  }
}

// A token that repeats in every row: linear stores k, v again and again; delta finds in segment 1
// that v is known and writes almost nothing, but its normaliser grows.
TEST_P(InfiniTest, DeltaWritesARepeatedPairOnce) {
  Runner linear(FakeInfini(1, false), GetParam()), delta(FakeInfini(1, true), GetParam());
  const std::vector<TokenId> segment(kSegment, 7);
  linear.Feed(segment);
  delta.Feed(segment);
  const std::vector<float> once = linear.Values(0, "memory");
  EXPECT_TRUE(AllClose(delta.Values(0, "memory"), once, {1e-5, 1e-5}));
  linear.Feed(segment);
  delta.Feed(segment);
  std::vector<float> twice = once;
  for (float& x : twice) x *= 2;
  EXPECT_TRUE(AllClose(linear.Values(0, "memory"), twice, {1e-5, 1e-5}));
  EXPECT_TRUE(AllClose(delta.Values(0, "memory"), once, {1e-4, 1e-4}));
  EXPECT_TRUE(SameBits(delta.Values(0, "normalizer"), linear.Values(0, "normalizer")));
}

TEST_P(InfiniTest, TheFirstSegmentMayBeUngated) {
  auto local = FakeInfini(1);
  local->Set("first_segment", std::string("local"));
  auto closed = FakeInfini(1);
  closed->Add("model.layers.0.self_attn.memory_gate", {4}) = {-1e9f, -1e9f, -1e9f, -1e9f};
  const std::vector<TokenId> tokens = {3, 1, 4, 1, 5, 9, 2};
  const std::vector<float> a = Runner(local, GetParam()).Feed(tokens);
  const std::vector<float> b = Runner(closed, GetParam()).Feed(tokens);
  const std::vector<float> gated = Runner(FakeInfini(1), GetParam()).Feed(tokens);
  EXPECT_TRUE(
      SameBits(std::span(a).first(kSegment * kVocab), std::span(b).first(kSegment * kVocab)));
  EXPECT_FALSE(AllClose(From(a, 0).first(kVocab), From(gated, 0).first(kVocab), {1e-5, 1e-5}));
  EXPECT_TRUE(AllClose(From(a, kSegment), From(gated, kSegment), {1e-5, 1e-5}));
}

TEST_P(InfiniTest, StateIsWhatTheDocumentSays) {
  const int64_t fixed = 8 * (4 * 6 + 4);
  for (const auto& [dtype, bytes] : {std::pair{DType::kF32, 4}, std::pair{DType::kF16, 2}}) {
    // Window and sinks are another architecture's options.
    Runner run(FakeInfini(), GetParam(), {.window_tokens = 3, .sink_tokens = 1, .kv_dtype = dtype});
    const StateSchema& schema = run.arch().schema();
    ASSERT_EQ(schema.tensors().size(), 12);
    int64_t sum = 0;
    for (const StateTensor& tensor : schema.tensors()) sum += tensor.size_bytes;
    EXPECT_EQ(sum, 2 * 2 * (fixed + bytes * kSegment * (4 + 6)));
    EXPECT_THAT(run.arch().info().state_formula,
                testing::EndsWith(" = " + std::to_string(sum) + " bytes"));
    EXPECT_EQ(run.arch().info().effective_context_tokens, 0);
    const StateTensor* k = schema.Find(1, "k");
    ASSERT_NE(k, nullptr);
    EXPECT_EQ(k->kind, StateKind::kRing);
    EXPECT_EQ(k->sinks, 0);
    EXPECT_EQ(k->window, kSegment);
    EXPECT_EQ(k->dtype, dtype);
    EXPECT_THAT(k->shape, testing::ElementsAre(kSegment, 8));
    EXPECT_EQ(schema.Find(1, "memory")->dtype, DType::kF32);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, InfiniTest, testing::Values("reference", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

TEST(InfiniOptionsTest, RefusesOtherTypesOfKeysAndValues) {
  const absl::Status status = Infini::Create(FakeInfini(), {.kv_dtype = DType::kQ8_0}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("kv_dtype"));
}

}  // namespace
}  // namespace mneme::engine::infini
