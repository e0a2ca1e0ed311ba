// mneme models: what the server has loaded.
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

std::string Tokens(int64_t count) { return count == 0 ? "unbounded" : HumanCount(count); }

// What a turn that says nothing is sampled with. Numbers that change nothing are left out.
std::string SamplingDefaults(const v1::Sampling& sampling) {
  std::string text = absl::StrCat("temperature ", sampling.temperature());
  if (sampling.top_k() > 0) absl::StrAppend(&text, ", top-k ", sampling.top_k());
  if (sampling.top_p() < 1) absl::StrAppend(&text, ", top-p ", sampling.top_p());
  if (sampling.min_p() > 0) absl::StrAppend(&text, ", min-p ", sampling.min_p());
  if (sampling.repetition_penalty() != 1) {
    absl::StrAppend(&text, ", repetition penalty ", sampling.repetition_penalty());
  }
  if (sampling.presence_penalty() != 0) {
    absl::StrAppend(&text, ", presence penalty ", sampling.presence_penalty());
  }
  if (sampling.frequency_penalty() != 0) {
    absl::StrAppend(&text, ", frequency penalty ", sampling.frequency_penalty());
  }
  return text;
}

int List(client::Client& client, const Context& context) {
  v1::ListModelsResponse all;
  v1::ListModelsRequest request;
  do {
    auto page = client.ListModels(request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_models()->MergeFrom(page->models());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (context.json()) {
    std::cout << Dump(ToJson(all)) << "\n";
    return kOk;
  }
  Table table({"NAME", "ARCHITECTURE", "PARAMETERS", "WEIGHTS", "TYPE", "STATE", "CONTEXT", "CHAT",
               "FINGERPRINT"});
  for (const auto& m : all.models()) {
    if (context.names_only()) {
      std::cout << m.name() << "\n";
      continue;
    }
    table.Add({std::string(client::IdOf(m.name())), m.architecture(), HumanCount(m.parameters()),
               HumanBytes(m.weight_bytes()), m.weight_type(), HumanBytes(m.state_bytes()),
               Tokens(m.effective_context_tokens()), m.has_chat_template() ? "yes" : "no",
               m.fingerprint().substr(0, 12)});
  }
  if (!context.names_only()) table.Print(std::cout);
  return kOk;
}

int Get(client::Client& client, const Context& context, const std::string& name) {
  auto m = client.GetModel(name);
  if (!m.ok()) return context.Fail(m.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*m)) << "\n";
  } else if (context.names_only()) {
    std::cout << m->name() << "\n";
  } else {
    Table table({"name", m->name()});
    table.Add({"description", m->description()});
    table.Add({"architecture", m->architecture()});
    table.Add({"parameters", HumanCount(m->parameters())});
    table.Add({"weights", absl::StrCat(HumanBytes(m->weight_bytes()), ", ", m->weight_type())});
    table.Add({"vocabulary", HumanCount(m->vocab_size())});
    table.Add({"trained context", Tokens(m->trained_context_tokens())});
    table.Add({"effective context", Tokens(m->effective_context_tokens())});
    table.Add({"state", m->state_bytes_per_token() == 0
                            ? absl::StrCat(HumanBytes(m->state_bytes()), ", constant")
                            : absl::StrCat(HumanBytes(m->state_bytes_per_token()),
                                           " a token, at most ", HumanBytes(m->state_bytes()))});
    if (m->context_limit_tokens() > 0) {
      table.Add({"context limit", Tokens(m->context_limit_tokens())});
    }
    table.Add({"state formula", m->state_formula()});
    table.Add({"chat template",
               m->has_chat_template() ? "yes" : absl::StrCat("no: ", m->chat_template_problem())});
    if (m->has_default_sampling()) {
      table.Add({"sampling", SamplingDefaults(m->default_sampling())});
    }
    if (!m->device().empty()) table.Add({"device", m->device()});
    table.Add({"fingerprint", m->fingerprint()});
    table.Add({"numerics", m->numerics_id()});
    table.Print(std::cout);
  }
  return kOk;
}

}  // namespace

void AddModels(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("models", "Show the models the server has loaded");
  command->require_subcommand(0, 1);
  auto* list = command->add_subcommand("list", "List them (the default)");
  auto* get = command->add_subcommand("get", "Everything about one");
  auto name = std::make_shared<std::string>();
  get->add_option("MODEL", *name, "Name, with or without models/")->required();
  list->footer("\nExample:\n  mneme models list --json | jq -r '.models[].name'");
  get->footer("\nExample:\n  mneme models get smollm2");
  // After the subcommands, because CLI11 lets later ones inherit it.
  command->footer(R"(
STATE is what one session occupies, however much it has read. CONTEXT is how far back a token can
see: a window slides on beyond it.

Examples:
  mneme models
  mneme models get smollm2
  mneme models --json | jq -r '.models[].name')");
  OnRun(get, context, [&context, name](client::Client& c) { return Get(c, context, *name); });
  OnRun(list, context, [&context](client::Client& c) { return List(c, context); });
  OnRun(command, context, [&context](auto& c) { return List(c, context); });
}

}  // namespace mneme::cli
