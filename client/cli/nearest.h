// What somebody meant who typed a word that is not known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mneme::cli {

// The candidates that `word` is probably a slip or a beginning of, best first, at most three: those
// one slip away (a letter too many, too few, wrong, or two swapped), else those that begin with it,
// else the nearest, up to a slip for every three letters. Empty if nothing is near.
std::vector<std::string> Nearest(std::string_view word, const std::vector<std::string>& candidates);

// "; did you mean list or get?" of what Nearest found; "" if that is nothing.
std::string DidYouMean(const std::vector<std::string>& nearest);

}  // namespace mneme::cli
