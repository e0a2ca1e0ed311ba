// Every error that the API can answer with, provoked over a real channel against a real core: code,
// reason, and the google.rpc details that go with it. At the end the reasons seen are compared with
// those that server/core/errors.h declares: a new reason needs a test here.
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <regex>
#include <set>
#include <sstream>

#include "engine/kernels/kernels.h"
#include "memstore/rocksdb_state_store.h"
#include "tests/server/core/session_file_testing.h"
#include "tests/server/rpc/keys_testing.h"
#include "tests/server/rpc/served_core.h"
#include "tests/support/child_process.h"
#include "tests/support/emulated_gpus.h"
#include "tests/support/failing_new.h"
#include "tests/support/fault_file_system.h"

namespace mneme::server {
namespace {

using Code = grpc::StatusCode;
using std::chrono::milliseconds;

std::set<std::string>& Seen() {
  static auto& seen = *new std::set<std::string>;
  return seen;
}

// Reasons that no client sees: its own gRPC library answers first, without details.
const std::set<std::string> kForTheLogOnly = {"DEADLINE_EXCEEDED"};

class AllReasons : public ::testing::Environment {
 public:
  void TearDown() override {
    if (::testing::GTEST_FLAG(filter) != "*") return;
    std::ifstream file(MNEME_SOURCE_DIR "/server/core/errors.h");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const std::regex reason("inline constexpr char k\\w+\\[\\] = \"([A-Z_]+)\";");
    int declared = 0;
    for (std::sregex_iterator it(text.begin(), text.end(), reason), end; it != end; ++it) {
      ++declared;
      if (kForTheLogOnly.contains((*it)[1])) continue;
      EXPECT_TRUE(Seen().contains((*it)[1])) << (*it)[1] << " is declared, but nothing provokes it";
    }
    EXPECT_GT(declared, 25);
  }
};
const auto* const kAllReasons = ::testing::AddGlobalTestEnvironment(new AllReasons);

// What a status carried.
struct Details {
  google::rpc::ErrorInfo info;
  std::optional<google::rpc::BadRequest> bad;
  std::optional<google::rpc::ResourceInfo> resource;
  std::optional<google::rpc::RetryInfo> retry;
  std::optional<google::rpc::QuotaFailure> quota;
};

Details Parse(const grpc::Status& status) {
  Details out;
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details())) << status.error_message();
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(details.message(), status.error_message());
  int infos = 0;
  for (const auto& any : details.details()) {
    infos += any.UnpackTo(&out.info) ? 1 : 0;
    if (google::rpc::BadRequest bad; any.UnpackTo(&bad)) out.bad = bad;
    if (google::rpc::ResourceInfo resource; any.UnpackTo(&resource)) out.resource = resource;
    if (google::rpc::RetryInfo retry; any.UnpackTo(&retry)) out.retry = retry;
    if (google::rpc::QuotaFailure quota; any.UnpackTo(&quota)) out.quota = quota;
  }
  EXPECT_EQ(infos, 1) << status.error_message();
  EXPECT_EQ(out.info.domain(), "mneme");
  // No paths and nobody's text.
  EXPECT_EQ(status.error_message().find("/tmp"), std::string::npos) << status.error_message();
  return out;
}

Details Expect(const grpc::Status& status, Code code, const std::string& reason, int line) {
  SCOPED_TRACE(absl::StrCat("line ", line));
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_NE(status.error_message(), "");
  Details details = Parse(status);
  EXPECT_EQ(details.info.reason(), reason) << status.error_message();
  Seen().insert(details.info.reason());
  // Refusals that pass say when to come back.
  const bool passes = code == Code::UNAVAILABLE || reason == "SESSION_BUSY" ||
                      reason == "LEASE_LOST" || reason == "QUOTA_REQUESTS" ||
                      reason == "QUOTA_TOKENS";
  EXPECT_EQ(details.retry.has_value(), passes);
  if (details.retry) {
    const auto& delay = details.retry->retry_delay();
    EXPECT_GT(delay.seconds() * 1000 + delay.nanos() / 1000000, 0);
  }
  EXPECT_EQ(details.resource.has_value() && details.resource->resource_name().empty(), false);
  return details;
}
#define EXPECT_RPC(status, code, reason) Expect(status, Code::code, reason, __LINE__)

// INVALID_ARGUMENT that names exactly these fields.
void ExpectFields(const grpc::Status& status, const std::string& reason,
                  const std::vector<std::string>& fields, int line) {
  const Details details = Expect(status, Code::INVALID_ARGUMENT, reason, line);
  std::vector<std::string> named;
  if (details.bad) {
    for (const auto& violation : details.bad->field_violations()) {
      named.push_back(violation.field());
      EXPECT_NE(violation.description(), "");
    }
  }
  EXPECT_EQ(named, fields) << "line " << line;
}
#define EXPECT_FIELDS(status, reason, ...) ExpectFields(status, reason, {__VA_ARGS__}, __LINE__)

class ErrorTableTest : public ServedCoreTest {
 protected:
  grpc::Status Score(const std::string& session, int tokens) {
    v1::ScoreRequest request;
    if (!session.empty()) request.set_session(Name(session));
    for (int i = 0; i < tokens; ++i) request.mutable_token_ids()->add_ids(i % 300);
    return Call(*generation_, &v1::Generation::Stub::Score, request);
  }
  grpc::Status ListSessions(int page_size, const std::string& token, const std::string& filter) {
    v1::ListSessionsRequest request;
    request.set_parent("tenants/default");
    request.set_page_size(page_size);
    request.set_page_token(token);
    request.set_filter(filter);
    return Call(*sessions_, &v1::Sessions::Stub::ListSessions, request);
  }
  grpc::Status Rewind(const std::string& id, int64_t position) {
    v1::RewindSessionRequest request;
    request.set_name(Name(id));
    request.set_position_tokens(position);
    return Call(*sessions_, &v1::Sessions::Stub::RewindSession, request);
  }
  grpc::Status Fork(const std::string& id, const std::string& child) {
    v1::ForkSessionRequest request;
    request.set_name(Name(id));
    request.add_session_ids(child);
    return Call(*sessions_, &v1::Sessions::Stub::ForkSession, request);
  }
  grpc::Status DeleteOverRpc(const std::string& id, bool force = false) {
    v1::DeleteSessionRequest request;
    request.set_name(Name(id));
    request.set_force(force);
    return Call(*sessions_, &v1::Sessions::Stub::DeleteSession, request);
  }
  // The status of an ingest that sends these (offset, text) frames.
  grpc::Status Ingest(const std::string& id,
                      const std::vector<std::pair<int64_t, std::string>>& frames) {
    grpc::ClientContext context;
    auto stream = sessions_->IngestSession(&context);
    v1::IngestRequest request;
    request.mutable_start()->set_session(Name(id));
    request.mutable_start()->set_ingest_id("i");
    stream->Write(request);
    for (const auto& [offset, text] : frames) {
      request.mutable_data()->set_offset_bytes(offset);
      request.mutable_data()->set_data(text);
      stream->Write(request);
    }
    v1::IngestProgress progress;
    stream->WritesDone();
    while (stream->Read(&progress)) {
    }
    return stream->Finish();
  }
};

// What is wrong with the file of a session.
TEST_F(ErrorTableTest, FilesThatCannotBeImported) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  std::string file;
  {
    grpc::ClientContext context;
    v1::ExportSessionRequest request;
    request.set_name("s");
    auto stream = sessions_->ExportSession(&context, request);
    v1::ExportSessionResponse piece;
    while (stream->Read(&piece)) file += piece.data();
    ASSERT_TRUE(stream->Finish().ok());
  }
  const auto import = [&](const std::string& bytes) {
    grpc::ClientContext context;
    v1::ImportSessionResponse response;
    auto stream = sessions_->ImportSession(&context, &response);
    v1::ImportSessionRequest frame;
    frame.mutable_start()->set_session_id("imported");
    stream->Write(frame);
    frame.set_data(bytes);
    stream->Write(frame);
    stream->WritesDone();
    return stream->Finish();
  };
  EXPECT_RPC(import(file.substr(0, file.size() / 2)), INVALID_ARGUMENT, "STATE_CORRUPT");
  std::string other = file;
  other[8] = 2;
  Details format = EXPECT_RPC(import(other), FAILED_PRECONDITION, "FORMAT_TOO_NEW");
  EXPECT_EQ(format.info.metadata().at("file_format"), "2");
  other[8] = 0;
  format = EXPECT_RPC(import(other), FAILED_PRECONDITION, "FORMAT_TOO_OLD");
  EXPECT_EQ(format.info.metadata().at("server_format"), "1");
  FileInParts poisoned = FileInParts::Of(file);
  poisoned.EditStateChunk(engine::SnapshotChunk::Kind::kHidden, [](std::string& bytes) {
    bytes.replace(0, 4, std::string("\x00\x00\xc0\x7f", 4));
  });
  EXPECT_RPC(import(poisoned.File()), INVALID_ARGUMENT, "STATE_NOT_FINITE");
  EXPECT_RPC(GetOverRpc("imported"), NOT_FOUND, "SESSION_NOT_FOUND");
  EXPECT_TRUE(import(file).ok());
  EXPECT_RPC(import(file), ALREADY_EXISTS, "SESSION_EXISTS");
  EXPECT_TRUE(DeleteOverRpc("imported").ok());
  config.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/tiny-llama-f32.gguf"}};
  config.sessions.undelete_window_ms = 0;
  Serve();
  v1::DeleteSessionRequest purge;
  purge.set_name("imported");
  purge.set_purge(true);
  EXPECT_TRUE(Call(*sessions_, &v1::Sessions::Stub::DeleteSession, purge).ok());
  const Details model = EXPECT_RPC(import(file), FAILED_PRECONDITION, "MODEL_MISMATCH");
  EXPECT_EQ(model.info.metadata().at("session_fingerprint").size(), 64u);
  EXPECT_EQ(model.info.metadata().at("model_fingerprint").size(), 64u);

  grpc::ClientContext context;
  v1::ImportSessionResponse response;
  auto stream = sessions_->ImportSession(&context, &response);
  stream->WritesDone();
  EXPECT_FIELDS(stream->Finish(), "FIELD_REQUIRED", "start");
}

TEST_F(ErrorTableTest, MalformedFields) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  EXPECT_FIELDS(GetOverRpc("no name"), "FIELD_INVALID", "name");
  EXPECT_FIELDS(CreateOverRpc("Bad Id"), "FIELD_INVALID", "session_id");
  EXPECT_FIELDS(ListSessions(-1, "", ""), "FIELD_INVALID", "page_size");
  EXPECT_FIELDS(ListSessions(5, "", "colour ~ red"), "FIELD_INVALID", "filter");
  EXPECT_FIELDS(ListSessions(5, "forged", ""), "PAGE_TOKEN_INVALID", "page_token");
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name(Name("s"));
  EXPECT_FIELDS(Call(*sessions_, &v1::Sessions::Stub::UpdateSession, update), "FIELD_REQUIRED",
                "update_mask");
  update.mutable_update_mask()->add_paths("uid");
  EXPECT_FIELDS(Call(*sessions_, &v1::Sessions::Stub::UpdateSession, update), "FIELD_INVALID",
                "update_mask");
  auto request = Request("", "", 1);
  request.mutable_token_ids()->add_ids(379);
  EXPECT_FIELDS(Turn(request), "FIELD_INVALID", "token_ids.ids[0]");
  EXPECT_FIELDS(Turn(Request("", "", 1)), "FIELD_REQUIRED", "input");
  EXPECT_FIELDS(Ingest("s", {{0, "bad \xff"}}), "FIELD_INVALID", "data.data");
  EXPECT_FIELDS(Ingest("s", {{-1, "x"}}), "FIELD_OUT_OF_RANGE", "data.offset_bytes");
  EXPECT_FIELDS(Ingest("s", {}), "FIELD_REQUIRED", "data.last");

  // All of them at once.
  request = Request("", "x", -1);
  request.mutable_sampling()->set_temperature(std::nanf(""));
  request.mutable_sampling()->set_top_p(0);
  request.add_stop_sequences("");
  request.set_logprobs(21);
  EXPECT_FIELDS(Turn(request), "FIELD_OUT_OF_RANGE", "sampling.temperature", "sampling.top_p",
                "stop_sequences[0]", "max_output_tokens", "logprobs");
}

// Protobuf's own parser would refuse these before anyone could say why.
TEST_F(ErrorTableTest, TextThatIsNotUtf8AndBytesThatAreNoMessage) {
  Serve();
  const auto bad = Request("", "bad \xff", 1);
  EXPECT_FIELDS(Turn(bad), "FIELD_INVALID", "text");
  grpc::ClientContext stream_context;
  EXPECT_FIELDS(generation_->Generate(&stream_context, bad)->Finish(), "FIELD_INVALID", "text");
  v1::CreateSessionRequest create;
  create.set_parent("tenants/default");
  create.mutable_session()->mutable_labels()->insert({"key", "\xc0\x80"});
  EXPECT_FIELDS(Call(*sessions_, &v1::Sessions::Stub::CreateSession, create), "FIELD_INVALID",
                "session.labels[0].value");
  grpc::ClientContext ingest_context;
  auto ingest = sessions_->IngestSession(&ingest_context);
  v1::IngestRequest start;
  start.mutable_start()->set_ingest_id("\xff");
  ingest->Write(start);
  EXPECT_FIELDS(ingest->Finish(), "FIELD_INVALID", "start.ingest_id");

  const double failed = Failed("INVALID_ARGUMENT", "FIELD_INVALID");
  grpc::GenericStub generic(channel_);
  const grpc::Slice garbage("\xff\xff\xff no message");
  const grpc::ByteBuffer request(&garbage, 1);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  std::promise<grpc::Status> done;
  generic.UnaryCall(&context, "/mneme.v1.Models/GetModel", grpc::StubOptions(), &request, &response,
                    [&](grpc::Status status) { done.set_value(status); });
  const grpc::Status status = done.get_future().get();
  const Details details = EXPECT_RPC(status, INVALID_ARGUMENT, "FIELD_INVALID");
  EXPECT_FALSE(details.bad.has_value());
  EXPECT_TRUE(context.GetServerTrailingMetadata().contains("x-request-id"));
  EXPECT_EQ(Failed("INVALID_ARGUMENT", "FIELD_INVALID"), failed + 1);
}

TEST_F(ErrorTableTest, TooMuchAndTooFar) {
  config.limits.max_input_tokens = 8;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "x", 2)).ok());
  const Details longer = EXPECT_RPC(Score("", 9), INVALID_ARGUMENT, "INPUT_TOO_LONG");
  EXPECT_EQ(longer.info.metadata().at("input_tokens"), "9");
  EXPECT_EQ(longer.info.metadata().at("max_input_tokens"), "8");
  EXPECT_RPC(Rewind("s", 99), OUT_OF_RANGE, "POSITION_OUT_OF_RANGE");
  EXPECT_RPC(Ingest("s", {{5, "x"}}), OUT_OF_RANGE, "INGEST_GAP");
  EXPECT_EQ(Failed("OUT_OF_RANGE", "INGEST_GAP"), 1);
}

TEST_F(ErrorTableTest, AContextThatIsFull) {
  config.engine.overflow = "error";
  config.engine.window_tokens = 20;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "x", 100)).ok());
  const Details full = EXPECT_RPC(Turn(Request("s", "x", 1)), FAILED_PRECONDITION, "CONTEXT_FULL");
  EXPECT_EQ(full.info.metadata().at("context_limit_tokens"), "20");
}

TEST_F(ErrorTableTest, NamesThatAreNotThereOrTaken) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  EXPECT_RPC(GetOverRpc("tenants/other/sessions/s"), PERMISSION_DENIED, "ACCESS_DENIED");
  Details missing = EXPECT_RPC(GetOverRpc(Name("nobody")), NOT_FOUND, "SESSION_NOT_FOUND");
  EXPECT_EQ(missing.resource->resource_name(), Name("nobody"));
  v1::ForkSessionRequest fork;
  fork.set_name(Name("s") + "/snapshots/v9");
  missing = EXPECT_RPC(Call(*sessions_, &v1::Sessions::Stub::ForkSession, fork), NOT_FOUND,
                       "SNAPSHOT_NOT_FOUND");
  EXPECT_EQ(missing.resource->resource_name(), fork.name());
  v1::GetModelRequest model;
  model.set_name("models/other");
  missing =
      EXPECT_RPC(Call(*models_, &v1::Models::Stub::GetModel, model), NOT_FOUND, "MODEL_NOT_FOUND");
  EXPECT_EQ(missing.resource->resource_name(), "models/other");
  v1::CancelGenerationRequest cancel;
  cancel.set_name("tenants/default/generations/g-nobody");
  EXPECT_RPC(Call(*generation_, &v1::Generation::Stub::CancelGeneration, cancel), NOT_FOUND,
             "GENERATION_NOT_FOUND");
  const Details taken = EXPECT_RPC(CreateOverRpc("s"), ALREADY_EXISTS, "SESSION_EXISTS");
  EXPECT_EQ(taken.resource->resource_name(), Name("s"));
  v1::CreateSnapshotRequest keep;
  keep.set_parent("s");
  keep.set_snapshot_id("kept");
  ASSERT_TRUE(Call(*sessions_, &v1::Sessions::Stub::CreateSnapshot, keep).ok());
  const Details kept = EXPECT_RPC(Call(*sessions_, &v1::Sessions::Stub::CreateSnapshot, keep),
                                  ALREADY_EXISTS, "SNAPSHOT_EXISTS");
  EXPECT_EQ(kept.resource->resource_name(), Name("s") + "/snapshots/kept");
}

TEST_F(ErrorTableTest, RequestsThatAreSentAgain) {
  Serve();
  v1::CreateSessionRequest request;
  request.set_request_id("8c7f1d3e-0b7a-4c55-9d0c-3f4b8f0e6a11");
  const auto create = [&] { return Call(*sessions_, &v1::Sessions::Stub::CreateSession, request); };
  EXPECT_TRUE(create().ok());
  EXPECT_TRUE(create().ok());
  request.set_session_id("other");
  EXPECT_FIELDS(create(), "REQUEST_ID_REUSED", "request_id");
  request.set_request_id("other");
  EXPECT_FIELDS(create(), "FIELD_INVALID", "request_id");
}

TEST_F(ErrorTableTest, GenerationsThatAreReadAgain) {
  Serve();
  v1::CompleteResponse turn;
  ASSERT_TRUE(Turn(Request("", "x", 2), &turn).ok());
  const auto resume = [&](const v1::ResumeGenerationRequest& request) {
    grpc::ClientContext context;
    const auto stream = generation_->ResumeGeneration(&context, request);
    v1::GenerateResponse event;
    while (stream->Read(&event)) {
    }
    return stream->Finish();
  };
  v1::ResumeGenerationRequest request;
  EXPECT_FIELDS(resume(request), "FIELD_REQUIRED", "resume_token");
  request.set_resume_token("made up");
  EXPECT_FIELDS(resume(request), "RESUME_TOKEN_INVALID", "resume_token");
  request.set_resume_token(turn.started().resume_token());
  request.set_after_sequence(1000);
  EXPECT_FIELDS(resume(request), "FIELD_OUT_OF_RANGE", "after_sequence");
  request.set_after_sequence(0);
  EXPECT_TRUE(resume(request).ok());
  request.set_generation("tenants/default/generations/g-nobody");
  const Details expired = EXPECT_RPC(resume(request), FAILED_PRECONDITION, "RESUME_EXPIRED");
  EXPECT_EQ(expired.resource->resource_name(), "tenants/default/generations/g-nobody");

  // What another process has said, which is gone since.
  ASSERT_TRUE(CreateOverRpc("s").ok());
  auto outlives = Request("s", "x", 2);
  outlives.set_on_disconnect(v1::GenerateRequest::CONTINUE);
  ASSERT_TRUE(Turn(outlives, &turn).ok());
  Serve();
  request.set_generation(turn.started().generation());
  request.set_after_sequence(2);
  EXPECT_FIELDS(resume(request), "FIELD_REQUIRED", "received");
  request.mutable_received()->set_tokens(-1);
  EXPECT_FIELDS(resume(request), "FIELD_OUT_OF_RANGE", "received.tokens");
  request.mutable_received()->set_tokens(1);
  EXPECT_RPC(resume(request), ABORTED, "STREAM_DIVERGED");
  request.clear_received();
  request.set_after_sequence(0);
  EXPECT_TRUE(resume(request).ok());

  auto running = Run(Endless(""));
  request.set_generation(running->generation);
  grpc::ClientContext context;
  const auto taker = generation_->ResumeGeneration(&context, request);
  v1::GenerateResponse event;
  ASSERT_TRUE(taker->Read(&event));
  EXPECT_EQ(event.started().generation(), running->generation);
  EXPECT_RPC(running->Drain(), ABORTED, "STREAM_TAKEN_OVER");
  context.TryCancel();
  while (taker->Read(&event)) {
  }
  EXPECT_EQ(taker->Finish().error_code(), Code::CANCELLED);
}

TEST_F(ErrorTableTest, Conflicts) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "x", 2)).ok());
  auto stale = Request("s", "x", 1);
  ASSERT_TRUE(Turn(stale).ok());
  stale.set_expected_version(1);
  Details conflict = EXPECT_RPC(Turn(stale), ABORTED, "VERSION_MISMATCH");
  EXPECT_EQ(conflict.info.metadata().at("current_version"), "2");
  stale.set_expected_version(7);
  conflict = EXPECT_RPC(Turn(stale), DATA_LOSS, "VERSION_REGRESSED");
  EXPECT_EQ(conflict.info.metadata().at("current_version"), "2");

  auto running = Run(Endless("s"));
  conflict = EXPECT_RPC(Turn(Request("s", "y", 1)), ABORTED, "SESSION_BUSY");
  EXPECT_EQ(conflict.info.metadata().at("current_version"), "2");
  EXPECT_RPC(DeleteOverRpc("s"), ABORTED, "SESSION_BUSY");
  EXPECT_TRUE(running->Cancel(*generation_).ok());
  // An ingest that a forced delete ends.
  grpc::ClientContext context;
  auto ingest = sessions_->IngestSession(&context);
  v1::IngestRequest start;
  start.mutable_start()->set_session(Name("s"));
  start.mutable_start()->set_ingest_id("i");
  ASSERT_TRUE(ingest->Write(start));
  v1::IngestProgress progress;
  ASSERT_TRUE(ingest->Read(&progress));
  EXPECT_TRUE(DeleteOverRpc("s", /*force=*/true).ok());
  EXPECT_FALSE(ingest->Read(&progress));
  EXPECT_RPC(ingest->Finish(), CANCELLED, "CANCELLED");
  EXPECT_RPC(Turn(Request("s", "x", 1)), FAILED_PRECONDITION, "SESSION_DELETED");
}

TEST_F(ErrorTableTest, WhatASessionNeedsIsNotThere) {
  Serve();
  Create("s");
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  Create("bare", [](v1::Session& session) { session.set_transcript(v1::Session::NONE); });
  ASSERT_TRUE(Turn(Request("bare", "some text", 3)).ok());
  EXPECT_RPC(Rewind("bare", 2), FAILED_PRECONDITION, "POSITION_NOT_RESTORABLE");
  v1::ReadTranscriptRequest read;
  read.set_name("bare");
  const Details unkept = EXPECT_RPC(Call(*sessions_, &v1::Sessions::Stub::ReadTranscript, read),
                                    FAILED_PRECONDITION, "TRANSCRIPT_NOT_KEPT");
  EXPECT_EQ(unkept.resource->resource_name(), Name("bare"));

  // Another checkpoint under the same name, then no such model.
  config.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/tiny-llama-f32.gguf"}};
  Serve();
  const Details other =
      EXPECT_RPC(Turn(Request("s", "x", 1)), FAILED_PRECONDITION, "MODEL_MISMATCH");
  EXPECT_EQ(other.info.metadata().at("session_fingerprint").size(), 64u);
  EXPECT_EQ(other.info.metadata().at("model_fingerprint").size(), 64u);
  config.models[0].name = "renamed";
  Serve();
  EXPECT_RPC(Turn(Request("s", "x", 1)), FAILED_PRECONDITION, "MODEL_NOT_LOADED");

  // A model without a template.
  config.models = {{"bytes", std::string(MNEME_TINY_DIR) + "/tiny-infini-linear"}};
  Serve();
  auto chat = Request("", "", 1);
  chat.mutable_messages()->add_messages()->set_role("user");
  EXPECT_RPC(Turn(chat), FAILED_PRECONDITION, "NO_CHAT_TEMPLATE");
}

TEST_F(ErrorTableTest, DamageInTheStore) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  Serve();  // so that the state is not in memory
  store->corrupt_chunks = true;
  EXPECT_RPC(Turn(Request("s", "x", 1)), DATA_LOSS, "STATE_CORRUPT");
  EXPECT_RPC(Turn(Request("s", "x", 1)), FAILED_PRECONDITION, "SESSION_DAMAGED");
}

TEST_F(ErrorTableTest, TheStoreIsGone) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  store->fault = [](const std::string&) { return absl::UnavailableError("unplugged"); };
  EXPECT_RPC(GetOverRpc(Name("s")), UNAVAILABLE, "STORE_UNAVAILABLE");
  store->fault = [](const std::string&) {
    absl::Status status = absl::UnavailableError("no standby");
    status.SetPayload(memstore::kNotDurablePayload, absl::Cord());
    return status;
  };
  EXPECT_RPC(GetOverRpc(Name("s")), UNAVAILABLE, "STORE_NOT_DURABLE");
  store->fault = [](const std::string&) { return absl::InternalError("unheard of"); };
  EXPECT_RPC(GetOverRpc(Name("s")), INTERNAL, "INTERNAL");
  store->fault = nullptr;
  EXPECT_TRUE(GetOverRpc(Name("s")).ok());
}

// A real RocksDB on a file system without space: refused, nothing lost, reading and deleting go on.
TEST_F(ErrorTableTest, TheDiskIsFull) {
  test::TemporaryFolder folder;
  auto disk = std::make_shared<testing::FaultFileSystem>(1);
  const auto env = testing::NewFaultEnv(disk);
  memstore::RocksDbInternalOptions options;
  options.store.path = folder.path() / "store";
  options.env = env.get();
  auto opened = memstore::OpenRocksDbStoreInternal(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  store->store = *std::move(opened);
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  v1::CompleteResponse before;
  ASSERT_TRUE(Turn(Request("s", "some text", 3), &before).ok());

  disk->FailWritesAfter(1, rocksdb::IOStatus::NoSpace("no space left on device"));
  EXPECT_RPC(Turn(Request("s", "more", 3)), UNAVAILABLE, "STORE_FULL");
  EXPECT_RPC(CreateOverRpc("t"), UNAVAILABLE, "STORE_FULL");
  v1::Session session;
  v1::GetSessionRequest get;
  get.set_name(Name("s"));
  ASSERT_TRUE(Call(*sessions_, &v1::Sessions::Stub::GetSession, get, &session).ok());
  EXPECT_EQ(session.version(), before.final().version());
  EXPECT_TRUE(Turn(Request("", "stateless", 2)).ok());
  disk->Heal();
  EXPECT_TRUE(Turn(Request("s", "more", 3)).ok());
  EXPECT_TRUE(DeleteOverRpc("s").ok());
  Stop();
  store->store.reset();  // before its env
}

// The store's own check, before it writes: below the reserve only what makes room is let through.
TEST_F(ErrorTableTest, TheDiskIsNearlyFull) {
  test::TemporaryFolder folder;
  memstore::RocksDbInternalOptions options;
  options.store.path = folder.path() / "store";
  auto opened = memstore::OpenRocksDbStoreInternal(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  store->store = *std::move(opened);
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  Stop();
  store->store.reset();
  options.min_free_bytes = uint64_t{1} << 62;
  opened = memstore::OpenRocksDbStoreInternal(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  store->store = *std::move(opened);
  Serve();
  EXPECT_RPC(Turn(Request("s", "more", 3)), UNAVAILABLE, "STORE_FULL");
  EXPECT_TRUE(GetOverRpc(Name("s")).ok());
  EXPECT_TRUE(Turn(Request("", "stateless", 2)).ok());
  EXPECT_TRUE(DeleteOverRpc("s").ok());
  Stop();
  store->store.reset();
}

TEST_F(ErrorTableTest, NoKeyThatTheServerKnows) {
  test::TemporaryFolder folder;
  config.auth.keys_file = folder.path() / "keys.yaml";
  std::ofstream(config.auth.keys_file) << "keys:\n";
  Serve();
  EXPECT_RPC(GetOverRpc("s"), UNAUTHENTICATED, "CREDENTIALS_INVALID");
}

TEST_F(ErrorTableTest, ATenantAtItsLimits) {
  test::TemporaryFolder folder;
  const std::string file = folder.path() / "keys.yaml";
  config.auth.keys_file =
      WriteKeys(file, "keys:\n" + KeyEntry("a", "acme", "user") + KeyEntry("b", "acme", "user") +
                          KeyEntry("c", "other", "user") +
                          "tenants:\n"
                          "  - {id: acme, running: 1, tokens_per_minute: 4}\n");
  Serve();
  const auto turn = [&](const std::string& key) {
    grpc::ClientContext context;
    ShowKey(context, key);
    v1::CompleteResponse response;
    return generation_->Complete(&context, Request("", "x", 8), &response);
  };
  {
    grpc::ClientContext context;
    ShowKey(context, "a");
    auto stream = generation_->Generate(&context, Endless(""));
    v1::GenerateResponse event;
    ASSERT_TRUE(stream->Read(&event));
    const Details refused = EXPECT_RPC(turn("b"), RESOURCE_EXHAUSTED, "QUOTA_REQUESTS");
    ASSERT_TRUE(refused.quota.has_value());
    EXPECT_EQ(refused.quota->violations(0).subject(), "tenants/acme");
    EXPECT_TRUE(turn("c").ok());
    context.TryCancel();
    while (stream->Read(&event)) {
    }
    (void)stream->Finish();
  }
  while (core->RunningCalls() > 0) std::this_thread::sleep_for(milliseconds(10));
  const Details spent = EXPECT_RPC(turn("b"), RESOURCE_EXHAUSTED, "QUOTA_TOKENS");
  ASSERT_TRUE(spent.quota.has_value());
  EXPECT_NE(spent.quota->violations(0).description(), "");
  EXPECT_TRUE(turn("c").ok());
}

TEST_F(ErrorTableTest, ATenantThatKeepsAsMuchAsItMay) {
  test::TemporaryFolder folder;
  const std::string file = folder.path() / "keys.yaml";
  config.auth.keys_file = WriteKeys(file, "keys:\n" + KeyEntry("a", "acme", "user") +
                                              "tenants:\n"
                                              "  - {id: acme, sessions: 1, bytes: 1}\n");
  Serve();
  const auto create = [&](const std::string& id) {
    grpc::ClientContext context;
    ShowKey(context, "a");
    v1::CreateSessionRequest request;
    request.set_parent("tenants/acme");
    request.set_session_id(id);
    v1::Session session;
    return sessions_->CreateSession(&context, request, &session);
  };
  const auto turn = [&] {
    grpc::ClientContext context;
    ShowKey(context, "a");
    v1::CompleteResponse response;
    auto request = Request("", "x", 2);
    request.set_session("tenants/acme/sessions/s");
    return generation_->Complete(&context, request, &response);
  };
  ASSERT_TRUE(create("s").ok());
  const Details sessions = EXPECT_RPC(create("t"), RESOURCE_EXHAUSTED, "QUOTA_SESSIONS");
  ASSERT_TRUE(sessions.quota.has_value());
  EXPECT_EQ(sessions.quota->violations(0).subject(), "tenants/acme");
  EXPECT_EQ(sessions.info.metadata().at("limit"), "1");
  ASSERT_TRUE(turn().ok());
  const Details bytes = EXPECT_RPC(turn(), RESOURCE_EXHAUSTED, "QUOTA_BYTES");
  ASSERT_TRUE(bytes.quota.has_value());
  EXPECT_EQ(bytes.quota->violations(0).description(), "may keep 1 bytes");
}

TEST_F(ErrorTableTest, TooManyAtOnce) {
  config.limits.max_running_streams = 1;
  config.limits.max_queued_requests = 0;
  Serve();
  auto running = Run(Endless(""));
  EXPECT_RPC(Turn(Request("", "x", 1)), UNAVAILABLE, "QUEUE_FULL");
  EXPECT_TRUE(running->Cancel(*generation_).ok());
  EXPECT_TRUE(Turn(Request("", "x", 1)).ok());
}

TEST_F(ErrorTableTest, AServerThatCannotReachTheSharedStore) {
  store->shared = true;
  config.replica.lease_ttl_ms = 400;
  config.replica.lease_renew_ms = 50;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, Endless("s"));
  v1::GenerateResponse event;
  while (!event.has_delta()) ASSERT_TRUE(stream->Read(&event));
  store->fault = [](const std::string&) { return absl::UnavailableError("cut"); };
  while (stream->Read(&event)) {
  }
  EXPECT_RPC(stream->Finish(), ABORTED, "LEASE_LOST");
  store->fault = nullptr;
  EXPECT_TRUE(Turn(Request("s", "x", 1)).ok());
}

TEST_F(ErrorTableTest, AReaderThatNeverReads) {
  config.limits.slow_client_timeout_ms = 2000;  // and as long to read the status
  config.limits.max_unsent_tokens = 4;
  Serve();
  // Log-probabilities make the little that sockets hold fill up soon.
  auto request = Endless("");
  request.set_logprobs(20);
  grpc::ClientContext context;
  auto stream = generation_->Generate(&context, request);
  std::this_thread::sleep_for(milliseconds(100));
  while (core->RunningCalls() > 0) std::this_thread::sleep_for(milliseconds(20));
  v1::GenerateResponse event;
  while (stream->Read(&event)) {
  }
  EXPECT_RPC(stream->Finish(), RESOURCE_EXHAUSTED, "SLOW_CONSUMER");
}

TEST_F(ErrorTableTest, Draining) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  core->StartDrain();
  EXPECT_RPC(Turn(Request("s", "x", 1)), UNAVAILABLE, "DRAINING");
  EXPECT_RPC(CreateOverRpc("t"), UNAVAILABLE, "DRAINING");
  EXPECT_RPC(Ingest("s", {{0, "x"}}), UNAVAILABLE, "DRAINING");
  EXPECT_RPC(Score("", 3), UNAVAILABLE, "DRAINING");
  EXPECT_TRUE(GetOverRpc(Name("s")).ok());
}

TEST_F(ErrorTableTest, ATurnThatOverflows) {
  test::TemporaryFolder folder;
  constexpr int32_t kPoison = 371;
  WritePoisonedCheckpoint(folder.path() / "poisoned", kPoison);
  config.models = {{"poisoned", folder.path() / "poisoned"}};
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "The keeper", 4)).ok());
  auto request = Request("s", "", 4);
  request.mutable_token_ids()->add_ids(kPoison);
  EXPECT_RPC(Turn(request), INTERNAL, "STATE_NOT_FINITE");
  EXPECT_EQ(Get("s").version(), 1);
  EXPECT_EQ(Counter("mneme_state_not_finite_total"), 1);
  // The session is as it was, and its neighbours never noticed.
  v1::CompleteResponse whole, rest;
  ASSERT_TRUE(Turn(Request("", "The keeper", 8), &whole).ok());
  ASSERT_TRUE(Turn(Request("s", "", 4), &rest).ok());
  EXPECT_TRUE(std::equal(rest.token_ids().begin(), rest.token_ids().end(),
                         whole.token_ids().begin() + 4, whole.token_ids().end()));
}

TEST_F(ErrorTableTest, TheEngineRunsOutOfMemory) {
  config.limits.prefill_chunk_tokens = 4096;
  config.limits.max_step_tokens = 4096;
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  {
    // Log-probabilities of 3,000 tokens need 4.5 MB for the step's logits.
    test::FailingNew failing(1 << 20);
    EXPECT_RPC(Score("s", 3000), UNAVAILABLE, "OVERLOADED");
    EXPECT_GT(failing.refused(), 0);
  }
  EXPECT_TRUE(Score("s", 3000).ok());
  EXPECT_TRUE(Turn(Request("s", "more", 3)).ok());
}

TEST_F(ErrorTableTest, ADeviceFails) {
  test::TemporaryFolder folder;
  test::EmulatedGpus gpus(/*count=*/1, folder.path());
  ASSERT_TRUE(engine::OpenBackend(MNEME_CUDA_EMU_PLUGIN).ok());
  config.engine.backend = "cuda-emu";
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  ASSERT_TRUE(Turn(Request("s", "some text", 3)).ok());
  gpus.Order("launch 1 0");
  EXPECT_RPC(Turn(Request("s", "more", 3)), INTERNAL, "BACKEND_FAILED");
  EXPECT_RPC(Turn(Request("s", "more", 3)), INTERNAL, "BACKEND_FAILED");
  EXPECT_RPC(Score("s", 3), INTERNAL, "BACKEND_FAILED");
  EXPECT_RPC(Ingest("s", {{0, "x"}}), INTERNAL, "BACKEND_FAILED");
  EXPECT_EQ(Get("s").version(), 1);
}

TEST_F(ErrorTableTest, NoMemoryForAState) {
  Serve();
  ASSERT_TRUE(CreateOverRpc("s").ok());
  std::string text;
  for (int i = 0; i < 200; ++i) text += "keeper ";
  ASSERT_TRUE(Turn(Request("s", text, 3)).ok());
  Serve();  // the state has to come from the store
  {
    test::FailingNew failing(16 << 10);
    EXPECT_RPC(Turn(Request("s", "more", 3)), UNAVAILABLE, "OVERLOADED");
    EXPECT_GT(failing.refused(), 0);
  }
  EXPECT_TRUE(Turn(Request("s", "more", 3)).ok());
}

}  // namespace
}  // namespace mneme::server
