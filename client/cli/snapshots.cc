// mneme snapshots: points of a session that are kept.
#include "client/cli/snapshots.h"

#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

void Print(const Context& context,
           const google::protobuf::RepeatedPtrField<v1::Snapshot>& snapshots) {
  Table table({"SNAPSHOT", "VERSION", "POSITION", "STORED", "KIND", "AGE"});
  for (const auto& s : snapshots) {
    if (context.names_only()) {
      std::cout << s.name() << "\n";
      continue;
    }
    table.Add({std::string(client::IdOf(s.name())), absl::StrCat(s.version()),
               HumanCount(s.position_tokens()), HumanBytes(s.stored_bytes()),
               s.automatic() ? "automatic" : "kept", Age(s.create_time())});
  }
  if (!context.names_only()) table.Print(std::cout);
}

int PrintOne(const Context& context, const absl::StatusOr<v1::Snapshot>& snapshot) {
  if (!snapshot.ok()) return context.Fail(snapshot.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*snapshot)) << "\n";
    return kOk;
  }
  google::protobuf::RepeatedPtrField<v1::Snapshot> one;
  *one.Add() = *snapshot;
  Print(context, one);
  return kOk;
}

struct CreateFlags {
  std::string session, snapshot;
  int64_t expected_version = 0;
};

int Create(client::Client& client, const Context& context, const CreateFlags& flags) {
  v1::CreateSnapshotRequest request;
  request.set_parent(flags.session);
  request.set_snapshot_id(flags.snapshot);
  request.set_expected_version(flags.expected_version);
  return PrintOne(context, client.CreateSnapshot(request));
}

int Delete(client::Client& client, const Context& context, const std::vector<std::string>& names) {
  int worst = kOk;  // the first failure; the others are still tried
  v1::ListSnapshotsResponse deleted;
  for (const std::string& name : names) {
    auto snapshot = client.DeleteSnapshot(name);
    if (snapshot.ok()) {
      *deleted.add_snapshots() = *snapshot;
      if (!context.json() && !context.names_only()) {
        std::cout << client::IdOf(snapshot->name()) << " deleted\n";
      }
      continue;
    }
    const int code = context.Fail(snapshot.status());
    if (worst == kOk) worst = code;
  }
  if (context.json()) {
    std::cout << Dump(ToJson(deleted)["snapshots"]) << "\n";
  } else if (context.names_only()) {
    Print(context, deleted.snapshots());
  }
  return worst;
}

}  // namespace

int ListSnapshots(client::Client& client, const Context& context, const std::string& name) {
  v1::ListSnapshotsRequest request;
  request.set_parent(name);
  request.set_page_size(1000);
  v1::ListSnapshotsResponse all;
  do {
    auto page = client.ListSnapshots(request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_snapshots()->MergeFrom(page->snapshots());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (context.json()) {
    std::cout << Dump(ToJson(all)) << "\n";
    return kOk;
  }
  Print(context, all.snapshots());
  return kOk;
}

void AddSnapshots(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("snapshots", "Keep, list and delete points of a session");
  command->alias("snapshot");
  command->require_subcommand(1);

  auto* create = command->add_subcommand("create", "Keep the last commit until it is deleted");
  auto create_flags = std::make_shared<CreateFlags>();
  create->add_option("SESSION", create_flags->session)->required();
  create->add_option("SNAPSHOT", create_flags->snapshot, "Its id; left out: the server makes one");
  create->add_option("--expected-version", create_flags->expected_version,
                     "Only if the session is at this version");
  create->footer("\nExample:\n  mneme snapshots create diary before-the-party");
  OnRun(create, context,
        [&context, create_flags](auto& c) { return Create(c, context, *create_flags); });

  auto* list = command->add_subcommand("list", "List a session's snapshots, newest first");
  auto list_name = std::make_shared<std::string>();
  list->add_option("SESSION", *list_name)->required();
  list->footer("\nExample:\n  mneme snapshots list diary");
  OnRun(list, context,
        [&context, list_name](auto& c) { return ListSnapshots(c, context, *list_name); });

  auto* get = command->add_subcommand("get", "Show one snapshot");
  auto get_name = std::make_shared<std::string>();
  get->add_option("SNAPSHOT", *get_name, "As SESSION@SNAPSHOT")->required();
  get->footer("\nExample:\n  mneme snapshots get diary@before-the-party");
  OnRun(get, context,
        [&context, get_name](auto& c) { return PrintOne(context, c.GetSnapshot(*get_name)); });

  auto* remove = command->add_subcommand("delete", "Delete snapshots, for good");
  auto names = std::make_shared<std::vector<std::string>>();
  remove->add_option("SNAPSHOT", *names, "As SESSION@SNAPSHOT")->required();
  remove->footer("\nExample:\n  mneme snapshots delete diary@before-the-party diary@v12");
  OnRun(remove, context, [&context, names](auto& c) { return Delete(c, context, *names); });

  // Last, because CLI11 lets later subcommands inherit it.
  command->footer(R"(
The server keeps the ends of the last turns by itself (automatic), until newer ones take their places;
what `create` keeps stays. Sessions go back to a snapshot, or branch off from it, without reading anything
again.

Examples:
  mneme snapshots create diary before-the-party
  mneme sessions rewind diary --to-snapshot before-the-party
  mneme sessions fork diary@before-the-party what-if)");
}

}  // namespace mneme::cli
