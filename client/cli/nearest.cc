#include "client/cli/nearest.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mneme::cli {
namespace {

constexpr size_t kMostSuggestions = 3;

// Damerau-Levenshtein with adjacent swaps; words are short.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] =
          std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::vector<std::string> Nearest(std::string_view word,
                                 const std::vector<std::string>& candidates) {
  std::vector<std::string> near, begun;
  size_t least = std::max<size_t>(1, word.size() / 3);
  for (const std::string& candidate : candidates) {
    const size_t distance = Distance(word, candidate);
    if (distance < least) near.clear();
    if (distance <= least && distance < word.size()) {
      least = distance;
      near.push_back(candidate);
    }
    if (word.size() > 1 && candidate.rfind(word, 0) == 0) begun.push_back(candidate);
  }
  const bool slip = !near.empty() && least <= 1;
  std::vector<std::string> best = slip || begun.empty() ? near : begun;
  best.resize(std::min(best.size(), kMostSuggestions));
  return best;
}

std::string DidYouMean(const std::vector<std::string>& nearest) {
  return nearest.empty() ? ""
                         : absl::StrCat("; did you mean ", absl::StrJoin(nearest, " or "), "?");
}

}  // namespace mneme::cli
