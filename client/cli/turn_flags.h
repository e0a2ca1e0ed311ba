// The flags that chat and generate share: sampling, limits and stops of a turn.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "mneme/v1/generation.pb.h"

namespace mneme::cli {

struct TurnFlags {
  // What is not given, the server chooses for the model.
  std::optional<float> temperature, top_p, min_p;
  std::optional<int> top_k;
  std::optional<float> repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<uint64_t> seed;
  std::optional<int> max_tokens;
  std::string max_duration;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool queue = false;
  bool discard = false;

  void AddTo(CLI::App& command);
  // kInvalidArgument if a flag's text cannot be understood; ranges are the server's to judge.
  absl::Status Fill(v1::GenerateRequest& request) const;
};

}  // namespace mneme::cli
