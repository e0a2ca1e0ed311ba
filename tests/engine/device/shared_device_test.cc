// Two models on one device: their passes take turns, and neither sees the other's scratch.
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_join.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/compare.h"
#include "tests/support/remote_memory.h"

namespace mneme::engine {
namespace {

using test::SameBits;

std::unique_ptr<Engine> Load(const std::string& name, std::shared_ptr<Device> device) {
  auto engine = Engine::Load(
      {.checkpoint_path = std::string(MNEME_TINY_DIR) + "/" + name, .device = std::move(device)});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::vector<float> Generate(Engine& engine, int steps) {
  const int64_t V = engine.info().vocab_size;
  State state = engine.CreateState();
  std::vector<float> all, logits(V);
  for (int i = 0; i < steps; ++i) {
    std::vector<TokenId> tokens(1 + i % 7);
    for (size_t j = 0; j < tokens.size(); ++j) tokens[j] = static_cast<TokenId>((i * 13 + j) % V);
    const EngineSlice slice{
        .state = &state, .tokens = tokens, .num_logits = 1, .logits = logits.data()};
    EXPECT_TRUE(engine.Step({&slice, 1}).ok());
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

TEST(SharedDeviceTest, ModelsStepAtTheSameTimeAsIfAlone) {
  auto made = CreateDevice("cpu", 2);
  ASSERT_TRUE(made.ok()) << made.status();
  const std::shared_ptr<Device> device = *std::move(made);
  const auto a = Load("tiny-llama-q.gguf", device), b = Load("tiny-titans-mac-a", device);
  ASSERT_TRUE(a != nullptr && b != nullptr);
  constexpr int kSteps = 40;
  const std::vector<float> alone_a = Generate(*a, kSteps), alone_b = Generate(*b, kSteps);
  std::vector<float> together_a, together_b;
  std::thread other([&] { together_b = Generate(*b, kSteps); });
  together_a = Generate(*a, kSteps);
  other.join();
  EXPECT_TRUE(SameBits(together_a, alone_a));
  EXPECT_TRUE(SameBits(together_b, alone_b));
}

TEST(SharedDeviceTest, AStateOfAnotherMemoryIsRefused) {
  auto device = CreateDevice("cpu", 1);
  ASSERT_TRUE(device.ok()) << device.status();
  const auto engine = Load("tiny-llama-q.gguf", *std::move(device));
  ASSERT_NE(engine, nullptr);
  test::RemoteMemory remote;
  State foreign = StatePool(remote, engine->schema()).Blank();
  const TokenId token = 1;
  const EngineSlice slice{.state = &foreign, .tokens = {&token, 1}};
  EXPECT_EQ(engine->Step({&slice, 1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(DeviceTest, IsMadeByTheNameOfItsBackend) {
  for (const Kernels* kernels : AllBackends()) {
    const auto device = CreateDevice(kernels->name, 0);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ((*device)->name(), kernels->name);
    EXPECT_FALSE((*device)->numerics().empty());
    EXPECT_TRUE((*device)->Wait().ok());
  }
  const absl::Status unknown = CreateDevice("abacus", 1).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()),
              testing::HasSubstr(absl::StrJoin(BackendNames(), ", ")));
  EXPECT_EQ(CreateDevice("cpu", -1).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status second = CreateDevice("cpu", 1, /*ordinal=*/1).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(second.message()),
              testing::HasSubstr("no device 1 of backend 'cpu': it has device 0 only"));
}

}  // namespace
}  // namespace mneme::engine
