// A GPU that fails: what is passing is told from what stays, nothing of a lost memory is taken for
// a state, and the other GPUs go on. Each test loses a device of its own.
#include <cmath>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/child_process.h"
#include "tests/support/compare.h"
#include "tests/support/emulated_gpus.h"

namespace mneme::engine {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class DeviceFaultTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TemporaryFolder;
    gpus_ = new test::EmulatedGpus(/*count=*/4, folder_->path());
    ASSERT_TRUE(OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  }
  static void TearDownTestSuite() {
    delete gpus_;
    delete folder_;
  }

  // Pages: its states grow by allocations of their own.
  static std::unique_ptr<Engine> Load(int ordinal) {
    auto device = CreateDevice("cuda-emu", 1, ordinal);
    EXPECT_TRUE(device.ok()) << device.status();
    if (!device.ok()) return nullptr;
    EngineOptions options{.checkpoint_path = std::string(MNEME_TINY_DIR) + "/tiny-llama-q.gguf",
                          .device = *std::move(device)};
    options.arch.overflow = ArchOptions::Overflow::kError;
    auto engine = Engine::Load(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return engine.ok() ? *std::move(engine) : nullptr;
  }
  // Feeds `count` tokens; the logits after them are `logits`.
  static absl::Status Feed(Engine& engine, State& state, int64_t count,
                           std::vector<float>* logits = nullptr) {
    std::vector<TokenId> tokens(count);
    for (int64_t i = 0; i < count; ++i) {
      tokens[i] = static_cast<TokenId>((state.position + i) * 31 % engine.info().vocab_size);
    }
    std::vector<float> out(engine.info().vocab_size);
    const EngineSlice slice{
        .state = &state, .tokens = tokens, .num_logits = 1, .logits = out.data()};
    const absl::Status status = engine.Step({&slice, 1});
    if (logits != nullptr) *logits = out;
    return status;
  }

  static test::TemporaryFolder* folder_;
  static test::EmulatedGpus* gpus_;
};
test::TemporaryFolder* DeviceFaultTest::folder_ = nullptr;
test::EmulatedGpus* DeviceFaultTest::gpus_ = nullptr;

TEST_F(DeviceFaultTest, AFaultOfALaunchIsForGoodAndOfItsDeviceAlone) {
  const auto lost = Load(0), other = Load(1);
  ASSERT_TRUE(lost != nullptr && other != nullptr);
  State state = lost->CreateState(), fresh = lost->CreateState(), elsewhere = other->CreateState();
  ASSERT_TRUE(Feed(*lost, state, 5).ok());
  ASSERT_TRUE(Feed(*other, elsewhere, 5).ok());

  gpus_->Order("launch 7 0");
  const absl::Status status = Feed(*lost, state, 3);
  ASSERT_TRUE(gpus_->Taken());
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cuda-emu:0"), HasSubstr("cudaErrorIllegalAddress")));
  EXPECT_EQ(state.position, 5);
  EXPECT_EQ(lost->device().Fault(), status);

  // From here on everything fails with the same words, and nothing looks like a state.
  EXPECT_EQ(Feed(*lost, fresh, 1), status);
  EXPECT_THROW((void)lost->CreateState(), std::bad_alloc);
  const auto encoded =
      EncodeSnapshot(lost->schema(), state, lost->snapshot_identity(), /*base=*/nullptr);
  EXPECT_EQ(encoded.status(), status);

  // The other device has not noticed.
  EXPECT_TRUE(other->device().Fault().ok());
  EXPECT_TRUE(Feed(*other, elsewhere, 3).ok());
}

TEST_F(DeviceFaultTest, ASnapshotIsNotMadeOfBytesThatWereNotRead) {
  const auto engine = Load(2);
  ASSERT_NE(engine, nullptr);
  State state = engine->CreateState();
  const absl::Status fed = Feed(*engine, state, 40);
  ASSERT_TRUE(fed.ok()) << fed;
  gpus_->Order("copy 2 2");
  const auto encoded =
      EncodeSnapshot(engine->schema(), state, engine->snapshot_identity(), /*base=*/nullptr);
  EXPECT_EQ(encoded.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(encoded.status().message()),
              AllOf(HasSubstr("cuda-emu:2"), HasSubstr("cudaErrorECCUncorrectable")));
  EXPECT_EQ(engine->device().Fault(), encoded.status());
}

TEST_F(DeviceFaultTest, MemoryThatRanOutIsOfOneStep) {
  const auto engine = Load(3);
  ASSERT_NE(engine, nullptr);
  State state = engine->CreateState(), other = engine->CreateState();
  std::vector<float> expected, logits;
  ASSERT_TRUE(Feed(*engine, state, 4, &expected).ok());
  ASSERT_TRUE(Feed(*engine, other, 4).ok());
  gpus_->Order("malloc 1 3");
  const absl::Status status = Feed(*engine, state, 2 * kPageTokens);  // needs pages
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(engine->device().Fault().ok());
  gpus_->Order("malloc 1 3");
  EXPECT_THROW((void)engine->CreateState(), std::bad_alloc);
  EXPECT_TRUE(engine->device().Fault().ok());

  // The state of the step is thrown away; others, and new ones, are as good as ever.
  EXPECT_TRUE(Feed(*engine, other, 2 * kPageTokens).ok());
  State fresh = engine->CreateState();
  ASSERT_TRUE(Feed(*engine, fresh, 4, &logits).ok());
  EXPECT_TRUE(test::SameBits(logits, expected));
}

// Bits belong to the kind of device, not to which of them it is.
TEST_F(DeviceFaultTest, WhichDeviceItIsIsNoPartOfNumericsId) {
  const auto one = Load(1), three = Load(3);
  ASSERT_TRUE(one != nullptr && three != nullptr);
  EXPECT_EQ(one->numerics_id(), three->numerics_id());
  EXPECT_THAT(one->numerics_id(), Not(HasSubstr(":")));
  State a = one->CreateState(), b = three->CreateState();
  std::vector<float> of_one, of_three;
  ASSERT_TRUE(Feed(*one, a, 9, &of_one).ok());
  ASSERT_TRUE(Feed(*three, b, 9, &of_three).ok());
  EXPECT_TRUE(test::SameBits(of_one, of_three));
  EXPECT_FALSE(std::isnan(of_one[0]));
}

}  // namespace
}  // namespace mneme::engine
