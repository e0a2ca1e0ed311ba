// Every architecture on a device whose memory the host cannot see: nothing looks through a weight,
// a state or an activation but kernels, and what comes back has the same bits.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/device/host_device.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"
#include "tests/support/compare.h"
#include "tests/support/remote_memory.h"

namespace mneme::engine {
namespace {

using test::SameBits;

class RemoteDevice final : public HostDevice {
 public:
  explicit RemoteDevice(const Kernels& kernels)
      : HostDevice(kernels.name, kernels.simd_target, kernels, /*num_threads=*/2) {}
  Memory& memory() override { return memory_; }

 private:
  test::RemoteMemory memory_;
};

std::vector<std::string> Checkpoints() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MNEME_TINY_DIR)) {
    const bool folder =
        entry.is_directory() && std::filesystem::exists(entry.path() / "model.safetensors");
    if (folder || entry.path().extension() == ".gguf") {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

// What a sequence leaves behind, by way of a snapshot and a clone.
struct Outcome {
  std::vector<float> logits;
  std::map<ChunkHash, std::string> chunks;
};

Outcome Live(std::shared_ptr<Device> device, const std::string& name) {
  auto loaded = Engine::Load(
      {.checkpoint_path = std::string(MNEME_TINY_DIR) + "/" + name, .device = std::move(device)});
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (!loaded.ok()) return {};
  Engine& engine = **loaded;
  const int64_t V = engine.info().vocab_size;
  Outcome outcome;
  State state = engine.CreateState(), other = engine.CreateState();
  // Two sequences, of which the second's logits are wanted in front of the first's.
  const auto feed = [&](State& a, int64_t count) {
    std::vector<TokenId> tokens(count);
    for (int64_t i = 0; i < count; ++i) {
      tokens[i] = static_cast<TokenId>((a.position + i) * 31 % V);
    }
    std::vector<float> logits(2 * V);
    const EngineSlice slices[] = {
        {.state = &a, .tokens = tokens, .num_logits = 1, .logits = &logits[V]},
        {.state = &other, .tokens = tokens, .num_logits = 1, .logits = logits.data()}};
    const absl::Status status = engine.Step(slices);
    EXPECT_TRUE(status.ok()) << status;
    outcome.logits.insert(outcome.logits.end(), logits.begin(), logits.end());
    std::vector<float> again(V);
    const EngineSlice nothing{.state = &a, .num_logits = 1, .logits = again.data()};
    EXPECT_TRUE(engine.Step({&nothing, 1}).ok());
    EXPECT_TRUE(SameBits(again, std::span(logits).last(V)));
  };
  feed(state, 40);
  State clone = state.Clone();
  feed(clone, 3);

  const auto encoded = EncodeSnapshot(engine.schema(), clone, engine.snapshot_identity(), nullptr);
  EXPECT_TRUE(encoded.ok()) << encoded.status();
  if (!encoded.ok()) return outcome;
  for (const auto& chunk : encoded->new_chunks) outcome.chunks[chunk.hash] = chunk.bytes;
  auto decoded = DecodeSnapshot(engine.states(), engine.snapshot_identity(), encoded->manifest,
                                [&](const ChunkHash& hash) -> absl::StatusOr<std::string> {
                                  return outcome.chunks.at(hash);
                                });
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  if (decoded.ok()) feed(*decoded, 5);
  return outcome;
}

class RemoteDeviceTest : public testing::TestWithParam<std::string> {};

TEST_P(RemoteDeviceTest, GivesTheBitsOfTheHost) {
  for (const Kernels* kernels : AllBackends()) {
    SCOPED_TRACE(kernels->name);
    auto host = CreateDevice(kernels->name, 2);
    ASSERT_TRUE(host.ok()) << host.status();
    const Outcome expected = Live(*std::move(host), GetParam());
    const Outcome actual = Live(std::make_shared<RemoteDevice>(*kernels), GetParam());
    EXPECT_TRUE(SameBits(actual.logits, expected.logits));
    EXPECT_TRUE(actual.chunks == expected.chunks);
    EXPECT_FALSE(actual.chunks.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, RemoteDeviceTest, testing::ValuesIn(Checkpoints()),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

}  // namespace
}  // namespace mneme::engine
