// A ServerCore in the test's process: the tiny checkpoint, a store that can fail and that outlives
// the server, and a sink that collects a turn's events.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "memstore/state_store.h"
#include "server/core/server_core.h"
#include "tests/support/guarded.h"

namespace mneme::server {

// Shares one store between servers, one after the other; fails on demand.
class TestStore : public memstore::StateStore {
 public:
  struct Shared {
    std::unique_ptr<memstore::StateStore> store = memstore::CreateMemoryStore();
    // Called before each operation ("get", "commit", ...); its error is returned instead.
    test::Replaceable<absl::Status(const std::string& op)> fault = nullptr;
    std::atomic<bool> corrupt_chunks{false};
    std::atomic<int> synced{0}, unsynced{0};  // commits
    bool shared = false;                      // with other servers

    absl::Status Check(const std::string& op) {
      const auto function = fault.Get();
      return function ? function(op) : absl::OkStatus();
    }
  };
  explicit TestStore(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

  bool shared() const override { return shared_->shared; }

  absl::StatusOr<memstore::Record> Get(const memstore::Key& key) const override {
    if (auto s = shared_->Check("get"); !s.ok()) return s;
    return shared_->store->Get(key);
  }
  absl::StatusOr<std::map<std::string, memstore::Record>> GetMany(
      const std::string& realm, const std::vector<std::string>& names) const override {
    if (auto s = shared_->Check("get_many"); !s.ok()) return s;
    return shared_->store->GetMany(realm, names);
  }
  absl::StatusOr<std::string> GetChunk(std::string_view realm,
                                       const memstore::ChunkId& id) const override {
    if (auto s = shared_->Check("get_chunk"); !s.ok()) return s;
    if (shared_->corrupt_chunks) return absl::DataLossError("chunk does not match its id");
    return shared_->store->GetChunk(realm, id);
  }
  absl::Status Commit(const memstore::Transaction& transaction) override {
    if (auto s = shared_->Check("commit"); !s.ok()) return s;
    ++(transaction.sync ? shared_->synced : shared_->unsynced);
    return shared_->store->Commit(transaction);
  }
  absl::StatusOr<std::vector<memstore::ListedRecord>> List(
      const memstore::ListOptions& options) const override {
    if (auto s = shared_->Check("list"); !s.ok()) return s;
    return shared_->store->List(options);
  }
  absl::StatusOr<std::vector<memstore::Key>> Expired(absl::Time now, int limit) const override {
    return shared_->store->Expired(now, limit);
  }
  absl::Status KeepTotals(memstore::TallyFn tally) override {
    return shared_->store->KeepTotals(tally);
  }
  absl::StatusOr<std::vector<memstore::Total>> Totals(const std::string& realm) const override {
    if (auto s = shared_->Check("totals"); !s.ok()) return s;
    return shared_->store->Totals(realm);
  }
  absl::StatusOr<std::vector<std::string>> Realms() const override {
    return shared_->store->Realms();
  }
  absl::StatusOr<memstore::StoreStats> Stats() const override { return shared_->store->Stats(); }
  absl::Status Probe() override {
    if (auto s = shared_->Check("probe"); !s.ok()) return s;
    return shared_->store->Probe();
  }

 private:
  std::shared_ptr<Shared> shared_;
};

class CollectingSink : public TurnSink {
 public:
  bool Send(v1::GenerateResponse response) override {
    EXPECT_EQ(response.sequence(), static_cast<int64_t>(++count));
    if (response.has_started()) {
      EXPECT_EQ(count, 1);
      started = response.started();
    }
    if (response.has_delta()) {
      text += response.delta().text();
      for (int32_t id : response.delta().token_ids()) tokens.push_back(id);
      for (const auto& l : response.delta().logprobs()) logprobs.push_back(l);
    }
    if (response.has_progress()) ++progress;
    if (response.has_final()) {
      final = response.final();
      has_final = true;
    }
    return on_event ? on_event(response) : true;
  }

  std::function<bool(const v1::GenerateResponse&)> on_event;
  int count = 0;
  int progress = 0;
  v1::GenerateResponse::Started started;
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<v1::Logprobs> logprobs;
  v1::GenerateResponse::Final final;
  bool has_final = false;
};

class CoreTest : public ::testing::Test {
 protected:
  CoreTest() {
    config.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/tiny-llama-q.gguf"}};
    config.engine.threads = 1;
    config.store.kind = "memory";
    config.limits.state_memory_bytes = 64 << 20;
    config.limits.prefill_chunk_tokens = 16;
    config.limits.max_step_tokens = 32;
    config.sessions.sweep_interval_ms = 20;
  }

  // Starts the server, again on the same store.
  void Start() {
    core.reset();
    auto made = ServerCore::Create(config, std::make_unique<TestStore>(store));
    ASSERT_TRUE(made.ok()) << made.status();
    core = *std::move(made);
  }

  static std::string Name(const std::string& id) {
    return absl::StrCat("tenants/default/sessions/", id);
  }

  v1::Session Create(const std::string& id,
                     const std::function<void(v1::Session&)>& edit = nullptr) {
    CallContext context;
    v1::CreateSessionRequest request;
    request.set_parent("tenants/default");
    request.set_session_id(id);
    if (edit) edit(*request.mutable_session());
    auto created = core->CreateSession(context, request);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? *created : v1::Session();
  }
  absl::StatusOr<v1::Session> TryGet(const std::string& id) {
    CallContext context;
    v1::GetSessionRequest request;
    request.set_name(Name(id));
    return core->GetSession(context, request);
  }
  v1::Session Get(const std::string& id) {
    auto got = TryGet(id);
    EXPECT_TRUE(got.ok()) << got.status();
    return got.ok() ? *got : v1::Session();
  }
  absl::StatusOr<v1::Session> Delete(const std::string& id, bool force = false) {
    CallContext context;
    v1::DeleteSessionRequest request;
    request.set_name(Name(id));
    request.set_force(force);
    return core->DeleteSession(context, request);
  }
  std::vector<v1::Snapshot> Snapshots(const std::string& id) {
    CallContext context;
    v1::ListSnapshotsRequest request;
    request.set_parent(Name(id));
    auto listed = core->ListSnapshots(context, request);
    EXPECT_TRUE(listed.ok()) << listed.status();
    if (!listed.ok()) return {};
    return {listed->snapshots().begin(), listed->snapshots().end()};
  }

  // Greedy and never stopped by EOS, so that lengths are known.
  static v1::GenerateRequest Request(const std::string& id, const std::string& text, int max) {
    v1::GenerateRequest request;
    if (!id.empty()) request.set_session(Name(id));
    if (!text.empty()) request.set_text(text);
    request.mutable_sampling()->set_temperature(0);
    request.set_ignore_eos(true);
    request.set_max_output_tokens(max);
    return request;
  }
  absl::Status Generate(const v1::GenerateRequest& request, CollectingSink& sink) {
    CallContext context;
    return core->Generate(context, request, sink);
  }
  CollectingSink MustGenerate(const v1::GenerateRequest& request) {
    CollectingSink sink;
    const absl::Status status = Generate(request, sink);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(sink.has_final);
    return sink;
  }
  CollectingSink Say(const std::string& id, const std::string& text, int max = 8) {
    return MustGenerate(Request(id, text, max));
  }

  double Gauge(const std::string& name) {
    for (const auto& family : core->metrics().registry()->Collect()) {
      if (family.name == name) return family.metric.at(0).gauge.value;
    }
    ADD_FAILURE() << "no metric " << name;
    return -1;
  }

  double Counter(const std::string& name) {
    for (const auto& family : core->metrics().registry()->Collect()) {
      if (family.name == name) return family.metric.at(0).counter.value;
    }
    ADD_FAILURE() << "no metric " << name;
    return -1;
  }

  Config config;
  std::shared_ptr<TestStore::Shared> store = std::make_shared<TestStore::Shared>();
  std::unique_ptr<ServerCore> core;
};

inline std::vector<std::string> BadFields(const absl::Status& status) {
  google::rpc::BadRequest bad;
  const auto payload = status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
  std::vector<std::string> fields;
  if (payload && bad.ParseFromString(std::string(*payload))) {
    for (const auto& violation : bad.field_violations()) fields.push_back(violation.field());
  }
  return fields;
}
inline std::string Metadata(const absl::Status& status, const std::string& key) {
  google::rpc::ErrorInfo info;
  const auto payload = status.GetPayload("type.googleapis.com/google.rpc.ErrorInfo");
  if (!payload || !info.ParseFromString(std::string(*payload))) return "";
  const auto found = info.metadata().find(key);
  return found == info.metadata().end() ? "" : found->second;
}

}  // namespace mneme::server
