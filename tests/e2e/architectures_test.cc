// Every architecture behind one real server: a session of each survives kill -9, forks and rewinds,
// and continues as a run that was never stopped would.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "engine/arch/arch.h"
#include "tests/support/server_process.h"

namespace mneme::test {
namespace {

namespace fs = std::filesystem;

constexpr char kFirst[] = "The keeper of the lighthouse wrote in the log every evening";
constexpr char kSecond[] = "; what did she write?";
constexpr int kTokens = 40;  // beyond several segments, blocks and chunks of the tiny checkpoints

// Model name -> path, for every tiny checkpoint.
std::map<std::string, std::string> TinyModels() {
  std::map<std::string, std::string> models;
  for (const fs::directory_entry& entry : fs::directory_iterator(MNEME_TINY_DIR)) {
    if (entry.path().extension() == ".gguf" || fs::exists(entry.path() / "config.json")) {
      models[entry.path().stem().string()] = entry.path().string();
    }
  }
  return models;
}

class ArchitecturesTest : public ::testing::Test {
 protected:
  void Start() {
    const std::map<std::string, std::string> models = TinyModels();
    ServerProcess::Options options{
        .binary = MNEME_SERVER_BINARY,
        .model = absl::StrCat(models.begin()->first, "=", models.begin()->second),
        .folder = folder_.path(),
        .flags = {"--drain.pre_stop_delay", "0s"}};
    if (const char* backend = std::getenv("TESTED_BACKEND"); backend != nullptr) {
      options.flags.insert(options.flags.end(), {"--engine.backend", backend});
    }
    for (auto model = std::next(models.begin()); model != models.end(); ++model) {
      options.flags.push_back("--model");
      options.flags.push_back(absl::StrCat(model->first, "=", model->second));
    }
    auto server = ServerProcess::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client =
        client::Client::Connect({.server = server_->address(), .work_timeout = absl::Seconds(120)});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<client::Client>(*client);
  }

  static v1::GenerateRequest Turn(const std::string& session, const std::string& text) {
    v1::GenerateRequest request;
    request.set_session(session);
    request.set_text(text);
    request.set_max_output_tokens(kTokens);
    request.set_ignore_eos(true);
    request.set_add_bos(v1::GenerateRequest::ADD_BOS_NEVER);
    request.mutable_sampling()->set_seed(5);
    return request;
  }
  // The tokens of one turn on a session, which must start from the stored state.
  std::vector<int32_t> Run(const std::string& session, const std::string& text) {
    auto turn = client_->Complete(Turn(session, text));
    EXPECT_TRUE(turn.ok()) << session << ": " << turn.status();
    if (!turn.ok()) return {};
    EXPECT_EQ(turn->final().usage().recomputed_tokens(), 0) << session;
    EXPECT_TRUE(turn->final().committed()) << session;
    return {turn->token_ids().begin(), turn->token_ids().end()};
  }
  std::vector<int32_t> Tokens(const std::string& model, const std::string& text) {
    v1::TokenizeRequest request;
    request.set_model(model);
    request.set_text(text);
    auto response = client_->Tokenize(request);
    EXPECT_TRUE(response.ok()) << model << ": " << response.status();
    if (!response.ok()) return {};
    return {response->token_ids().begin(), response->token_ids().end()};
  }

  TemporaryFolder folder_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<client::Client> client_;
};

TEST_F(ArchitecturesTest, EachIsListedWithItsStateAndLivesThroughKillForkAndRewind) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::set<std::string> registered, listed;
  for (const engine::ArchEntry& arch : engine::AllArchs()) registered.emplace(arch.name);
  v1::ListModelsRequest list;
  list.set_page_size(100);
  auto models = client_->ListModels(list);
  ASSERT_TRUE(models.ok()) << models.status();
  std::map<std::string, int64_t> state_bytes;  // by model id
  for (const v1::Model& model : models->models()) {
    listed.insert(model.architecture());
    state_bytes[std::string(client::IdOf(model.name()))] = model.state_bytes();
    EXPECT_GT(model.state_bytes(), 0) << model.name();
    EXPECT_FALSE(model.state_formula().empty()) << model.name();
  }
  EXPECT_EQ(listed, registered) << "an architecture has no tiny checkpoint, or is not served";
  ASSERT_EQ(state_bytes.size(), TinyModels().size());

  std::map<std::string, std::vector<int32_t>> first, second;
  std::map<std::string, int64_t> position;  // after the first turn
  for (const auto& [model, bytes] : state_bytes) {
    v1::CreateSessionRequest create;
    create.set_session_id(model);
    create.mutable_session()->set_model(absl::StrCat("models/", model));
    ASSERT_TRUE(client_->CreateSession(create).ok()) << model;
    first[model] = Run(model, kFirst);
    auto session = client_->GetSession(model);
    ASSERT_TRUE(session.ok()) << model << ": " << session.status();
    position[model] = session->position_tokens();
    v1::ForkSessionRequest fork;
    fork.set_name(model);
    fork.add_session_ids(absl::StrCat("fork-", model));
    ASSERT_TRUE(client_->ForkSession(fork).ok()) << model;
    second[model] = Run(model, kSecond);
    EXPECT_EQ(second[model].size(), static_cast<size_t>(kTokens)) << model;
  }

  server_->Kill();
  ASSERT_NO_FATAL_FAILURE(Start());
  for (const auto& [model, bytes] : state_bytes) {
    EXPECT_EQ(Run(absl::StrCat("fork-", model), kSecond), second[model]) << model << ": fork";
    v1::RewindSessionRequest rewind;
    rewind.set_name(model);
    rewind.set_position_tokens(position[model]);
    auto rewound = client_->RewindSession(rewind);
    ASSERT_TRUE(rewound.ok()) << model << ": " << rewound.status();
    EXPECT_EQ(rewound->recomputed_tokens(), 0) << model;  // there is a snapshot at a turn's end
    EXPECT_EQ(Run(model, kSecond), second[model]) << model << ": rewind";

    // The same history read at once, by nobody's session.
    v1::GenerateRequest stateless = Turn("", "");
    stateless.set_model(absl::StrCat("models/", model));
    auto* ids = stateless.mutable_token_ids()->mutable_ids();
    const std::vector<int32_t> begin = Tokens(model, kFirst), end = Tokens(model, kSecond);
    for (const auto* part : {&begin, &std::as_const(first[model]), &end}) {
      ids->Add(part->begin(), part->end());
    }
    auto turn = client_->Complete(stateless);
    ASSERT_TRUE(turn.ok()) << model << ": " << turn.status();
    EXPECT_TRUE(std::ranges::equal(turn->token_ids(), second[model])) << model << ": stateless";
  }
  std::cout << "served: " << state_bytes.size() << " checkpoints of " << listed.size()
            << " architectures\n";
}

}  // namespace
}  // namespace mneme::test
