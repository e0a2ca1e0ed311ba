// The filter of ListSessions: terms joined by AND.
//
//   state = ACTIVE AND model = "models/m" AND labels.project = "a b"
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "mneme/v1/resources.pb.h"

namespace mneme::server {

class SessionFilter {
 public:
  // INVALID_ARGUMENT FIELD_INVALID naming `filter`. An empty text matches everything.
  static absl::StatusOr<SessionFilter> Parse(std::string_view text);
  bool Matches(const v1::Session& session) const;

 private:
  struct Term {
    enum class Kind { kState, kModel, kLabel } kind;
    std::string key;  // of a label
    std::string value;
    v1::Session::State state = v1::Session::STATE_UNSPECIFIED;
  };
  std::vector<Term> terms_;
};

}  // namespace mneme::server
