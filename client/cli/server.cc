// mneme server: what the server is, what it is doing, and how it leaves.
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

int Info(client::Client& client, const Context& context) {
  auto info = client.GetServerInfo();
  if (!info.ok()) return context.Fail(info.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*info)) << "\n";
    return kOk;
  }
  if (context.names_only()) {
    std::cout << info->name() << "\n";
    return kOk;
  }
  const v1::Limits& limits = info->limits();
  Table table({"name", info->name()});
  table.Add({"version", info->version()});
  table.Add({"serves since", absl::StrCat(Age(info->start_time()), " ago")});
  table.Add({"device", info->device()});
  table.Add({"store", absl::StrCat(info->store(), info->shared_store() ? ", shared" : "")});
  for (const auto& model : info->models()) {
    table.Add({std::string(client::IdOf(model.name())),
               absl::StrCat(model.architecture(), ", ", model.numerics_id())});
  }
  table.Add({"state memory", HumanBytes(limits.state_memory_bytes())});
  table.Add({"running, queued", absl::StrCat(limits.max_running_streams(), ", ",
                                             limits.max_queued_requests(), " at most")});
  table.Add({"request", absl::StrCat(HumanBytes(limits.max_request_bytes()), ", ",
                                     HumanCount(limits.max_input_tokens()), " tokens in, ",
                                     HumanCount(limits.max_output_tokens()), " out at most")});
  table.Add({"session files", absl::StrCat("format ", info->session_file_format(), ", reads from ",
                                           info->oldest_session_file_format(), " on")});
  table.Print(std::cout);
  return kOk;
}

int Load(client::Client& client, const Context& context) {
  auto loads = client.GetLoads();
  if (!loads.ok()) return context.Fail(loads.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*loads)) << "\n";
    return kOk;
  }
  Table table({"running", absl::StrCat(loads->running_requests())});
  table.Add({"waiting", absl::StrCat(loads->waiting_requests(), ", ",
                                     HumanCount(loads->queued_tokens()), " tokens")});
  table.Add({"state memory", absl::StrCat(HumanBytes(loads->used_state_bytes()), " of ",
                                          HumanBytes(loads->state_memory_bytes()))});
  for (const auto& model : loads->models()) {
    table.Add({std::string(client::IdOf(model.model())),
               absl::StrCat(model.sequences(), " in its batch")});
  }
  table.Add({"leases", absl::StrCat(loads->held_leases())});
  table.Add({"drain phase", absl::StrCat(loads->drain_phase())});
  table.Print(std::cout);
  return kOk;
}

int Drain(client::Client& client, const Context& context, bool at_once) {
  v1::DrainServerRequest request;
  request.set_at_once(at_once);
  auto response = client.DrainServer(request);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*response)) << "\n";
  } else if (response->drain_phase() == 0) {
    std::cout << "The server drains, and leaves when nothing runs any more.\n";
  } else {
    std::cout << "The server was draining already, phase " << response->drain_phase() << ".\n";
  }
  return kOk;
}

}  // namespace

void AddServer(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("server", "For operators: look at a server, or make it leave");
  command->require_subcommand(1);

  auto* info = command->add_subcommand("info", "Version, device, models and limits");
  info->footer("\nExample:\n  mneme server info --json | jq .limits");
  OnRun(info, context, [&context](auto& c) { return Info(c, context); });

  auto* load = command->add_subcommand("loads", "What runs and waits, and the memory it takes");
  load->footer("\nExample:\n  mneme server loads --json | jq .waiting_requests");
  OnRun(load, context, [&context](auto& c) { return Load(c, context); });

  auto* drain = command->add_subcommand("drain", "Let running turns end, then leave");
  auto at_once = std::make_shared<bool>(false);
  drain->add_flag("--at-once", *at_once,
                  "Refuse new work now, without waiting for balancers to notice");
  drain->footer("\nAs SIGTERM does, --at-once as SIGINT.\n\nExample:\n  mneme server drain");
  OnRun(drain, context, [&context, at_once](auto& c) { return Drain(c, context, *at_once); });

  // Last, because CLI11 lets later subcommands inherit it.
  command->footer(R"(
Of the one server that answers at --server. It takes a key with the role admin; of a server without keys,
the machine that it runs on.

Examples:
  mneme server info
  mneme server drain --server https://replica-2:7447 --key-file admin.key)");
}

}  // namespace mneme::cli
