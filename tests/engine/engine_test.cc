#include "engine/engine.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/compare.h"

namespace mneme::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

std::string Tiny(const char* name) { return std::string(MNEME_TINY_DIR) + "/" + name; }

std::unique_ptr<Engine> LoadTiny(const char* name = "tiny-llama-q.gguf",
                                 EngineOptions options = {}) {
  options.checkpoint_path = Tiny(name);
  auto engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

TEST(EngineTest, LoadTellsWhatItLoaded) {
  std::unique_ptr<Engine> engine = LoadTiny();
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->info().architecture, "llama");
  EXPECT_EQ(engine->model_name(), "tiny-llama-q");
  EXPECT_EQ(engine->model_fingerprint().size(), 32u);
  EXPECT_EQ(engine->snapshot_identity().model_fingerprint, engine->model_fingerprint());
  EXPECT_EQ(engine->tokenizer().vocab_size(), engine->info().vocab_size);
  ASSERT_NE(engine->chat_template(), nullptr) << engine->chat_template_problem();
  EXPECT_THAT(DescribeMachine(), HasSubstr("processors"));
}

TEST(EngineTest, NumericsIdSaysWhatDecidesBits) {
  std::set<std::string> ids;
  for (const Contract contract : {Contract::kF32, Contract::kInt8}) {
    for (const DType kv : {DType::kF16, DType::kF32}) {
      ids.insert(LoadTiny("tiny-llama-q.gguf", {.contract = contract, .arch = {.kv_dtype = kv}})
                     ->numerics_id());
    }
  }
  EXPECT_EQ(ids.size(), 4u);
  // The build: a hash of the sources that compute.
  EXPECT_THAT(*ids.begin(), MatchesRegex("mneme-[0-9.]+\\+[0-9a-f]{12}\\..*"));
  // Without quantised weights int8 is f32, and says so.
  EXPECT_THAT(LoadTiny("tiny-llama-f32.gguf", {.contract = Contract::kInt8})->numerics_id(),
              Not(HasSubstr("int8")));
}

TEST(EngineTest, LoadRefusesWithTheReason) {
  auto status = [](EngineOptions options) { return Engine::Load(options).status(); };
  EXPECT_EQ(status({.checkpoint_path = Tiny("absent.gguf")}).code(), absl::StatusCode::kNotFound);
  const absl::Status backend =
      status({.checkpoint_path = Tiny("tiny-llama-q.gguf"), .backend = "abacus"});
  EXPECT_EQ(backend.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(backend.message()), HasSubstr("reference"));
  EXPECT_EQ(
      status(
          {.checkpoint_path = Tiny("tiny-llama-q.gguf"), .backend = "reference", .num_threads = -1})
          .code(),
      absl::StatusCode::kInvalidArgument);
}

class StepTest : public testing::Test {
 protected:
  void SetUp() override {
    engine_ = LoadTiny();
    ASSERT_NE(engine_, nullptr);
    state_ = engine_->CreateState();
    logits_.resize(8 * engine_->info().vocab_size);
  }
  // Nothing may be read when a step is refused.
  void ExpectRefused(std::vector<EngineSlice> slices, const char* why) {
    const State before = state_.Clone();
    const absl::Status status = engine_->Step(slices);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_EQ(state_.position, before.position);
    EXPECT_EQ(std::memcmp(state_.block.data(), before.block.data(), before.block.size()), 0);
  }

  std::unique_ptr<Engine> engine_;
  State state_;
  std::vector<float> logits_;
};

TEST_F(StepTest, RefusesBadSlicesBeforeReadingAny) {
  const std::vector<TokenId> good = {1, 2, 3};
  const std::vector<TokenId> negative = {1, -1}, beyond = {1, TokenId(engine_->info().vocab_size)};
  State other = engine_->CreateState();
  State foreign{.block = HostMemory().Allocate(64)};
  const EngineSlice fine{.state = &state_, .tokens = good};
  ExpectRefused({fine, {.state = &other, .tokens = negative}}, "slice 1: token 1 is -1");
  ExpectRefused({fine, {.state = &other, .tokens = beyond}}, "slice 1: token 1");
  ExpectRefused({fine, {.state = &other}}, "num_logits is 0, expected 1..1");
  ExpectRefused({fine, {.state = &other, .num_logits = 1, .logits = logits_.data()}},
                "no hidden row");
  ExpectRefused({fine, {.state = nullptr, .tokens = good}}, "slice 1: its state");
  ExpectRefused({fine, {.state = &foreign, .tokens = good}}, "slice 1: its state");
  ExpectRefused({fine, {.state = &state_, .tokens = good}}, "share a state");
  ExpectRefused({{.state = &state_, .tokens = good, .num_logits = 4, .logits = logits_.data()}},
                "num_logits is 4");
  ExpectRefused({{.state = &state_, .tokens = good, .num_logits = -1, .logits = logits_.data()}},
                "num_logits is -1");
  ExpectRefused({{.state = &state_, .tokens = good, .num_logits = 1}}, "room");
}

TEST_F(StepTest, WithoutTokensAStateSaysItsLogitsAgain) {
  const int64_t V = engine_->info().vocab_size;
  const std::vector<TokenId> tokens = {1, 2, 3}, more = {4, 5};
  State other = engine_->CreateState();
  std::vector<float> first(V), second(V), alone(V);
  const EngineSlice reads[] = {
      {.state = &state_, .tokens = tokens, .num_logits = 1, .logits = first.data()},
      {.state = &other, .tokens = more, .num_logits = 1, .logits = alone.data()}};
  ASSERT_TRUE(engine_->Step(reads).ok());
  EXPECT_EQ(static_cast<int64_t>(state_.hidden.size()), engine_->hidden_size());
  const State clone = state_.Clone();

  // Beside one that reads, in front of it.
  State third = engine_->CreateState();
  std::vector<float> again(V);
  const EngineSlice mixed[] = {
      {.state = &state_, .num_logits = 1, .logits = again.data()},
      {.state = &third, .tokens = more, .num_logits = 1, .logits = second.data()}};
  ASSERT_TRUE(engine_->Step(mixed).ok());
  EXPECT_EQ(again, first);
  EXPECT_EQ(second, alone);
  EXPECT_EQ(state_.position, 3);
  EXPECT_EQ(state_.hidden, clone.hidden);

  // What nobody asks for is not known.
  const EngineSlice silent{.state = &state_, .tokens = more};
  ASSERT_TRUE(engine_->Step({&silent, 1}).ok());
  EXPECT_TRUE(state_.hidden.empty());
}

TEST(EngineTest, AContextLimitIsKept) {
  std::unique_ptr<Engine> engine =
      LoadTiny("tiny-llama-q.gguf",
               {.arch = {.window_tokens = 100, .overflow = ArchOptions::Overflow::kError}});
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->info().context_limit_tokens, 100);
  EXPECT_EQ(engine->schema().position_limit(), 100);
  State state = engine->CreateState();
  const std::vector<TokenId> tokens(101, 5);
  const auto feed = [&](int64_t count) {
    const EngineSlice slice{.state = &state, .tokens = std::span(tokens).first(count)};
    return engine->Step({&slice, 1});
  };
  EXPECT_EQ(feed(101).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(state.position, 0) << "nothing was read";
  EXPECT_TRUE(feed(99).ok());
  EXPECT_EQ(feed(2).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(feed(1).ok());
  EXPECT_EQ(state.position, 100);
}

TEST_F(StepTest, AnEmptyStepIsFine) { EXPECT_TRUE(engine_->Step({}).ok()); }

// Longer than a pass (512 tokens) and than the window: cut inside, same bits.
TEST_F(StepTest, InputsOfAnyLengthAreCutInsideWithoutATrace) {
  const int64_t V = engine_->info().vocab_size;
  std::vector<TokenId> tokens(1300);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = (i * 7919) % V;
  State other = engine_->CreateState(), one_by_one = engine_->CreateState();
  std::vector<float> last(5 * V), other_last(V), expected(V);
  const std::vector<EngineSlice> slices = {
      {.state = &state_, .tokens = tokens, .num_logits = 5, .logits = last.data()},
      {.state = &other,
       .tokens = std::span(tokens).first(700),
       .num_logits = 1,
       .logits = other_last.data()}};
  ASSERT_TRUE(engine_->Step(slices).ok());
  EXPECT_EQ(state_.position, 1300);
  EXPECT_EQ(other.position, 700);
  for (size_t begin = 0; begin < tokens.size(); begin += 100) {
    const EngineSlice slice{.state = &one_by_one,
                            .tokens = std::span(tokens).subspan(begin, 100),
                            .num_logits = 1,
                            .logits = expected.data()};
    ASSERT_TRUE(engine_->Step({&slice, 1}).ok());
    if (begin + 100 == 700) {
      EXPECT_TRUE(test::SameBits(other_last, expected));
    }
  }
  EXPECT_TRUE(test::SameBits(std::span(last).last(V), expected));
  EXPECT_EQ(std::memcmp(state_.block.data(), one_by_one.block.data(), state_.block.size()), 0);
}

TEST_F(StepTest, SubmitReturnsBeforeTheStepAndWaitHasItsResult) {
  const std::shared_ptr<Device> device = *CreateDevice(AllBackends().back()->name, 1);
  auto engine = LoadTiny("tiny-llama-q.gguf", {.device = device});
  ASSERT_NE(engine, nullptr);
  const std::vector<TokenId> tokens = {1, 5, 9};
  const size_t vocab_size = engine->info().vocab_size;
  State stepped = engine->CreateState(), submitted = engine->CreateState();
  std::vector<float> expected(vocab_size), logits(vocab_size);
  const auto slice = [&](State& state, std::vector<float>& out) {
    return EngineSlice{.state = &state, .tokens = tokens, .num_logits = 1, .logits = out.data()};
  };
  const EngineSlice first = slice(stepped, expected), second = slice(submitted, logits);
  ASSERT_TRUE(engine->Step({&first, 1}).ok());

  Engine::Ticket ticket;
  {
    const Turns::Hold turn(device->turns());  // no step can begin
    ticket = engine->Submit({&second, 1});
    EXPECT_EQ(submitted.position, 0);
  }
  EXPECT_TRUE(engine->Wait(ticket).ok());
  EXPECT_EQ(submitted.position, 3);
  EXPECT_EQ(logits, expected);

  const EngineSlice empty{.state = &submitted};
  EXPECT_EQ(engine->Wait(engine->Submit({&empty, 1})).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StepTest, ForEachVisitsEveryNumberOnce) {
  for (const int64_t n : {0, 1, 2, 100}) {
    std::vector<std::atomic<int>> visits(n);
    engine_->ForEach(n, [&](int64_t i) { ++visits[i]; });
    for (const auto& count : visits) EXPECT_EQ(count, 1) << "of " << n;
  }
}

TEST_F(StepTest, ReportsTheSliceWhoseLogitsAreNotFiniteAndSparesTheOthers) {
  const std::vector<TokenId> tokens = {5, 6, 7};
  State good = engine_->CreateState(), alone = engine_->CreateState();
  const int64_t V = engine_->info().vocab_size;
  std::vector<float> bad_logits(V), good_logits(V), expected(V);
  const EngineSlice read{.state = &state_, .tokens = tokens};
  ASSERT_TRUE(engine_->Step({&read, 1}).ok());
  // A value of infinity in the ring, as a broken memory would leave it.
  const StateTensor* v = engine_->schema().Find(0, "v");
  ASSERT_NE(v, nullptr);
  ASSERT_EQ(v->dtype, DType::kF16);
  *state_.block.as<uint16_t>(v->offset_bytes) = 0x7c00;

  const std::vector<EngineSlice> slices = {
      {.state = &good, .tokens = tokens, .num_logits = 1, .logits = good_logits.data()},
      {.state = &state_, .tokens = tokens, .num_logits = 1, .logits = bad_logits.data()}};
  std::vector<int> non_finite;
  const absl::Status status = engine_->Step(slices, &non_finite);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not finite"));
  EXPECT_THAT(non_finite, ElementsAre(1));
  const EngineSlice same{
      .state = &alone, .tokens = tokens, .num_logits = 1, .logits = expected.data()};
  ASSERT_TRUE(engine_->Step({&same, 1}, &non_finite).ok());
  EXPECT_TRUE(non_finite.empty());
  EXPECT_TRUE(test::SameBits(good_logits, expected));
}

}  // namespace
}  // namespace mneme::engine
