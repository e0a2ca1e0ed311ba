#include "server/core/sampling_defaults.h"

#include <optional>

#include "absl/strings/str_cat.h"

namespace mneme::server {
namespace {

const google::protobuf::FieldDescriptor* Descriptor(const SamplingField& field) {
  return v1::Sampling::descriptor()->FindFieldByName(field.name);
}

void Set(v1::Sampling& sampling, const SamplingField& field, double value) {
  const auto* descriptor = Descriptor(field);
  const auto* reflection = sampling.GetReflection();
  if (field.whole) {
    reflection->SetInt32(&sampling, descriptor, static_cast<int32_t>(value));
  } else {
    reflection->SetFloat(&sampling, descriptor, static_cast<float>(value));
  }
}

std::optional<double> SettingOf(const Config::Sampling& settings, const std::string& field,
                                const std::string& model) {
  const auto values = settings.find(field);
  if (values == settings.end()) return std::nullopt;
  for (const std::string& name : {model, std::string()}) {
    if (const auto value = values->second.find(name); value != values->second.end()) {
      return value->second;
    }
  }
  return std::nullopt;
}

}  // namespace

bool HasSampling(const v1::Sampling& sampling, const SamplingField& field) {
  return sampling.GetReflection()->HasField(sampling, Descriptor(field));
}

double GetSampling(const v1::Sampling& sampling, const SamplingField& field) {
  const auto* reflection = sampling.GetReflection();
  return field.whole ? reflection->GetInt32(sampling, Descriptor(field))
                     : reflection->GetFloat(sampling, Descriptor(field));
}

absl::StatusOr<v1::Sampling> SamplingDefaults(const Config::Sampling& settings,
                                              const std::string& model,
                                              const engine::SamplingHints& hints) {
  v1::Sampling out;
  for (const SamplingField& field : kSamplingFields) {
    double value = field.fallback;
    if (const auto setting = SettingOf(settings, field.name, model)) {
      value = *setting;
    } else if (const auto hint = hints.find(field.name); hint != hints.end()) {
      value = hint->second;
      if (!field.Accepts(value)) {
        return absl::InvalidArgumentError(absl::StrCat("the checkpoint recommends a ", field.name,
                                                       " of ", value, "; it ", field.Expected(),
                                                       "; give another by sampling.", field.name));
      }
    }
    Set(out, field, value);
  }
  return out;
}

v1::Sampling WithDefaults(const v1::Sampling& request, const v1::Sampling& defaults) {
  v1::Sampling out = defaults;
  out.MergeFrom(request);
  return out;
}

}  // namespace mneme::server
