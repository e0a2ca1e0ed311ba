// Models that keep every token (engine.overflow = error): turns end at the context's limit, memory
// grows with the text, and sessions are as durable as any.
#include "tests/server/core/core_test_base.h"

namespace mneme::server {
namespace {

constexpr int64_t kLimit = 200;

class ContextLimitTest : public CoreTest {
 protected:
  ContextLimitTest() {
    config.engine.overflow = "error";
    config.engine.window_tokens = kLimit;
  }

  static v1::GenerateRequest Ids(const std::string& id, int count, int max) {
    auto request = Request(id, "", max);
    for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids(7 + i % 50);
    return request;
  }
  absl::Status Refused(const v1::GenerateRequest& request) {
    CollectingSink sink;
    return Generate(request, sink);
  }
  v1::Model Model() {
    CallContext context;
    v1::GetModelRequest request;
    request.set_name("models/tiny");
    auto model = core->GetModel(context, request);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *model : v1::Model();
  }
};

TEST_F(ContextLimitTest, ATurnEndsWhereTheContextDoes) {
  Start();
  Create("s");
  const auto turn = MustGenerate(Ids("s", 150, 1000));
  EXPECT_EQ(turn.final.finish_reason(), v1::CONTEXT_LIMIT);
  EXPECT_EQ(turn.final.position_tokens(), kLimit);
  EXPECT_EQ(turn.final.usage().output_tokens(), kLimit - turn.started.input_tokens());
  const absl::Status full = Refused(Request("s", "more", 5));
  EXPECT_EQ(full.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(full), reason::kContextFull);
  EXPECT_EQ(Metadata(full, "context_limit_tokens"), "200");
  EXPECT_EQ(Get("s").version(), 1) << "nothing changed";
  // Nothing more to read and nothing to say: not an error.
  EXPECT_EQ(MustGenerate(Request("s", "", 5)).final.finish_reason(), v1::CONTEXT_LIMIT);
}

TEST_F(ContextLimitTest, AnInputThatDoesNotFitIsRefusedWithBothCounts) {
  Start();
  Create("s");
  MustGenerate(Ids("s", 100, 20));
  const int64_t position = Get("s").position_tokens();
  const absl::Status status = Refused(Ids("s", 150, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), reason::kInputTooLong);
  EXPECT_EQ(Metadata(status, "input_tokens"), "150");
  EXPECT_EQ(Metadata(status, "max_input_tokens"), absl::StrCat(kLimit - position));
  // One that fits to the token leaves no room for an answer.
  const auto turn = MustGenerate(Ids("s", static_cast<int>(kLimit - position), 8));
  EXPECT_EQ(turn.final.finish_reason(), v1::CONTEXT_LIMIT);
  EXPECT_EQ(turn.final.usage().output_tokens(), 0);
  EXPECT_EQ(Get("s").position_tokens(), kLimit);
}

TEST_F(ContextLimitTest, RestartForkAndRewindContinueBitForBit) {
  Start();
  Create("whole");
  std::vector<CollectingSink> expected;
  for (int i = 0; i < 4; ++i) expected.push_back(MustGenerate(Ids("whole", 30 + i, 12)));
  Create("stopped");
  for (int i = 0; i < 4; ++i) {
    Start();  // everything in memory is gone
    EXPECT_EQ(MustGenerate(Ids("stopped", 30 + i, 12)).tokens, expected[i].tokens) << i;
  }
  // Back to what two turns left, in a fork; the trunk goes on beside it.
  CallContext context;
  v1::ForkSessionRequest fork;
  fork.set_name(Name("stopped"));
  fork.add_session_ids("fork");
  ASSERT_TRUE(core->ForkSession(context, fork).ok());
  v1::RewindSessionRequest rewind;
  rewind.set_name(Name("fork"));
  rewind.set_position_tokens(expected[1].final.position_tokens());
  auto rewound = core->RewindSession(context, rewind);
  ASSERT_TRUE(rewound.ok()) << rewound.status();
  EXPECT_EQ(MustGenerate(Ids("fork", 32, 12)).tokens, expected[2].tokens);
  EXPECT_EQ(MustGenerate(Ids("stopped", 5, 3)).tokens, MustGenerate(Ids("whole", 5, 3)).tokens);
}

TEST_F(ContextLimitTest, MemoryIsCountedAsItGrows) {
  Start();
  const v1::Model model = Model();
  EXPECT_EQ(model.context_limit_tokens(), kLimit);
  EXPECT_GT(model.state_bytes_per_token(), 0);
  EXPECT_EQ(model.fixed_state_bytes(), 0);
  EXPECT_GE(model.state_bytes(), kLimit * model.state_bytes_per_token());
  Create("s");
  MustGenerate(Ids("s", 10, 4));
  const int64_t page = 64 * model.state_bytes_per_token();
  EXPECT_EQ(Get("s").state_bytes(), page);
  const int64_t hidden = Gauge("mneme_state_bytes") - page;  // its hidden row
  EXPECT_LE(hidden, model.vocab_size() * 4) << "what it has, not what it may get";
  MustGenerate(Ids("s", 80, 4));
  EXPECT_EQ(Get("s").state_bytes(), 2 * page);
  EXPECT_EQ(Gauge("mneme_state_bytes"), 2 * page + hidden);

  // A budget that the largest state would not fit in is refused at start.
  core.reset();
  config.limits.state_memory_bytes = model.state_bytes() / 2;
  auto refused = ServerCore::Create(config, std::make_unique<TestStore>(store));
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("state_memory_bytes"));
}

TEST_F(ContextLimitTest, AnIngestStopsAtTheLimit) {
  Start();
  Create("s");
  CallContext context;
  v1::IngestRequest::Start start;
  start.set_session(Name("s"));
  start.set_ingest_id("book");
  auto ingest = core->StartIngest(context, start);
  ASSERT_TRUE(ingest.ok()) << ingest.status();
  std::string text;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&text, "word", i, " ");
  v1::IngestRequest::Data data;
  data.set_data(text);
  data.set_last(true);
  const absl::Status status = (*ingest)->Write(data);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(ReasonOf(status), reason::kInputTooLong);
}

TEST_F(ContextLimitTest, OtherSettingsDoNotReadItsSessions) {
  Start();
  Create("s");
  MustGenerate(Ids("s", 10, 4));
  config.engine.overflow = "slide";
  Start();
  EXPECT_EQ(Refused(Request("s", "more", 5)).code(), absl::StatusCode::kFailedPrecondition);
  config.engine.overflow = "sometimes";
  EXPECT_FALSE(ServerCore::Create(config, std::make_unique<TestStore>(store)).ok());
}

}  // namespace
}  // namespace mneme::server
