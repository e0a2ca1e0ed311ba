// Every RPC that takes a name takes it as people type it, and answers with full names.
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <set>
#include <sstream>

#include "tests/server/rpc/served_core.h"

namespace mneme::server {
namespace {

using ::testing::UnorderedElementsAre;

class ShortNamesTest : public ServedCoreTest {
 protected:
  // One unary call, which must succeed.
  template <typename Response, typename Stub, typename Request>
  Response Must(Stub& stub,
                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    Response response;
    const grpc::Status status = Call(stub, method, request, &response);
    EXPECT_TRUE(status.ok()) << Request::descriptor()->name() << ": " << status.error_message();
    called_.insert(Request::descriptor()->full_name());
    return response;
  }

  std::set<std::string> called_;  // types of requests
};

TEST_F(ShortNamesTest, EveryRpcTakesThem) {
  using Sessions = v1::Sessions::Stub;
  using Generation = v1::Generation::Stub;
  Serve();

  v1::GetModelRequest get_model;
  get_model.set_name("tiny");
  EXPECT_EQ(Must(*models_, &v1::Models::Stub::GetModel, get_model).name(), "models/tiny");

  v1::CreateSessionRequest create;  // no parent: the caller's tenant
  create.set_session_id("s");
  create.mutable_session()->set_model("tiny");
  const v1::Session created = Must(*sessions_, &Sessions::CreateSession, create);
  EXPECT_EQ(created.name(), Name("s"));
  EXPECT_EQ(created.model(), "models/tiny");
  create.set_parent("default");
  create.set_session_id("t");
  EXPECT_EQ(Must(*sessions_, &Sessions::CreateSession, create).name(), Name("t"));

  v1::ListSessionsRequest list;
  list.set_filter("model = tiny");
  EXPECT_EQ(Must(*sessions_, &Sessions::ListSessions, list).sessions_size(), 2);

  auto turn = Request("", "abc", 2);
  turn.set_session("s");
  EXPECT_EQ(Must(*generation_, &Generation::Complete, turn).final().version(), 1);
  turn.clear_session();
  turn.set_model("tiny");
  Must(*generation_, &Generation::Complete, turn);
  auto endless = Endless("");
  endless.set_session("s");
  const auto running = Run(endless);
  const std::string prefix = "tenants/default/generations/";
  ASSERT_TRUE(running->generation.starts_with(prefix)) << running->generation;
  v1::CancelGenerationRequest cancel;
  cancel.set_name(running->generation.substr(prefix.size()));
  Must(*generation_, &Generation::CancelGeneration, cancel);
  EXPECT_TRUE(running->Drain().ok());
  v1::GetGenerationRequest get_generation;
  get_generation.set_name(cancel.name());
  EXPECT_EQ(Must(*generation_, &Generation::GetGeneration, get_generation).name(),
            running->generation);
  v1::ResumeGenerationRequest resume;
  resume.set_generation(cancel.name());
  grpc::ClientContext resume_context;
  const auto resumed = generation_->ResumeGeneration(&resume_context, resume);
  v1::GenerateResponse event;
  ASSERT_TRUE(resumed->Read(&event));
  EXPECT_EQ(event.started().generation(), running->generation);
  while (resumed->Read(&event)) {
  }
  EXPECT_TRUE(resumed->Finish().ok());
  called_.insert(v1::ResumeGenerationRequest::descriptor()->full_name());

  v1::GetSessionRequest get;
  get.set_name("s");
  EXPECT_EQ(Must(*sessions_, &Sessions::GetSession, get).name(), Name("s"));
  v1::UpdateSessionRequest update;
  update.mutable_session()->set_name("s");
  update.mutable_session()->set_display_name("Sam");
  update.mutable_update_mask()->add_paths("display_name");
  EXPECT_EQ(Must(*sessions_, &Sessions::UpdateSession, update).name(), Name("s"));
  v1::ListSnapshotsRequest snapshots;
  snapshots.set_parent("s");
  const auto kept = Must(*sessions_, &Sessions::ListSnapshots, snapshots);
  EXPECT_EQ(kept.snapshots(kept.snapshots_size() - 1).name(), Name("s") + "/snapshots/v1");

  v1::ForkSessionRequest fork;
  for (const auto& [name, child] :
       {std::pair{"s", "a"}, std::pair{"s@v1", "b"}, std::pair{"s/snapshots/v1", "c"}}) {
    fork.set_name(name);
    fork.clear_session_ids();
    fork.add_session_ids(child);
    const auto forked = Must(*sessions_, &Sessions::ForkSession, fork);
    ASSERT_EQ(forked.sessions_size(), 1);
    EXPECT_EQ(forked.sessions(0).name(), Name(child));
    EXPECT_EQ(forked.sessions(0).parent(), Name("s"));
  }
  v1::ReadTranscriptRequest read;
  for (const char* name : {"s", "s@v1", "s/snapshots/v1"}) {
    read.set_name(name);
    EXPECT_EQ(Must(*sessions_, &Sessions::ReadTranscript, read).turns(0).version(), 1) << name;
  }
  v1::RewindSessionRequest rewind;
  rewind.set_name("s");
  for (const char* snapshot : {"v1", "s@v1", "before-rewind"}) {
    rewind.set_snapshot(snapshot);
    EXPECT_EQ(Must(*sessions_, &Sessions::RewindSession, rewind).session().name(), Name("s"));
  }

  grpc::ClientContext ingest_context;
  const auto ingest = sessions_->IngestSession(&ingest_context);
  v1::IngestRequest frame;
  frame.mutable_start()->set_session("s");
  frame.mutable_start()->set_ingest_id("i");
  ingest->Write(frame);
  frame.mutable_data()->set_data("words");
  frame.mutable_data()->set_last(true);
  ingest->Write(frame);
  ingest->WritesDone();
  v1::IngestProgress progress;
  while (ingest->Read(&progress)) {
  }
  EXPECT_TRUE(ingest->Finish().ok());
  EXPECT_TRUE(progress.done());
  called_.insert(v1::IngestRequest::descriptor()->full_name());

  std::string file;
  for (const char* name : {"s", "s@v1"}) {
    grpc::ClientContext export_context;
    v1::ExportSessionRequest request;
    request.set_name(name);
    const auto pieces = sessions_->ExportSession(&export_context, request);
    v1::ExportSessionResponse piece;
    for (file.clear(); pieces->Read(&piece);) file += piece.data();
    EXPECT_TRUE(pieces->Finish().ok()) << name;
    called_.insert(request.GetDescriptor()->full_name());
  }
  for (const char* model : {"", "tiny"}) {
    grpc::ClientContext import_context;
    v1::ImportSessionResponse imported;
    const auto import = sessions_->ImportSession(&import_context, &imported);
    v1::ImportSessionRequest request;  // no parent: the caller's tenant
    request.mutable_start()->set_session_id(absl::StrCat("imported", model));
    request.mutable_start()->mutable_session()->set_model(model);
    import->Write(request);
    request.set_data(file);
    import->Write(request);
    import->WritesDone();
    EXPECT_TRUE(import->Finish().ok());
    EXPECT_EQ(imported.session().name(), Name(absl::StrCat("imported", model)));
    EXPECT_EQ(imported.session().model(), "models/tiny");
    called_.insert(request.GetDescriptor()->full_name());
  }

  v1::CreateSnapshotRequest keep;
  keep.set_parent("s");
  keep.set_snapshot_id("kept");
  EXPECT_EQ(Must(*sessions_, &Sessions::CreateSnapshot, keep).name(),
            Name("s") + "/snapshots/kept");
  v1::GetSnapshotRequest one;
  one.set_name("s@kept");
  EXPECT_EQ(Must(*sessions_, &Sessions::GetSnapshot, one).name(), Name("s") + "/snapshots/kept");
  v1::DeleteSnapshotRequest drop;
  drop.set_name("s/snapshots/kept");
  EXPECT_EQ(Must(*sessions_, &Sessions::DeleteSnapshot, drop).name(),
            Name("s") + "/snapshots/kept");

  v1::TokenizeRequest tokenize;
  tokenize.set_model("tiny");
  tokenize.set_text("abc");
  const auto tokens = Must(*generation_, &Generation::Tokenize, tokenize);
  v1::DetokenizeRequest detokenize;
  detokenize.set_model("tiny");
  *detokenize.mutable_token_ids() = tokens.token_ids();
  EXPECT_EQ(Must(*generation_, &Generation::Detokenize, detokenize).text(), "abc");
  v1::ScoreRequest score;
  score.set_text("abc");
  score.set_model("tiny");
  EXPECT_EQ(Must(*generation_, &Generation::Score, score).unscored_tokens(), 1);
  score.clear_model();
  score.set_session("s");
  EXPECT_EQ(Must(*generation_, &Generation::Score, score).unscored_tokens(), 0);

  v1::DeleteSessionRequest remove;
  remove.set_name("s");
  EXPECT_EQ(Must(*sessions_, &Sessions::DeleteSession, remove).name(), Name("s"));
  v1::BatchDeleteSessionsRequest batch;
  batch.add_names("a");
  batch.add_names(Name("b"));
  EXPECT_EQ(Must(*sessions_, &Sessions::BatchDeleteSessions, batch).sessions_size(), 2);
  v1::UndeleteSessionRequest undelete;
  undelete.set_name("s");
  EXPECT_EQ(Must(*sessions_, &Sessions::UndeleteSession, undelete).name(), Name("s"));

  std::set<std::string> untried;
  for (const auto* file :
       {v1::GetSessionRequest::descriptor()->file(), v1::GenerateRequest::descriptor()->file(),
        v1::GetModelRequest::descriptor()->file()}) {
    for (int i = 0; i < file->service(0)->method_count(); ++i) {
      const std::string& request = file->service(0)->method(i)->input_type()->full_name();
      if (!called_.contains(request)) untried.insert(request);
    }
  }
  EXPECT_THAT(untried, UnorderedElementsAre("mneme.v1.ListModelsRequest"));  // takes no name
}

TEST_F(ShortNamesTest, TheLogHasFullNames) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  Serve();
  EXPECT_TRUE(CreateOverRpc("s").ok());
  EXPECT_TRUE(GetOverRpc("s").ok());
  Stop();  // nothing is logged any more
  spdlog::set_default_logger(before);
  EXPECT_NE(log.str().find(absl::StrCat("\"session\":\"", Name("s"), "\"")), std::string::npos)
      << log.str();
}

TEST_F(ShortNamesTest, ErrorsHaveFullNames) {
  Serve();
  auto turn = Request("", "abc", 1);
  turn.set_session("nobody");
  const grpc::Status status = Turn(turn);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_NE(status.error_details().find(Name("nobody")), std::string::npos);
  v1::GetModelRequest model;
  model.set_name("nothing");
  const grpc::Status missing = Call(*models_, &v1::Models::Stub::GetModel, model);
  EXPECT_EQ(missing.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_NE(missing.error_details().find("models/nothing"), std::string::npos);
}

}  // namespace
}  // namespace mneme::server
