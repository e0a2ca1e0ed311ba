// The emulator itself: what it must execute, and the faults that it must see. A GPU forgives most
// of these silently.
#include <gtest/gtest.h>

#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "tests/support/cuemu/counts.h"

namespace {

// Memory of the emulated device with the host's view of it.
template <typename T>
class Array {
 public:
  explicit Array(std::vector<T> values, cudaStream_t stream)
      : values_(std::move(values)), stream_(stream) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&at_), Bytes()), cudaSuccess);
    EXPECT_EQ(cudaMemcpyAsync(at_, values_.data(), Bytes(), cudaMemcpyHostToDevice, stream_),
              cudaSuccess);
  }
  ~Array() { cudaFree(at_); }
  T* device() { return at_; }
  std::vector<T> Read() {
    EXPECT_EQ(cudaMemcpyAsync(values_.data(), at_, Bytes(), cudaMemcpyDeviceToHost, stream_),
              cudaSuccess);
    return values_;
  }

 private:
  size_t Bytes() const { return values_.size() * sizeof(T); }
  std::vector<T> values_;
  cudaStream_t stream_;
  T* at_ = nullptr;
};

class CuemuTest : public testing::Test {
 protected:
  CuemuTest() {
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~CuemuTest() override { cudaStreamDestroy(stream_); }

  template <typename... Params, typename... Args>
  cudaError_t Launch(void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared,
                     Args... args) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream_;
    return cudaLaunchKernelEx(&config, kernel, args...);
  }
  cudaError_t Finish() { return cudaStreamSynchronize(stream_); }

  cudaStream_t stream_ = nullptr;
};
// A fault is for the rest of the process, as on a device: each runs in a process of its own.
using CuemuDeathTest = CuemuTest;

void ReverseThroughShared(const int* in, int* out) {
  int* shared = reinterpret_cast<int*>(cuemu::SharedMemory());
  const int at = static_cast<int>(blockIdx.x * blockDim.x);
  shared[threadIdx.x] = in[at + static_cast<int>(threadIdx.x)];
  __syncthreads();
  out[at + static_cast<int>(threadIdx.x)] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST_F(CuemuTest, BlocksShareMemoryAcrossABarrier) {
  std::vector<int> values(3 * 96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  Array<int> in(values, stream_), out(std::vector<int>(values.size()), stream_);
  ASSERT_EQ(Launch(ReverseThroughShared, 3, 96, 96 * sizeof(int), in.device(), out.device()),
            cudaSuccess);
  const std::vector<int> result = out.Read();
  for (int i = 0; i < 3 * 96; ++i) EXPECT_EQ(result[i], i / 96 * 96 + 95 - i % 96) << i;
}

void Collect(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int* row = out + threadIdx.x * 4;
  row[0] = __shfl_xor_sync(0xffffffffu, lane, 5);
  row[1] = __shfl_sync(0xffffffffu, lane * 10, 3);
  row[2] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0) & 0x1ff);
  row[3] = __all_sync(0xffffffffu, lane < 32) + 2 * __any_sync(0xffffffffu, lane == 40);
}

TEST_F(CuemuTest, LanesOfAWarpExchange) {
  Array<int> out(std::vector<int>(64 * 4), stream_);
  ASSERT_EQ(Launch(Collect, 1, 64, 0, out.device()), cudaSuccess);
  const std::vector<int> result = out.Read();
  for (int thread = 0; thread < 64; ++thread) {
    const int lane = thread % 32;
    EXPECT_EQ(result[thread * 4], lane ^ 5);
    EXPECT_EQ(result[thread * 4 + 1], 30);
    EXPECT_EQ(result[thread * 4 + 2], 0b001001001);
    EXPECT_EQ(result[thread * 4 + 3], 1);
  }
}

void Increment(int* at) { at[0] += 1; }

// Nothing runs before it must: a launch is seen after a wait, not before.
TEST_F(CuemuTest, OperationsWaitForTheirStream) {
  const bool eager = std::getenv("CUEMU_STREAMS") != nullptr &&
                     std::string(std::getenv("CUEMU_STREAMS")) == "eager";
  int* pinned = nullptr;
  ASSERT_EQ(cudaHostAlloc(reinterpret_cast<void**>(&pinned), sizeof(int), cudaHostAllocDefault),
            cudaSuccess);
  *pinned = -7;
  Array<int> counter({5}, stream_);
  ASSERT_EQ(Launch(Increment, 1, 1, 0, counter.device()), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, counter.device(), sizeof(int), cudaMemcpyDeviceToHost, stream_),
            cudaSuccess);
  EXPECT_EQ(*pinned, eager ? 6 : -7);
  ASSERT_EQ(Finish(), cudaSuccess);
  EXPECT_EQ(*pinned, 6);
  ASSERT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST_F(CuemuTest, AnEventOrdersTwoStreams) {
  cudaStream_t other;
  cudaEvent_t event;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  Array<int> counter({1}, stream_);
  ASSERT_EQ(Launch(Increment, 1, 1, 0, counter.device()), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, event), cudaSuccess);
  int seen = 0;  // pageable: the copy waits for its stream
  ASSERT_EQ(cudaMemcpyAsync(&seen, counter.device(), sizeof(int), cudaMemcpyDeviceToHost, other),
            cudaSuccess);
  EXPECT_EQ(seen, 2);
  cudaEventDestroy(event);
  cudaStreamDestroy(other);
}

TEST_F(CuemuTest, FreshMemoryIsNoNumber) {
  float* at = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&at), 3 * sizeof(float)), cudaSuccess);
  float seen[3] = {};
  ASSERT_EQ(cudaMemcpyAsync(seen, at, sizeof seen, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  for (const float x : seen) EXPECT_NE(x, x);
  cudaFree(at);
}

TEST_F(CuemuTest, RefusesWhatADeviceRefuses) {
  Array<int> counter({0}, stream_);
  EXPECT_EQ(Launch(Increment, 1, 1025, 0, counter.device()), cudaErrorInvalidValue);
  EXPECT_EQ(Launch(Increment, dim3(1, 70000), 1, 0, counter.device()), cudaErrorInvalidValue);
  EXPECT_EQ(Launch(Increment, 1, 1, 60 << 10, counter.device()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(Increment, cudaFuncAttributeMaxDynamicSharedMemorySize, 60 << 10),
            cudaSuccess);
  EXPECT_EQ(Launch(Increment, 1, 1, 60 << 10, counter.device()), cudaSuccess);
  EXPECT_EQ(cudaFuncSetAttribute(Increment, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10),
            cudaErrorInvalidValue);
  void* huge = nullptr;
  EXPECT_EQ(cudaMalloc(&huge, size_t{1} << 40), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaFree(&huge), cudaErrorInvalidDevicePointer);
  while (cudaGetLastError() != cudaSuccess) {
  }
  EXPECT_EQ(Finish(), cudaSuccess);
}

void DivergentBarrier(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
    out[0] = 1;
  } else {
    __syncthreads();
    out[1] = 1;
  }
}
void LaneLeavesBeforeCollective(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
void NotInItsMask(int* out) { out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 1); }
void UnlikeCollectives(int* out) {
  out[threadIdx.x] = threadIdx.x % 2 == 0 ? __shfl_sync(0xffffffffu, 1, 1)
                                          : static_cast<int>(__ballot_sync(0xffffffffu, 1));
}
void Deadlock(int* out) {
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 1);
  }
}
void BeyondTheEnd(int* out) { out[4096] = 1; }

#define EXPECT_FAULT(kernel, text)                                                         \
  EXPECT_EXIT(                                                                             \
      {                                                                                    \
        Array<int> out(std::vector<int>(64), stream_);                                     \
        Launch(kernel, 1, 32, 0, out.device());                                            \
        std::exit(Finish() == cudaErrorLaunchFailure && cudaGetLastError() != 0 ? 42 : 1); \
      },                                                                                   \
      testing::ExitedWithCode(42), text)

TEST_F(CuemuDeathTest, FaultsStopTheLaunchAndStick) {
  EXPECT_FAULT(DivergentBarrier, "different barriers");
  EXPECT_FAULT(LaneLeavesBeforeCollective, "has returned");
  EXPECT_FAULT(NotInItsMask, "not in");
  EXPECT_FAULT(UnlikeCollectives, "different collectives");
  EXPECT_FAULT(Deadlock, "deadlock");
}

// Of two devices, in a process of its own: how many there are is asked once.
void TwoDevices() {
  const std::string order = testing::TempDir() + "cuemu-fault";
  setenv("CUEMU_DEVICES", "2", 1);
  setenv("CUEMU_FAULT", order.c_str(), 1);
  setenv("CUEMU_TOUCHED", "1", 1);
  cudaStream_t streams[2];
  int* counters[2];
  for (int device = 0; device < 2; ++device) {
    ASSERT_EQ(cudaSetDevice(device), cudaSuccess);
    ASSERT_EQ(cudaStreamCreateWithFlags(&streams[device], cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&counters[device]), sizeof(int)), cudaSuccess);
    ASSERT_EQ(cudaMemsetAsync(counters[device], 0, sizeof(int), streams[device]), cudaSuccess);
  }
  ASSERT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  const auto launch = [&](int device) {
    cudaLaunchConfig_t config{};
    config.stream = streams[device];
    return cudaLaunchKernelEx(&config, Increment, counters[device]);
  };
  const auto read = [&](int device) {
    int value = -1;
    EXPECT_EQ(cudaMemcpyAsync(&value, counters[device], sizeof value, cudaMemcpyDeviceToHost,
                              streams[device]),
              cudaSuccess);
    return value;
  };
  EXPECT_EQ(launch(1), cudaSuccess);
  EXPECT_EQ(launch(0), cudaErrorInvalidResourceHandle);  // the thread's device is 1
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  while (cudaGetLastError() != cudaSuccess) {
  }
  EXPECT_EQ(launch(0), cudaSuccess);
  EXPECT_EQ(read(0), 1);
  EXPECT_EQ(read(1), 1);
  // Of all devices; what was refused is none.
  EXPECT_EQ(cuemu_counts()->launches, 2);
  EXPECT_EQ(cuemu_counts()->copied_bytes, 8);
  EXPECT_EQ(cuemu_counts()->pages_written, 2);

  // An order of a fault holds for its device, from when it is given.
  std::ofstream(order) << "launch 2 0";
  EXPECT_EQ(launch(0), cudaSuccess);
  EXPECT_FALSE(std::ifstream(order).is_open());
  EXPECT_EQ(read(0), 2);
  EXPECT_EQ(launch(0), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(streams[0]), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::ofstream(order) << "malloc 1 1";
  void* at = nullptr;
  EXPECT_EQ(cudaMalloc(&at, 4), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMalloc(&at, 4), cudaSuccess);
  EXPECT_EQ(read(1), 1);
  std::ofstream(order) << "copy 1 1";
  int value = 0;
  EXPECT_EQ(cudaMemcpyAsync(&value, counters[1], sizeof value, cudaMemcpyDeviceToHost, streams[1]),
            cudaErrorECCUncorrectable);
  EXPECT_EQ(cudaMalloc(&at, 4), cudaErrorECCUncorrectable);
}

TEST(CuemuDevicesDeathTest, HaveMemoryStreamsAndFaultsOfTheirOwn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        TwoDevices();
        std::exit(testing::Test::HasFailure() ? 1 : 42);
      },
      testing::ExitedWithCode(42), "a fault as ordered, on device 0");
}

TEST_F(CuemuDeathTest, NobodyTouchesWhatIsNotTheirs) {
  Array<int> in(std::vector<int>(1), stream_);
  ASSERT_EQ(Finish(), cudaSuccess);
  // The host's hand on the device's memory, and a kernel's beyond an array's end.
  EXPECT_DEATH({ in.device()[0] = 1; }, "");
  EXPECT_DEATH(
      {
        Launch(BeyondTheEnd, 1, 1, 0, in.device());
        Finish();
      },
      "");
}

}  // namespace
