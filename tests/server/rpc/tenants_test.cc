// What separates tenants, for every method of every service there is: a method that is added
// without being told what it takes from its caller fails here.
#include <gmock/gmock.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/generic/generic_stub.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <future>
#include <set>
#include <sstream>

#include "server/core/generation_table.h"
#include "server/rpc/method_access.h"
#include "tests/server/rpc/keys_testing.h"
#include "tests/server/rpc/served_core.h"
#include "tests/support/child_process.h"

namespace mneme::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using testing::UnorderedElementsAreArray;

// Of requests, string fields that look like names and are none: what a session is, not which.
const std::set<std::string> kNoNames = {
    "CreateSession session.name",         "CreateSession session.parent",
    "UpdateSession session.parent",       "ImportSession start.session.name",
    "ImportSession start.session.parent", "GetModel name"};

std::vector<const MethodDescriptor*> AllMethods() {
  std::vector<const MethodDescriptor*> methods;
  for (const auto* file :
       {v1::GetSessionRequest::descriptor()->file(), v1::GenerateRequest::descriptor()->file(),
        v1::GetModelRequest::descriptor()->file(), v1::GetLoadsRequest::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        methods.push_back(file->service(s)->method(m));
      }
    }
  }
  return methods;
}

void CollectNames(const google::protobuf::Descriptor& type, const std::string& prefix,
                  std::set<std::string>& paths) {
  static const std::set<std::string> kNameLike = {
      "name", "names", "parent", "session", "snapshot", "tenant", "generation", "resume_token"};
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (field.type() == FieldDescriptor::TYPE_STRING && kNameLike.contains(field.name())) {
      paths.insert(prefix + field.name());
    } else if (field.type() == FieldDescriptor::TYPE_MESSAGE && !field.is_map() &&
               field.message_type()->file()->package() == "mneme.v1") {
      CollectNames(*field.message_type(), prefix + field.name() + ".", paths);
    }
  }
}

void SetText(Message& message, const std::string& path, const std::string& text) {
  const size_t dot = path.find('.');
  const auto* field = message.GetDescriptor()->FindFieldByName(path.substr(0, dot));
  const auto& reflection = *message.GetReflection();
  if (dot == path.npos && field->is_repeated()) {
    reflection.AddString(&message, field, text);
  } else if (dot == path.npos) {
    reflection.SetString(&message, field, text);
  } else {
    SetText(*reflection.MutableMessage(&message, field), path.substr(dot + 1), text);
  }
}

class TenantsTest : public ServedCoreTest {
 protected:
  void ServeWithKeys() {
    config.auth.keys_file =
        WriteKeys(folder_.path() / "keys.yaml",
                  "keys:\n" + KeyEntry("acme-1", "acme", "user") +
                      KeyEntry("other-1", "other", "user") + KeyEntry("look", "acme", "reader") +
                      KeyEntry("scrape", "acme", "metrics") + KeyEntry("root", "ops", "admin") +
                      KeyEntry("scoped", "acme", "user", "models: [elsewhere]"));
    Serve();
  }

  std::unique_ptr<Message> RequestOf(const MethodDescriptor& method) {
    return std::unique_ptr<Message>(factory_.GetPrototype(method.input_type())->New());
  }
  // On the wire a unary call is a stream that has one message each way, so that this does for all.
  grpc::Status CallWith(const std::string& key, const MethodDescriptor& method,
                        const std::string& bytes) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    ShowKey(context, key);
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    std::promise<grpc::Status> done;
    grpc::GenericStub(channel_).UnaryCall(
        &context, absl::StrCat("/", method.service()->full_name(), "/", method.name()),
        grpc::StubOptions(), &request, &response,
        [&](grpc::Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
  }
  template <typename Response, typename Stub, typename Request>
  Response Must(const std::string& key, Stub& stub,
                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    grpc::ClientContext context;
    ShowKey(context, key);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  void Create(const std::string& key, const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_session_id(id);
    Must(key, *sessions_, &v1::Sessions::Stub::CreateSession, request);
  }
  static std::string ReasonIn(const grpc::Status& status) {
    google::rpc::Status details;
    google::rpc::ErrorInfo info;
    EXPECT_TRUE(details.ParseFromString(status.error_details()));
    for (const auto& any : details.details()) any.UnpackTo(&info);
    return info.reason();
  }

  test::TemporaryFolder folder_;
  google::protobuf::DynamicMessageFactory factory_;
};

TEST_F(TenantsTest, EveryMethodSaysWhatItTakesFromItsCaller) {
  for (const MethodDescriptor* method : AllMethods()) {
    const MethodAccess* access = FindMethodAccess(method->name());
    ASSERT_NE(access, nullptr) << method->full_name() << " has no line in method_access.cc";
    std::set<std::string> paths;
    CollectNames(*method->input_type(), "", paths);
    for (const std::string& none : kNoNames) {
      const size_t space = none.find(' ');
      if (none.substr(0, space) == method->name()) paths.erase(none.substr(space + 1));
    }
    std::vector<std::string> told;
    for (const NameField& name : access->names) told.emplace_back(name.path);
    EXPECT_THAT(told, UnorderedElementsAreArray(paths)) << method->full_name();
  }
}

TEST_F(TenantsTest, EveryMethodRefusesNamesOfAnotherTenant) {
  ServeWithKeys();
  Create("acme-1", "s");
  Create("other-1", "s");
  int refused = 0;
  std::set<std::string> answers;
  for (const MethodDescriptor* method : AllMethods()) {
    for (const NameField& name : FindMethodAccess(method->name())->names) {
      std::vector<std::string> foreign;
      if (name.kind == NameField::Kind::kTenant) {
        foreign = {"tenants/other", "other", "tenants/nobody"};
      } else if (name.path == "snapshot") {
        foreign = {"tenants/other/sessions/s/snapshots/v1", "tenants/other/sessions/s@v1"};
      } else if (name.kind == NameField::Kind::kResumeToken) {
        foreign = {MakeResumeToken("tenants/other/generations/g")};
      } else if (method->name().find("Generation") != std::string::npos) {
        foreign = {"tenants/other/generations/g"};
      } else {
        foreign = {"tenants/other/sessions/s", "tenants/other/sessions/absent",
                   "tenants/nobody/sessions/s"};
      }
      for (const std::string& text : foreign) {
        const auto request = RequestOf(*method);
        if (name.path == "snapshot") SetText(*request, "name", "s");
        SetText(*request, std::string(name.path), text);
        const grpc::Status status = CallWith("acme-1", *method, request->SerializeAsString());
        EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED)
            << method->full_name() << " " << name.path << " " << text;
        EXPECT_EQ(ReasonIn(status), "ACCESS_DENIED");
        answers.insert(status.error_message() + status.error_details());
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 30);
  EXPECT_EQ(answers.size(), 1u) << "an answer tells whether there is such a session";
}

TEST_F(TenantsTest, WithoutAKeyNothingIsRead) {
  ServeWithKeys();
  for (const MethodDescriptor* method : AllMethods()) {
    for (const char* key : {"", "nobody"}) {
      const grpc::Status status = CallWith(key, *method, "\xff no message at all");
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << method->full_name();
      EXPECT_EQ(ReasonIn(status), "CREDENTIALS_INVALID");
    }
  }
}

TEST_F(TenantsTest, AReaderChangesNothing) {
  ServeWithKeys();
  const std::set<std::string> kReads = {"GetSession",     "ListSessions", "ListSnapshots",
                                        "ReadTranscript", "Tokenize",     "Detokenize",
                                        "Score",          "ListModels",   "GetModel",
                                        "ExportSession",  "GetSnapshot",  "GetGeneration"};
  for (const MethodDescriptor* method : AllMethods()) {
    const bool denied =
        CallWith("look", *method, "").error_code() == grpc::StatusCode::PERMISSION_DENIED;
    EXPECT_EQ(denied, !kReads.contains(method->name())) << method->full_name();
    EXPECT_EQ(CallWith("scrape", *method, "").error_code(), grpc::StatusCode::PERMISSION_DENIED)
        << method->full_name();
  }
}

TEST_F(TenantsTest, ListsAndTheirTokensAreOfOneTenant) {
  ServeWithKeys();
  for (const char* id : {"a", "b"}) {
    Create("acme-1", id);
    Create("other-1", id);
  }
  v1::ListSessionsRequest request;
  request.set_page_size(1);
  const auto list = [&](const std::string& key) {
    return Must(key, *sessions_, &v1::Sessions::Stub::ListSessions, request);
  };
  const auto page = list("acme-1");
  ASSERT_EQ(page.sessions_size(), 1);
  EXPECT_EQ(page.sessions(0).name(), "tenants/acme/sessions/a");
  request.set_page_token(page.next_page_token());
  EXPECT_EQ(list("acme-1").sessions(0).name(), "tenants/acme/sessions/b");
  const auto* method =
      v1::ListSessionsRequest::descriptor()->file()->service(0)->FindMethodByName("ListSessions");
  const grpc::Status status = CallWith("other-1", *method, request.SerializeAsString());
  EXPECT_EQ(ReasonIn(status), "PAGE_TOKEN_INVALID");
  request.set_parent("tenants/acme");
  EXPECT_EQ(list("root").sessions(0).name(), "tenants/acme/sessions/b");
  request.clear_page_token();
  request.set_parent("");
  EXPECT_EQ(list("root").sessions_size(), 0);
}

TEST_F(TenantsTest, AnAdminWorksInEveryTenant) {
  ServeWithKeys();
  Create("acme-1", "s");
  v1::GenerateRequest turn = Request("", "abc", 2);
  turn.set_session("tenants/acme/sessions/s");
  EXPECT_EQ(Must("root", *generation_, &v1::Generation::Stub::Complete, turn).final().version(), 1);
  v1::GetSessionRequest get;
  get.set_name("s");
  EXPECT_EQ(Must("acme-1", *sessions_, &v1::Sessions::Stub::GetSession, get).version(), 1);
  v1::BatchDeleteSessionsRequest batch;
  batch.add_names("tenants/acme/sessions/s");
  batch.set_validate_only(true);
  EXPECT_EQ(
      Must("root", *sessions_, &v1::Sessions::Stub::BatchDeleteSessions, batch).sessions_size(), 1);
  // Two names of two tenants are nobody's.
  batch.add_names("tenants/other/sessions/s");
  const auto* batch_delete =
      v1::GetSessionRequest::descriptor()->file()->service(0)->FindMethodByName(
          "BatchDeleteSessions");
  EXPECT_EQ(ReasonIn(CallWith("root", *batch_delete, batch.SerializeAsString())), "ACCESS_DENIED");
  v1::RewindSessionRequest rewind;
  rewind.set_name("tenants/acme/sessions/s");
  rewind.set_snapshot("tenants/other/sessions/s/snapshots/v1");
  const auto* method =
      v1::GetSessionRequest::descriptor()->file()->service(0)->FindMethodByName("RewindSession");
  EXPECT_EQ(ReasonIn(CallWith("root", *method, rewind.SerializeAsString())), "ACCESS_DENIED");
}

TEST_F(TenantsTest, AGenerationIsReadByItsTenantAndByAdmins) {
  ServeWithKeys();
  const auto turn =
      Must("acme-1", *generation_, &v1::Generation::Stub::Complete, Request("", "abc", 2));
  v1::ResumeGenerationRequest request;
  request.set_resume_token(turn.started().resume_token());
  const auto read = [&](const std::string& key) {
    grpc::ClientContext context;
    ShowKey(context, key);
    const auto stream = generation_->ResumeGeneration(&context, request);
    std::string text;
    v1::GenerateResponse event;
    while (stream->Read(&event)) text += event.delta().text();
    const grpc::Status status = stream->Finish();
    return status.ok() ? text : ReasonIn(status);
  };
  EXPECT_EQ(read("acme-1"), turn.text());
  EXPECT_EQ(read("root"), turn.text());
  EXPECT_EQ(read("other-1"), "ACCESS_DENIED");
  request.set_generation(turn.started().generation());
  EXPECT_EQ(read("root"), turn.text());
  EXPECT_EQ(read("other-1"), "ACCESS_DENIED");
}

TEST_F(TenantsTest, AKeyForSomeModelsHasNoOthers) {
  ServeWithKeys();
  Create("acme-1", "s");
  EXPECT_EQ(Must("acme-1", *models_, &v1::Models::Stub::ListModels, {}).models_size(), 1);
  EXPECT_EQ(Must("scoped", *models_, &v1::Models::Stub::ListModels, {}).models_size(), 0);
  const std::pair<const char*, const char*> uses[] = {
      {"GetModel", "name: 'tiny'"},
      {"GetModel", "name: 'absent'"},
      {"CreateSession", ""},
      {"CreateSession", "session { model: 'models/tiny' }"},
      {"Tokenize", "text: 'a'"},
      {"Detokenize", "model: 'tiny'"},
      {"Score", "text: 'a'"},
      {"Score", "text: 'a' session: 's'"},
      {"Complete", "text: 'a' model: 'tiny'"},
      {"Complete", "text: 'a' session: 's'"},
      {"Generate", "text: 'a' session: 's'"},
      {"RewindSession", "name: 's' position_tokens: 0"},
      {"IngestSession", "start { session: 's' ingest_id: 'i' }"},
      {"ImportSession", "start { session { model: 'models/tiny' } }"}};
  for (const auto& [name, text] : uses) {
    for (const MethodDescriptor* method : AllMethods()) {
      if (method->name() != name) continue;
      const auto request = RequestOf(*method);
      ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(text, request.get())) << text;
      const grpc::Status status = CallWith("scoped", *method, request->SerializeAsString());
      EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED)
          << name << " " << text << ": " << status.error_message();
    }
  }
}

TEST_F(TenantsTest, TheLogSaysWhoCalledAndNeverTheKey) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  ServeWithKeys();
  Create("acme-1", "s");
  const auto* method =
      v1::GetSessionRequest::descriptor()->file()->service(0)->FindMethodByName("GetSession");
  CallWith("nobody", *method, "");
  Stop();  // nothing is logged any more
  spdlog::set_default_logger(before);
  const std::string text = log.str();
  for (const char* part :
       {"\"tenant\":\"acme\"", "\"key\":\"acme-1\"",
        "\"peer\":\"ipv4:127.0.0.1:", "\"session\":\"tenants/acme/sessions/s\"",
        "\"reason\":\"CREDENTIALS_INVALID\"", "\"cause\":\"the key is not known\""}) {
    EXPECT_NE(text.find(part), text.npos) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("key-of-"), text.npos) << text;
}

}  // namespace
}  // namespace mneme::server
