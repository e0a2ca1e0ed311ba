// A CUDA device: its memory, the stream that keeps calls in order, and what launchers need.
//
// The only file, with runtime.cc, that allocates. Nothing here waits but Read, Wait and what says
// so.
//
// An error is one of three things. Memory that ran out is an answer: std::bad_alloc, or
// RESOURCE_EXHAUSTED of the next Wait. Another error of a launch that CUDA gets over is the next
// Wait's. What CUDA repeats whatever it is asked (an illegal address, an ECC error) is the device's
// fault, for good; so is a copy that did not happen, because nobody could tell what it left behind
// from what was to be there.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "engine/core/mutex.h"
#include "engine/core/thread_pool.h"
#include "engine/device/device.h"
#include "engine/device/rope_table.h"

namespace mneme::engine::cuda {

// "cudaErrorX: text".
std::string Describe(cudaError_t error);

class CudaDevice;

class CudaMemory final : public Memory {
 public:
  explicit CudaMemory(CudaDevice& device) : device_(device) {}

  bool OnHost() const override { return false; }
  int64_t CapacityBytes() const override;
  void Write(Block& to, size_t at, std::span<const std::byte> bytes) override;
  absl::Status Read(const Block& from, size_t at, std::span<std::byte> bytes) const override;
  void Copy(const Block& from, size_t at, size_t size_bytes, Block& to) override;
  const std::byte* Map(std::span<const std::byte> file, Block& store) override;

 protected:
  std::byte* AllocateBytes(size_t size_bytes) override;
  void Free(std::byte* at, size_t size_bytes) override;

 private:
  CudaDevice& device_;
};

// Host memory that is copied to the device in one piece per call: launchers' lists. Two halves take
// turns; one is written again once the device has read it.
class Staging {
 public:
  explicit Staging(CudaDevice& device) : device_(device) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // A place of `bytes` on the host and its image on the device, 16-byte aligned. The image is good
  // for launches from Send until the next Reserve of as much as a half.
  struct Place {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    size_t bytes = 0;
  };
  Place Reserve(size_t bytes);
  void Send(const Place& place);

 private:
  void Grow(size_t half_bytes);
  void Release();

  CudaDevice& device_;
  std::byte* host_ = nullptr;
  std::byte* image_ = nullptr;
  size_t half_bytes_ = 0;
  size_t used_ = 0;  // of the half in use
  int half_ = 0;
  cudaEvent_t read_[2] = {};  // when the device has read a half
};

class CudaDevice final : public Device {
 public:
  // FAILED_PRECONDITION without a usable device, with the driver's words; INVALID_ARGUMENT if there
  // are devices, but none of that number.
  static absl::StatusOr<std::unique_ptr<Device>> Create(std::string_view name,
                                                        const Kernels& kernels, int num_threads,
                                                        int ordinal);
  ~CudaDevice() override;

  std::string_view name() const override { return name_; }
  std::string place() const override { return place_; }
  std::string description() const override { return properties_.name; }
  std::string numerics() const override { return numerics_; }
  const Kernels& kernels() const override { return kernels_; }
  Memory& memory() override { return memory_; }
  absl::Status Wait() override;
  absl::Status Fault() const override;
  void ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) override {
    pool_.Run(n, [&](int64_t i, int) { fn(i); });
  }

  // Makes it the calling thread's device, as most of CUDA's calls want it.
  void Use();
  // At least one byte, contents undefined. Throws std::bad_alloc.
  std::byte* AllocateOnDevice(size_t bytes);
  std::byte* AllocatePinned(size_t bytes);
  // For copies: throws std::bad_alloc if memory ran out; anything else is the device's fault.
  void CheckCopy(cudaError_t error, const char* what);

  // ---- for launchers, called by one thread that holds the turn

  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }
  Staging& staging() { return staging_; }
  // At least `bytes` on the device, contents undefined, until the next call of the same slot.
  enum Slot { kScratchA, kScratchB, kNumSlots };
  std::byte* Scratch(Slot slot, size_t bytes);
  // Cosines, then sines, each [T, pairs] on the device, of the angles of rope.h. Good for launches
  // until four other tables have been asked for.
  const float* RopeTable(std::span<const int64_t> positions, std::span<const double> theta);
  // `bytes` from the device to the host's `to` by the end of the next Wait.
  void Deliver(const std::byte* from, void* to, size_t bytes);

  // Lets launches of the kernel ask for all the shared memory that a block can have. The driver is
  // told once. False after an error.
  template <typename... Params>
  bool MayShareMore(void (*kernel)(Params...)) {
    const auto* key = reinterpret_cast<const void*>(kernel);
    if (std::find(sharing_.begin(), sharing_.end(), key) != sharing_.end()) return true;
    if (!Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(properties_.sharedMemPerBlockOptin)),
               "shared memory of a kernel")) {
      return false;
    }
    sharing_.push_back(key);
    return true;
  }

  // Keeps the first error for Wait. True if there was none.
  bool Check(cudaError_t error, const char* what);

 private:
  CudaDevice(std::string_view name, const Kernels& kernels, int num_threads, int ordinal,
             const cudaDeviceProp& properties);

  absl::Status Failed(cudaError_t error, const char* what) const;
  std::byte* OrBadAlloc(cudaError_t error, void* at);

  // At least `bytes` at `at`, which has `has`; contents are lost where they do not suffice.
  void Grow(std::byte*& at, size_t& has, size_t bytes);
  // What the device has delivered, to where it is wanted.
  void HandOut();

  const std::string_view name_;
  const int ordinal_;
  const std::string place_;
  const Kernels& kernels_;
  const cudaDeviceProp properties_;
  const std::string numerics_;
  ThreadPool pool_;
  cudaStream_t stream_ = nullptr;
  CudaMemory memory_{*this};
  Staging staging_{*this};
  std::byte* scratch_[kNumSlots] = {};
  size_t scratch_bytes_[kNumSlots] = {};
  std::vector<const void*> sharing_;  // kernels that MayShareMore was asked about: a few
  RopeTables rope_tables_;
  // What the device has of them.
  struct RopeCopy {
    int64_t id = 0;  // of the table
    std::byte* at = nullptr;
    size_t bytes = 0;
  };
  RopeCopy rope_copies_[RopeTables::kTables];
  int next_rope_copy_ = 0;
  struct Delivery {
    size_t at;
    void* to;
    size_t bytes;
  };
  std::vector<Delivery> deliveries_;
  std::byte* delivered_ = nullptr;  // pinned
  size_t delivered_bytes_ = 0;
  size_t delivered_used_ = 0;

  mutable Mutex mutex_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);  // the first since Wait
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);  // the first of those that stay
};

}  // namespace mneme::engine::cuda
