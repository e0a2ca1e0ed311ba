// What passes cost a GPU, counted without one: a device whose kernel table does not compute but
// adds up what each op's launches would read, write and calculate, by the arguments that it was
// called with. An architecture's cost is had by running it on such a device, so nothing says twice
// what a layer is; formulas and launchers are held together by cuda_cost_test, on the emulator.
//
// Times made of this are modelled, with the peaks of data sheets. They are bounds that point at
// what to change, and nothing is claimed from them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "engine/core/thread_pool.h"
#include "engine/device/device.h"
#include "engine/device/rope_table.h"
#include "engine/kernels/contract.h"

namespace mneme::engine::cuda {

// Of one call of an op. A launch reads each byte once that it needs and did not write itself, and
// writes each byte once: what its blocks share comes from the L2 cache, and bounds are lower ones.
// Lists of arguments are not counted, a few hundred bytes.
struct Cost {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t tensor_flops = 0;
  int64_t f32_flops = 0;  // a fused multiply-add is two
  int64_t int8_ops = 0;   // by __dp4a; a multiply-add is two
  int64_t launches = 0;
  int64_t copies = 0;  // between host and device: operations of the stream, as launches are
  int64_t steps = 0;   // in a row that cannot overlap: a token of a scan, a tile of keys
  int64_t blocks = 0;  // of the launch that does most: multiprocessors that can have work

  int64_t bytes() const { return bytes_read + bytes_written; }
  // Of calls one behind the other; blocks are the most of any.
  Cost& operator+=(const Cost& other);
};

// Paper peaks.
struct Peaks {
  std::string_view name;
  double bytes_per_second;
  double tensor_flops;  // bf16, dense
  double f32_flops;
  double int8_ops;  // by __dp4a
  int multiprocessors;
};
// NVIDIA H100 and H200 data sheets, SXM: 3.35 and 4.8 TB/s, 989 TFLOP/s in bf16 without sparsity,
// 67 TFLOP/s in f32, 132 multiprocessors. CUDA C++ Programming Guide, arithmetic instructions of
// compute capability 9.0: 128 fused multiply-adds in f32 per clock and multiprocessor, but 64 of
// __dp4a, which are 512 operations: twice the f32 peak.
inline constexpr Peaks kH100{"H100 SXM", 3.35e12, 989e12, 67e12, 134e12, 132};
inline constexpr Peaks kH200{"H200", 4.8e12, 989e12, 67e12, 134e12, 132};

// Assumed, of either: between two dependent launches or copies of a stream, and for a step whose
// operands pass through shared memory, a few shuffles and a barrier (some 350 clocks).
inline constexpr double kLaunchSeconds = 3e-6;
inline constexpr double kStepSeconds = 0.2e-6;
// A multiprocessor moves 64 bytes a clock from and to the L2 cache, at 1.98 GHz.
inline constexpr double kMultiprocessorBytes = 64 * 1.98e9;

// Of one call: the longest of its parts, then launches and copies. A launch of fewer blocks than
// there are multiprocessors has as many of them.
double ModelledSeconds(const Cost& cost, const Peaks& peaks);

// Computes nothing, or hands everything on. One thread at a time, as any device.
class CostDevice final : public Device {
 public:
  // Of each call of an op: before it, if that is given, and after it. `op` is its name in the
  // table.
  struct Observer {
    std::function<void(std::string_view op, const Cost& cost)> after;
    std::function<void()> before = {};
  };

  // Of memory that takes no memory: addresses alone. What is written is lost, what is read are
  // zeros, every row is finite. Models of any size fit.
  explicit CostDevice(Observer observer);
  // Before `under`, which must outlive it: everything happens there as without this.
  CostDevice(Observer observer, Device& under);
  ~CostDevice() override;

  std::string_view name() const override { return "cuda-cost"; }
  std::string description() const override { return "a count of what a GPU would do"; }
  std::string numerics() const override { return "none"; }
  const Kernels& kernels() const override;
  Memory& memory() override;
  absl::Status Wait() override;
  absl::Status Fault() const override;
  void ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) override;

  // ---- for its kernels
  Device* under() { return under_; }
  const Observer& observer() const { return observer_; }
  // Whether the device has the angles of these positions from calls before.
  bool HasAngles(std::span<const int64_t> positions, std::span<const double> theta);

 private:
  class Addresses;

  const Observer observer_;
  Device* const under_;
  const std::unique_ptr<Memory> addresses_;
  ThreadPool pool_{1};
  RopeTables rope_tables_;
  int64_t sent_[RopeTables::kTables] = {};  // ids of those on the device, as CudaDevice keeps them
  int next_sent_ = 0;
};

}  // namespace mneme::engine::cuda
