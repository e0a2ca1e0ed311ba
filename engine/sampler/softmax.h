// The part of sampling that touches the whole vocabulary: the likeliest token, and the weights
// e^((logit - max) / temperature) that a softmax divides by their sum.
//
// Every weight is computed by the same operations in double, without contraction, whatever the
// vector's length; sums go through the tokens in order. So all machines get the same bits.
#pragma once

#include <cstddef>
#include <span>

namespace mneme::engine {

// First of the largest. Not of nothing.
size_t ArgMax(std::span<const float> logits);

struct Softmax {
  double max = 0;  // of the logits
  double inverse_temperature = 1;
  double min_weight = 0;  // smaller weights count as 0; the likeliest one's is 1

  // weights[i] of logits[i]. Below e^-40 it is 0: the token has less than 1e-17 of the likeliest
  // one's probability.
  void Weights(std::span<const float> logits, double* weights) const;
  // `sum` plus the weights, one after the other.
  double AddWeights(std::span<const float> logits, double sum) const;
};

}  // namespace mneme::engine
