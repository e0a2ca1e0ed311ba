// The one comparator of float arrays: per element, absolute plus relative; NaN never passes; the
// message names the worst element.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include "gtest/gtest.h"

namespace mneme::test {

struct Tolerance {
  double absolute = 0;
  double relative = 0;
};

// Passes if sizes agree and |actual[i] - expected[i]| <= absolute + relative * |expected[i]| for
// every i. Equal infinities pass. `expected` is the trusted side.
inline testing::AssertionResult AllClose(std::span<const float> actual,
                                         std::span<const float> expected, Tolerance tolerance) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure()
           << "sizes differ: " << actual.size() << " and " << expected.size();
  }
  size_t worst = 0, failures = 0;
  double worst_ratio = 0;  // of difference to what is allowed
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    const double difference = std::abs(double(actual[i]) - double(expected[i]));
    const double allowed = tolerance.absolute + tolerance.relative * std::abs(double(expected[i]));
    if (difference <= allowed && std::isfinite(difference)) continue;  // false for NaN
    ++failures;
    double ratio = difference / allowed;
    if (std::isnan(ratio)) ratio = HUGE_VAL;
    if (failures == 1 || ratio > worst_ratio) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  if (failures == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << failures << " of " << actual.size() << " elements differ; worst at index " << worst
         << ": " << actual[worst] << ", expected " << expected[worst] << " within "
         << tolerance.absolute << " + " << tolerance.relative << " relative";
}

// Bit for bit: tells -0 from 0, and equal NaNs pass.
inline testing::AssertionResult SameBits(std::span<const float> actual,
                                         std::span<const float> expected) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure()
           << "sizes differ: " << actual.size() << " and " << expected.size();
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(float)) != 0) {
      return testing::AssertionFailure()
             << "first difference at index " << i << ": " << actual[i] << " and " << expected[i];
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace mneme::test
