// Backends that are plugins: opened once, refused with the reason, and absent without harm.
#include "engine/kernels/plugin.h"

#include <cstdlib>
#include <string>

#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::engine {
namespace {

using testing::Contains;
using testing::HasSubstr;

TEST(PluginTest, IsOpenedOnce) {
  const size_t before = AllBackends().size();
  ASSERT_TRUE(OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  ASSERT_TRUE(OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  EXPECT_EQ(AllBackends().size(), before + 1);
  ASSERT_NE(FindBackend("cuda-emu"), nullptr);
  EXPECT_EQ(AllBackends().front()->name, "reference");
  EXPECT_THAT(BackendNames(), Contains("cuda-emu"));
}

TEST(PluginTest, OtherLibrariesAreRefused) {
  const absl::Status missing = OpenBackend("/nowhere/libmneme_x.so");
  EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/nowhere/libmneme_x.so"));
  const absl::Status foreign = OpenBackend("libm.so.6");
  EXPECT_EQ(foreign.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("not a backend of this program"));
}

// This program has no plugin beside it.
TEST(PluginTest, OneThatIsNotInstalledIsNamedAndSaysSo) {
  EXPECT_THAT(BackendNames(), Contains("cuda"));
  const absl::Status status = CreateDevice("cuda", 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("libmneme_cuda.so"));
}

// ctest runs this once with a device and once without (CUEMU_DEVICES=0).
TEST(PluginTest, AMachineWithoutADeviceSaysWhy) {
  ASSERT_TRUE(OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  const auto device = CreateDevice("cuda-emu", 1);
  const char* devices = std::getenv("CUEMU_DEVICES");
  if (devices == nullptr || std::string(devices) != "0") {
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ((*device)->name(), "cuda-emu");
    EXPECT_EQ((*device)->place(), "cuda-emu:0");
    EXPECT_EQ((*device)->numerics(), "sm_80");
    const absl::Status second = CreateDevice("cuda-emu", 1, /*ordinal=*/1).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(second.message()),
                HasSubstr("there is no CUDA device 1: this machine has 1, number 0"));
    return;
  }
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(device.status().message()),
              HasSubstr("no usable CUDA device: cudaErrorInsufficientDriver"));
}

}  // namespace
}  // namespace mneme::engine
