#include "tests/engine/kernels/kernel_setup.h"

#include <cctype>
#include <cmath>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/device_visible.h"
#include "tests/support/tested_backends.h"

namespace mneme::engine {

namespace {

template <auto kMember, typename Fn>
struct Finishing;
template <auto kMember, typename... Args>
struct Finishing<kMember, void (*)(Exec&, Args...)> {
  static void Call(Exec& exec, Args... args) {
    (exec.device().kernels().*kMember)(exec, args...);
    const absl::Status status = exec.device().Wait();
    EXPECT_TRUE(status.ok()) << status;
  }
};

template <auto kMember, typename Fn>
void Finish(Fn Kernels::*, Kernels& table) {
  if (table.*kMember != nullptr) table.*kMember = &Finishing<kMember, Fn>::Call;
}

// The same kernels, each followed by a Wait.
Kernels Finished(const Kernels& kernels) {
  Kernels table = kernels;
  const auto finish = [&]<auto... kMembers>() { (Finish<kMembers>(kMembers, table), ...); };
  finish.operator()<&Kernels::matmul, &Kernels::embed_rows, &Kernels::rms_norm, &Kernels::rope,
                    &Kernels::attention, &Kernels::block_attention, &Kernels::copy_rows,
                    &Kernels::store_rows, &Kernels::finite_rows, &Kernels::silu_mul, &Kernels::add,
                    &Kernels::mul, &Kernels::activate, &Kernels::series_activate,
                    &Kernels::layer_norm, &Kernels::token_shift, &Kernels::lerp, &Kernels::wkv4,
                    &Kernels::wkv6, &Kernels::wkv7_prepare, &Kernels::wkv7, &Kernels::wkv7_bonus,
                    &Kernels::infini_feature_map, &Kernels::infini_mix, &Kernels::short_conv,
                    &Kernels::titans_rates, &Kernels::titans_memory, &Kernels::titans_attention>();
  return table;
}

}  // namespace

std::vector<const Kernels*> TestBackends() {
  static const auto* const tables = [] {
    auto* all = new std::vector<const Kernels*>(test::TestedBackends());
    for (const Kernels*& kernels : *all) {
      if (kernels->name.starts_with("cuda")) kernels = new Kernels(Finished(*kernels));
    }
    if (all->front()->name != "reference") all->insert(all->begin(), FindBackend("reference"));
    return all;
  }();
  return *tables;
}

std::string ParameterName(std::string_view name) {
  std::string allowed(name);
  for (char& c : allowed) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return allowed;
}

KernelExec::KernelExec(const Kernels& kernels, Contract contract, int num_threads)
    : OwnedDevice{*CreateDevice(kernels.name, num_threads)},
      Exec(*owned_device, kernels, contract) {}

std::vector<Variant> AllVariants() {
  std::vector<Variant> variants;
  for (const Kernels* kernels : TestBackends()) {
    if (kernels->name != "cpu") {
      variants.push_back({kernels, ""});
      continue;
    }
    for (const std::string& simd : AvailableSimdTargets()) variants.push_back({kernels, simd});
  }
  return variants;
}

double Exact(Activation f, double x) {
  switch (f) {
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kReluSquared:
      return x > 0 ? x * x : 0;
    case Activation::kDecay:
      return std::exp(-std::exp(x));
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGeluErf:
      return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh:
      return x / 2 *
             (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return x > 0 ? x : 0;
  }
  return x;
}

}  // namespace mneme::engine

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  return mneme::test::RunVisibleToDevice([] { return RUN_ALL_TESTS(); });
}
