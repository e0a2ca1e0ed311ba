// Ways of stretching rotary angles over a longer context than a model was first trained for. Each
// changes theta[j], the radians per position of pair j, in place.
#pragma once

#include <span>

namespace mneme::engine::llama {

// Llama 3.1: pairs slower than original_context / low_frequency_factor are slowed by `factor`,
// those faster than original_context / high_frequency_factor left alone, those between blended.
struct Llama3Scaling {
  double factor = 1;
  double low_frequency_factor = 1;
  double high_frequency_factor = 4;  // more than the low one
  double original_context = 0;       // tokens
};
void ScaleLlama3(const Llama3Scaling& scaling, std::span<double> theta);

// YaRN (Peng et al. 2023, arXiv:2309.00071): pairs that turn fewer than beta_slow times within the
// original context are slowed by `factor`, those that turn more than beta_fast times left alone,
// and the weight of the two falls linearly with the pair's index between.
struct YarnScaling {
  double factor = 1;
  double original_context = 0;  // tokens
  double beta_fast = 32;
  double beta_slow = 1;
  bool whole_pairs = true;  // the ends of the blend are rounded outwards to indices
};
// `base` is what theta was made of.
void ScaleYarn(const YarnScaling& scaling, double base, std::span<double> theta);

// YaRN's other half: by how much queries and keys grow with the stretch, 0.1 weight ln(factor) + 1.
double YarnMagnitude(double factor, double weight = 1);

}  // namespace mneme::engine::llama
