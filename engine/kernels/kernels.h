// The table of kernels a backend provides, and the list of backends.
//
// A backend is a folder here with a `const Kernels& x_kernels()`, a
// `std::unique_ptr<Device> x_device(int num_threads)` and one line in backend_list.inc; or a folder
// that makes a plugin (plugin.h) and one line in plugin_list.inc.
// `reference` is scalar, readable and always there; `cpu` is SIMD through Highway's run-time
// dispatch; `cuda` is a plugin.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/device/device.h"
#include "engine/kernels/activation.h"
#include "engine/kernels/attention.h"
#include "engine/kernels/block_attention.h"
#include "engine/kernels/elementwise.h"
#include "engine/kernels/embedding.h"
#include "engine/kernels/infini_memory.h"
#include "engine/kernels/layer_norm.h"
#include "engine/kernels/matmul.h"
#include "engine/kernels/rms_norm.h"
#include "engine/kernels/rope.h"
#include "engine/kernels/rows.h"
#include "engine/kernels/short_conv.h"
#include "engine/kernels/titans_attention.h"
#include "engine/kernels/titans_memory.h"
#include "engine/kernels/token_shift.h"
#include "engine/kernels/wkv.h"

namespace mneme::engine {

struct Kernels {
  std::string_view name;  // "reference", "cpu"
  MatMulFn matmul;
  EmbedRowsFn embed_rows;
  RmsNormFn rms_norm;
  RopeFn rope;
  AttentionFn attention;
  BlockAttentionFn block_attention;
  CopyRowsFn copy_rows;
  StoreRowsFn store_rows;
  FiniteRowsFn finite_rows;
  SiluMulFn silu_mul;
  AddFn add;
  MulFn mul;
  ActivateFn activate;
  SeriesActivateFn series_activate;
  LayerNormFn layer_norm;
  TokenShiftFn token_shift;
  LerpFn lerp;
  Wkv4Fn wkv4;
  Wkv6Fn wkv6;
  Wkv7PrepareFn wkv7_prepare;
  Wkv7Fn wkv7;
  Wkv7BonusFn wkv7_bonus;
  InfiniFeatureMapFn infini_feature_map;
  InfiniMixFn infini_mix;
  ShortConvFn short_conv;
  TitansRatesFn titans_rates;
  TitansMemoryFn titans_memory;
  TitansAttentionFn titans_attention;
  // The instruction set in use, e.g. "avx2", "avx3"; part of numerics_id where the device has no
  // more to say.
  std::string (*simd_target)();
};

// Those of backend_list.inc in its order, `reference` first; then the plugins that were opened.
std::span<const Kernels* const> AllBackends();
// nullptr if there is none of that name.
const Kernels* FindBackend(std::string_view name);
// What CreateDevice knows: "reference", "cpu", "cuda", whether or not this machine can run it.
std::vector<std::string> BackendNames();

// Opens a plugin's library and adds its backend. FAILED_PRECONDITION if it cannot be opened or is
// of another build. Once opened it stays; to open it again changes nothing.
absl::Status OpenBackend(const std::string& library);

// Device `ordinal` of the backend, whose plugin is opened if need be. `num_threads`: of the host's
// processors that may work for it; 0: all that this process may use. INVALID_ARGUMENT names the
// backends there are, or how many devices this one has; FAILED_PRECONDITION: the machine has none
// of them that can be used; NOT_FOUND: the backend's plugin is not installed.
absl::StatusOr<std::unique_ptr<Device>> CreateDevice(std::string_view backend, int num_threads,
                                                     int ordinal = 0);

// Restricts the cpu backend to one SIMD target by name, so that replicas on unlike machines agree
// bit for bit. "" lifts it. False if this machine or build does not have the target. Not
// thread-safe: call before the first kernel.
bool PinSimdTarget(std::string_view name);
// Targets this machine and build can run, best first.
std::vector<std::string> AvailableSimdTargets();

}  // namespace mneme::engine
