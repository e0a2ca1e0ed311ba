#include "engine/arch/llama/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mneme::engine::llama {

void ScaleLlama3(const Llama3Scaling& scaling, std::span<double> theta) {
  const double low = scaling.low_frequency_factor;
  const double high = scaling.high_frequency_factor;
  for (double& angle : theta) {
    const double wavelength = 2 * std::numbers::pi / angle;
    if (wavelength < scaling.original_context / high) continue;
    if (wavelength > scaling.original_context / low) {
      angle /= scaling.factor;
      continue;
    }
    const double kept = (scaling.original_context / wavelength - low) / (high - low);
    angle *= (1 - kept) / scaling.factor + kept;
  }
}

void ScaleYarn(const YarnScaling& scaling, double base, std::span<double> theta) {
  const auto rotary_dim = static_cast<double>(2 * theta.size());
  // The index, as a real number, of the pair that turns `turns` times within the original context.
  auto pair_of = [&](double turns) {
    return rotary_dim * std::log(scaling.original_context / (2 * std::numbers::pi * turns)) /
           (2 * std::log(base));
  };
  double first = pair_of(scaling.beta_fast);
  double last = pair_of(scaling.beta_slow);
  if (scaling.whole_pairs) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, rotary_dim - 1);
  const double width = first == last ? 0.001 : last - first;
  for (size_t j = 0; j < theta.size(); ++j) {
    const double slowed = std::clamp((static_cast<double>(j) - first) / width, 0.0, 1.0);
    theta[j] *= slowed / scaling.factor + (1 - slowed);
  }
}

double YarnMagnitude(double factor, double weight) {
  return factor <= 1 ? 1 : 0.1 * weight * std::log(factor) + 1;
}

}  // namespace mneme::engine::llama
