// What a request's sampling has where it says nothing: the server's setting for the model, else
// what the checkpoint recommends, else the API's default. Field by field.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint/sampling_hints.h"
#include "mneme/v1/generation.pb.h"
#include "server/core/config.h"
#include "server/core/sampling_fields.h"

namespace mneme::server {

bool HasSampling(const v1::Sampling& sampling, const SamplingField& field);
double GetSampling(const v1::Sampling& sampling, const SamplingField& field);

// Every field is set. INVALID_ARGUMENT if the checkpoint recommends a value out of range, unless a
// setting takes its place.
absl::StatusOr<v1::Sampling> SamplingDefaults(const Config::Sampling& settings,
                                              const std::string& model,
                                              const engine::SamplingHints& hints);

// `request` with the numbers of `defaults` where it has none.
v1::Sampling WithDefaults(const v1::Sampling& request, const v1::Sampling& defaults);

}  // namespace mneme::server
