#include "engine/kernels/cuda/runtime.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme::engine::cuda {

std::string Describe(cudaError_t error) {
  return absl::StrCat(cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

// ---- memory

int64_t CudaMemory::CapacityBytes() const {
  return static_cast<int64_t>(device_.properties().totalGlobalMem);
}

std::byte* CudaMemory::AllocateBytes(size_t size_bytes) {
  std::byte* const at = device_.AllocateOnDevice(size_bytes);
  device_.CheckCopy(cudaMemsetAsync(at, 0, size_bytes, device_.stream()), "clearing memory");
  return at;
}

// The runtime waits for the device first.
void CudaMemory::Free(std::byte* at, size_t) {
  device_.Use();
  device_.Check(cudaFree(at), "freeing memory");
}

void CudaMemory::Write(Block& to, size_t at, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  device_.Use();
  device_.CheckCopy(cudaMemcpyAsync(to.address() + at, bytes.data(), bytes.size(),
                                    cudaMemcpyHostToDevice, device_.stream()),
                    "writing memory");
}

absl::Status CudaMemory::Read(const Block& from, size_t at, std::span<std::byte> bytes) const {
  if (bytes.empty()) return absl::OkStatus();
  device_.Use();
  device_.CheckCopy(cudaMemcpyAsync(bytes.data(), from.address() + at, bytes.size(),
                                    cudaMemcpyDeviceToHost, device_.stream()),
                    "reading memory");
  device_.CheckCopy(cudaStreamSynchronize(device_.stream()), "reading memory");
  return device_.Fault();
}

void CudaMemory::Copy(const Block& from, size_t at, size_t size_bytes, Block& to) {
  if (size_bytes == 0) return;
  device_.Use();
  device_.CheckCopy(cudaMemcpyAsync(to.address() + at, from.address() + at, size_bytes,
                                    cudaMemcpyDeviceToDevice, device_.stream()),
                    "copying memory");
}

const std::byte* CudaMemory::Map(std::span<const std::byte> file, Block& store) {
  store = Allocate(file.size());
  Write(store, 0, file);
  return store.address();
}

// ---- staging

Staging::~Staging() { Release(); }

void Staging::Release() {
  for (cudaEvent_t& event : read_) {
    if (event != nullptr) cudaEventDestroy(event);
    event = nullptr;
  }
  if (host_ != nullptr) cudaFreeHost(host_);
  if (image_ != nullptr) cudaFree(image_);
  host_ = image_ = nullptr;
  half_bytes_ = 0;
}

void Staging::Grow(size_t half_bytes) {
  device_.Check(cudaStreamSynchronize(device_.stream()), "staging");
  Release();
  host_ = device_.AllocatePinned(2 * half_bytes);
  image_ = device_.AllocateOnDevice(2 * half_bytes);
  for (cudaEvent_t& event : read_) {
    device_.Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "staging");
  }
  half_bytes_ = half_bytes;
  used_ = 0;
  half_ = 0;
}

Staging::Place Staging::Reserve(size_t bytes) {
  device_.Use();
  constexpr size_t kAlignment = 256, kSmallest = 1 << 20;
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > half_bytes_) Grow(std::max({bytes, 2 * half_bytes_, kSmallest}));
  if (used_ + bytes > half_bytes_) {
    device_.Check(cudaEventRecord(read_[half_], device_.stream()), "staging");
    half_ = 1 - half_;
    used_ = 0;
    device_.Check(cudaEventSynchronize(read_[half_]), "staging");
  }
  const size_t at = half_ * half_bytes_ + used_;
  used_ += bytes;
  return {host_ + at, image_ + at, bytes};
}

void Staging::Send(const Place& place) {
  if (place.bytes == 0) return;
  device_.Use();
  device_.Check(cudaMemcpyAsync(place.device, place.host, place.bytes, cudaMemcpyHostToDevice,
                                device_.stream()),
                "staging");
}

// ---- device

namespace {

// The calling thread's device, without a call to the driver where it is already.
cudaError_t SetDevice(int ordinal) {
  thread_local int current = -1;
  if (current == ordinal) return cudaSuccess;
  const cudaError_t error = cudaSetDevice(ordinal);
  current = error == cudaSuccess ? ordinal : -1;
  return error;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CudaDevice::Create(std::string_view name,
                                                           const Kernels& kernels, int num_threads,
                                                           int ordinal) {
  int count = 0;  // without a driver the runtime leaves it alone
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("no usable CUDA device: ",
                     error != cudaSuccess ? Describe(error) : "the driver knows of none"));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no CUDA device ", ordinal, ": this machine has ", count,
                     count == 1 ? ", number 0" : absl::StrCat(", numbers 0 to ", count - 1)));
  }
  cudaDeviceProp properties;
  for (const cudaError_t step :
       {SetDevice(ordinal), cudaGetDeviceProperties(&properties, ordinal)}) {
    if (step != cudaSuccess) {
      cudaGetLastError();
      return absl::FailedPreconditionError(absl::StrCat("no usable CUDA device: ", Describe(step)));
    }
  }
  if (properties.major < 8) {
    return absl::FailedPreconditionError(
        absl::StrCat("no usable CUDA device: ", properties.name, " has compute capability ",
                     properties.major, ".", properties.minor, ", expected 8.0 or above"));
  }
  std::unique_ptr<CudaDevice> device(
      new CudaDevice(name, kernels, num_threads, ordinal, properties));
  if (!device->Check(cudaStreamCreateWithFlags(&device->stream_, cudaStreamNonBlocking),
                     "making a stream")) {
    return device->Wait();
  }
  return device;
}

CudaDevice::CudaDevice(std::string_view name, const Kernels& kernels, int num_threads, int ordinal,
                       const cudaDeviceProp& properties)
    : name_(name),
      ordinal_(ordinal),
      place_(absl::StrCat(std::string(name), ":", ordinal)),
      kernels_(kernels),
      properties_(properties),
      numerics_(absl::StrCat("sm_", properties.major, properties.minor)),
      pool_(num_threads) {}

CudaDevice::~CudaDevice() {
  Use();
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (std::byte* scratch : scratch_) cudaFree(scratch);
  for (const RopeCopy& copy : rope_copies_) cudaFree(copy.at);
  if (delivered_ != nullptr) cudaFreeHost(delivered_);
  // Staging and memory end after this; neither needs the stream any more.
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaDevice::Use() { Check(SetDevice(ordinal_), "choosing the device"); }

std::byte* CudaDevice::OrBadAlloc(cudaError_t error, void* at) {
  if (error == cudaSuccess) return static_cast<std::byte*>(at);
  cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) Check(error, "allocating memory");
  throw std::bad_alloc();
}

std::byte* CudaDevice::AllocateOnDevice(size_t bytes) {
  Use();
  void* at = nullptr;
  const cudaError_t error = cudaMalloc(&at, std::max<size_t>(bytes, 1));
  return OrBadAlloc(error, at);
}

std::byte* CudaDevice::AllocatePinned(size_t bytes) {
  Use();
  void* at = nullptr;
  const cudaError_t error = cudaHostAlloc(&at, bytes, cudaHostAllocDefault);
  return OrBadAlloc(error, at);
}

void CudaDevice::Grow(std::byte*& at, size_t& has, size_t bytes) {
  if (has >= bytes) return;
  Use();
  Check(cudaFree(at), "making room");
  at = nullptr;
  has = 0;
  at = AllocateOnDevice(bytes);
  has = bytes;
}

std::byte* CudaDevice::Scratch(Slot slot, size_t bytes) {
  Grow(scratch_[slot], scratch_bytes_[slot], bytes);
  return scratch_[slot];
}

const float* CudaDevice::RopeTable(std::span<const int64_t> positions,
                                   std::span<const double> theta) {
  Use();
  const RopeTables::Table& table = rope_tables_.Get(pool_, positions, theta);
  for (const RopeCopy& copy : rope_copies_) {
    if (copy.id == table.id) return reinterpret_cast<const float*>(copy.at);
  }
  RopeCopy& copy = rope_copies_[next_rope_copy_];
  next_rope_copy_ = (next_rope_copy_ + 1) % RopeTables::kTables;
  copy.id = 0;
  const size_t half = table.cos.size() * sizeof(float);
  Grow(copy.at, copy.bytes, 2 * half);
  // From pinned memory, so that the copy does not wait for the device.
  const Staging::Place place = staging_.Reserve(2 * half);
  std::memcpy(place.host, table.cos.data(), half);
  std::memcpy(place.host + half, table.sin.data(), half);
  if (Check(cudaMemcpyAsync(copy.at, place.host, 2 * half, cudaMemcpyHostToDevice, stream_),
            "rotary angles")) {
    copy.id = table.id;
  }
  return reinterpret_cast<const float*>(copy.at);
}

void CudaDevice::Deliver(const std::byte* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  Use();
  if (delivered_used_ + bytes > delivered_bytes_) {
    // What waits in the old memory is handed out first.
    Check(cudaStreamSynchronize(stream_), "delivery");
    HandOut();
    if (bytes > delivered_bytes_) {
      if (delivered_ != nullptr) cudaFreeHost(delivered_);
      delivered_ = nullptr;
      delivered_bytes_ = 0;
      const size_t room = std::max<size_t>(2 * bytes, 64 << 10);
      delivered_ = AllocatePinned(room);
      delivered_bytes_ = room;
    }
  }
  Check(cudaMemcpyAsync(delivered_ + delivered_used_, from, bytes, cudaMemcpyDeviceToHost, stream_),
        "delivery");
  deliveries_.push_back({delivered_used_, to, bytes});
  delivered_used_ += bytes;
}

void CudaDevice::HandOut() {
  for (const Delivery& one : deliveries_) std::memcpy(one.to, delivered_ + one.at, one.bytes);
  deliveries_.clear();
  delivered_used_ = 0;
}

absl::Status CudaDevice::Failed(cudaError_t error, const char* what) const {
  return absl::InternalError(
      absl::StrCat(place_, " (", properties_.name, ") failed, ", what, ": ", Describe(error)));
}

bool CudaDevice::Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  // What CUDA does not get over it says again.
  const bool stays = cudaDeviceSynchronize() != cudaSuccess;
  cudaGetLastError();
  const absl::Status status = error == cudaErrorMemoryAllocation
                                  ? absl::ResourceExhaustedError("the device's memory is full")
                                  : Failed(error, what);
  const MutexLock lock(&mutex_);
  if (error_.ok()) error_ = status;
  if (stays && fault_.ok()) fault_ = Failed(error, what);
  return false;
}

void CudaDevice::CheckCopy(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  const MutexLock lock(&mutex_);
  if (fault_.ok()) fault_ = Failed(error, what);
}

absl::Status CudaDevice::Fault() const {
  const MutexLock lock(&mutex_);
  return fault_;
}

absl::Status CudaDevice::Wait() {
  Use();
  Check(cudaStreamSynchronize(stream_), "running kernels");
  HandOut();
  const MutexLock lock(&mutex_);
  absl::Status error = std::exchange(error_, absl::OkStatus());
  return fault_.ok() ? error : fault_;
}

}  // namespace mneme::engine::cuda
