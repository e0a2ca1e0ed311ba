// A session exported, imported elsewhere, and continued: as if it had never moved. What a file can
// hold that is wrong is refused, and leaves nothing behind.
#include <zstd.h>

#include <fstream>
#include <limits>
#include <random>

#include "absl/time/clock.h"
#include "server/core/errors.h"
#include "tests/server/core/session_file_testing.h"

namespace mneme::server {
namespace {

using Kind = engine::SnapshotChunk::Kind;

class SessionExportTest : public CoreTest {
 protected:
  void SetUp() override { Start(); }

  // A server of its own, with a store of its own.
  struct Server {
    std::shared_ptr<TestStore::Shared> store = std::make_shared<TestStore::Shared>();
    std::unique_ptr<ServerCore> core;
  };
  Server Elsewhere(const std::function<void(Config&)>& edit = nullptr) {
    Config other = config;
    if (edit) edit(other);
    Server server;
    auto made = ServerCore::Create(other, std::make_unique<TestStore>(server.store));
    EXPECT_TRUE(made.ok()) << made.status();
    server.core = *std::move(made);
    return server;
  }
  static std::vector<int32_t> SayOn(ServerCore& core, const std::string& id) {
    CallContext context;
    CollectingSink sink;
    const absl::Status status = core.Generate(context, Request(id, " and then", 12), sink);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(sink.final.committed());
    EXPECT_EQ(sink.final.usage().recomputed_tokens(), 0);
    return sink.tokens;
  }
  static std::string TranscriptOn(ServerCore& core, const std::string& id) {
    CallContext context;
    v1::ReadTranscriptRequest request;
    request.set_name(Name(id));
    auto read = core.ReadTranscript(context, request);
    EXPECT_TRUE(read.ok()) << read.status();
    return read.ok() ? read->DebugString() : "";
  }
  std::string MustExport(const std::string& name,
                         const std::function<void(v1::ExportSessionRequest&)>& edit = nullptr) {
    auto file = ExportFrom(*core, name, edit);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *file : "";
  }
  // A session of some turns, as a file.
  std::string AFile() {
    Create("a");
    Say("a", "Once upon a time", 20);
    Say("a", " there was", 30);
    return MustExport(Name("a"));
  }

  // Neither session, nor bytes in the store, nor a state in memory.
  static void ExpectNothingLeft(Server& server) {
    EXPECT_EQ(server.store->store->Stats()->records, 0);
    EXPECT_EQ(server.store->store->Stats()->chunks, 0);
    for (const auto& family : server.core->metrics().registry()->Collect()) {
      if (family.name != "mneme_requests_running") continue;
      EXPECT_EQ(family.metric.at(0).gauge.value, 0);
    }
    EXPECT_EQ(server.core->RunningCalls(), 0);
  }
  static void ExpectRefused(Server& server, std::string_view file, absl::StatusCode code,
                            const std::string& reason, const std::string& text = "") {
    auto imported = ImportInto(*server.core, "b", file);
    EXPECT_EQ(imported.status().code(), code) << imported.status();
    EXPECT_EQ(ReasonOf(imported.status()), reason) << imported.status();
    EXPECT_THAT(std::string(imported.status().message()), ::testing::HasSubstr(text));
    ExpectNothingLeft(server);
  }
  static void ExpectDamaged(Server& server, std::string_view file, const std::string& text = "") {
    ExpectRefused(server, file, absl::StatusCode::kInvalidArgument, reason::kStateCorrupt, text);
  }
};

TEST_F(SessionExportTest, WhatIsImportedGoesOnAsIfItHadNeverMoved) {
  // Rings, a memory of fixed size, and both.
  for (const char* model : {"tiny-llama-q.gguf", "tiny-rwkv7-a", "tiny-infini-delta"}) {
    SCOPED_TRACE(model);
    config.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/" + model}};
    store = std::make_shared<TestStore::Shared>();
    Start();
    const std::string file = AFile();
    const std::string small = MustExport(Name("a"), [](auto& r) { r.set_compress(true); });
    const std::string state =
        MustExport(Name("a"), [](auto& r) { r.set_without_transcript(true); });
    EXPECT_LT(small.size(), file.size());
    EXPECT_LT(state.size(), file.size());
    const v1::Session before = Get("a");
    const std::string transcript = TranscriptOn(*core, "a");
    const std::vector<int32_t> tokens = SayOn(*core, "a");

    Server other = Elsewhere();
    for (const std::string& bytes : {file, small, state}) {
      for (const size_t piece : {size_t{1} << 20, size_t{4093}, size_t{1}}) {
        const std::string id = absl::StrCat("b", bytes.size(), "-", piece);
        auto imported = ImportInto(*other.core, id, bytes, piece, [](auto& start) {
          (*start.mutable_session()->mutable_labels())["from"] = "a";
        });
        ASSERT_TRUE(imported.ok()) << imported.status();
        const v1::Session& session = imported->session();
        EXPECT_EQ(session.name(), Name(id));
        EXPECT_EQ(session.version(), before.version());
        EXPECT_EQ(session.position_tokens(), before.position_tokens());
        EXPECT_EQ(session.model_fingerprint(), before.model_fingerprint());
        EXPECT_EQ(session.labels().at("from"), "a");
        EXPECT_NE(session.uid(), before.uid());
        EXPECT_EQ(session.transcript(), bytes == state ? v1::Session::NONE : v1::Session::TOKENS);
        EXPECT_EQ(imported->source_uid(), before.uid());
        EXPECT_TRUE(imported->same_numerics());
        EXPECT_EQ(imported->received_bytes(), static_cast<int64_t>(bytes.size()));
        if (bytes != state) {
          EXPECT_EQ(TranscriptOn(*other.core, id), transcript);
        }
        EXPECT_EQ(SayOn(*other.core, id), tokens);
      }
    }
    // Also after everything came from the store again.
    ASSERT_TRUE(ImportInto(*other.core, "late", file).ok());
    other.core = nullptr;
    auto again = ServerCore::Create(config, std::make_unique<TestStore>(other.store));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(SayOn(**again, "late"), tokens);
    // And it can be rewound to where it began.
    CallContext context;
    v1::RewindSessionRequest rewind;
    rewind.set_name(Name("late"));
    rewind.set_snapshot(absl::StrCat("v", before.version()));
    auto rewound = (*again)->RewindSession(context, rewind);
    ASSERT_TRUE(rewound.ok()) << rewound.status();
    EXPECT_EQ(rewound->recomputed_tokens(), 0);
    EXPECT_EQ(SayOn(**again, "late"), tokens);
  }
}

TEST_F(SessionExportTest, OfASnapshotAndOfASessionThatHasReadNothing) {
  Create("a");
  const std::string empty = MustExport(Name("a"));
  Say("a", "Once upon a time", 20);
  const std::string at_v1 = MustExport(Name("a"));
  Say("a", " there was", 20);
  EXPECT_EQ(MustExport("a@v1"), at_v1);
  auto imported = ImportInto(*core, "b", empty);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->session().position_tokens(), 0);
  EXPECT_EQ(imported->session().transcript(), v1::Session::TOKENS);
  Create("fresh");
  EXPECT_EQ(SayOn(*core, "b"), SayOn(*core, "fresh"));
  auto missing = ExportFrom(*core, "a@v9");
  EXPECT_EQ(ReasonOf(missing.status()), reason::kSnapshotNotFound);
}

TEST_F(SessionExportTest, WhatTheCallerWantsOfTheNewSession) {
  const std::string file = AFile();
  const std::string state = MustExport(Name("a"), [](auto& r) { r.set_without_transcript(true); });
  const int64_t records = store->store->Stats()->records;
  auto valid = ImportInto(*core, "b", file, 1 << 20, [](auto& s) { s.set_validate_only(true); });
  ASSERT_TRUE(valid.ok()) << valid.status();
  EXPECT_EQ(valid->session().version(), 2);
  EXPECT_EQ(store->store->Stats()->records, records);
  EXPECT_EQ(ReasonOf(TryGet("b").status()), reason::kSessionNotFound);

  auto bare = ImportInto(*core, "bare", file, 1 << 20, [](auto& start) {
    start.mutable_session()->set_transcript(v1::Session::NONE);
  });
  ASSERT_TRUE(bare.ok()) << bare.status();
  EXPECT_EQ(bare->session().transcript(), v1::Session::NONE);
  auto wants = ImportInto(*core, "c", state, 1 << 20, [](auto& start) {
    start.mutable_session()->set_transcript(v1::Session::TOKENS);
  });
  EXPECT_THAT(BadFields(wants.status()), ::testing::ElementsAre("start.session.transcript"));
  auto named = ImportInto(*core, "a", file);
  EXPECT_EQ(ReasonOf(named.status()), reason::kSessionExists);
  auto bad = ImportInto(*core, "Not An Id", file);
  EXPECT_THAT(BadFields(bad.status()), ::testing::ElementsAre("start.session_id"));
  auto model = ImportInto(*core, "c", file, 1 << 20,
                          [](auto& start) { start.mutable_session()->set_model("models/x"); });
  EXPECT_EQ(ReasonOf(model.status()), reason::kModelNotFound);
  auto unnamed = ImportInto(*core, "", file);
  ASSERT_TRUE(unnamed.ok()) << unnamed.status();
  EXPECT_THAT(unnamed->session().name(), ::testing::StartsWith(Name("s-")));
  CallContext context;
  auto import = core->StartImport(context, {});
  ASSERT_TRUE(import.ok());
  EXPECT_THAT(BadFields((*import)->Write(std::string((1 << 20) + 1, 'x'))),
              ::testing::ElementsAre("data"));
}

// Whatever the session does meanwhile: turns that replace what is exported, and its end.
TEST_F(SessionExportTest, AnExportHoldsTheVersionItBeganWith) {
  config.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/tiny-rwkv7-a"}};
  Start();
  Create("a", [](auto& session) { session.mutable_snapshot_policy()->set_max_count(0); });
  Say("a", "Once upon a time", 20);
  const std::string before = MustExport(Name("a"));
  CollectingExport sink;
  sink.on_frame = [&] {
    if (sink.frames > 1) return true;
    Say("a", " there was", 20);
    CallContext context;
    v1::DeleteSessionRequest request;
    request.set_name("a");
    request.set_purge(true);
    EXPECT_TRUE(core->DeleteSession(context, request).ok());
    return true;
  };
  // A file that goes out in more than one frame would be read from the store in between; here the
  // pin is seen by what is still there.
  CallContext context;
  v1::ExportSessionRequest request;
  request.set_name("a");
  sink.on_frame = [&, delete_it = sink.on_frame] {
    const bool go_on = delete_it();
    EXPECT_EQ(store->store->Stats()->records, 1);  // the pin
    EXPECT_GT(store->store->Stats()->chunks, 0);
    return go_on;
  };
  const absl::Status status = core->ExportSession(context, request, sink);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(sink.bytes, before);
  EXPECT_EQ(store->store->Stats()->records, 0);
  EXPECT_EQ(store->store->Stats()->chunks, 0);
  EXPECT_TRUE(ImportInto(*core, "b", sink.bytes).ok());
}

TEST_F(SessionExportTest, AClientThatGoesAwayLeavesNoPin) {
  AFile();
  const auto before = *store->store->Stats();
  CallContext context;
  v1::ExportSessionRequest request;
  request.set_name("a");
  CollectingExport sink;
  sink.on_frame = [] { return false; };
  EXPECT_EQ(core->ExportSession(context, request, sink).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(store->store->Stats()->records, before.records);
  EXPECT_EQ(core->RunningCalls(), 0);
}

// Of a server that died while it sent a file.
TEST_F(SessionExportTest, APinThatNobodyHoldsIsSweptAway) {
  const int64_t records = store->store->Stats()->records;
  ASSERT_TRUE(store->store
                  ->Commit({.puts = {{.key = {"default", "pins/a/0"},
                                      .expire_time = absl::Now() - absl::Seconds(1)},
                                     {.key = {"default", "pins/a/1"},
                                      .expire_time = absl::Now() + absl::Hours(1)}}})
                  .ok());
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (store->store->Stats()->records > records + 1 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(store->store->Stats()->records, records + 1);
  EXPECT_TRUE(store->store->Get({"default", "pins/a/1"}).ok());
}

TEST_F(SessionExportTest, AStoreThatTakesNoWritesCanBeExported) {
  const std::string file = AFile();
  store->fault = [](const std::string& op) {
    return op == "commit" ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  EXPECT_EQ(MustExport(Name("a")), file);
  auto imported = ImportInto(*core, "b", file);
  EXPECT_EQ(ReasonOf(imported.status()), reason::kStoreFull);
  store->fault = nullptr;
  EXPECT_EQ(ReasonOf(TryGet("b").status()), reason::kSessionNotFound);
}

TEST_F(SessionExportTest, ADamagedSession) {
  AFile();
  store->corrupt_chunks = true;
  EXPECT_EQ(ExportFrom(*core, Name("a")).status().code(), absl::StatusCode::kDataLoss);
  store->corrupt_chunks = false;
  EXPECT_EQ(Get("a").state(), v1::Session::DAMAGED);
  EXPECT_EQ(ReasonOf(ExportFrom(*core, Name("a")).status()), reason::kSessionDamaged);
  EXPECT_TRUE(ImportInto(*core, "b", MustExport("a@v1")).ok());
}

TEST_F(SessionExportTest, EveryFlippedBitAndEveryCutIsFound) {
  AFile();
  Server other = Elsewhere();
  for (const bool compress : {false, true}) {
    const std::string file = MustExport(Name("a"), [&](auto& r) { r.set_compress(compress); });
    std::mt19937 random(7);
    // Preamble, header and digest at every byte, the chunks at some.
    for (size_t at = 0; at < file.size();
         at += at < 600 || at + 40 > file.size() ? 1 : 1 + random() % (file.size() / 300)) {
      std::string bad = file;
      bad[at] = static_cast<char>(bad[at] ^ (1 << random() % 8));
      auto imported = ImportInto(*other.core, "b", bad, 4096);
      ASSERT_FALSE(imported.ok()) << "byte " << at;
      // Before anything vouches for it, a flipped bit may pretend to be another format.
      if (at < 8 || at > 12) {
        EXPECT_EQ(ReasonOf(imported.status()), reason::kStateCorrupt) << at << imported.status();
        EXPECT_EQ(imported.status().code(), absl::StatusCode::kInvalidArgument);
      }
    }
    ExpectNothingLeft(other);
    for (size_t size = 0; size < file.size();
         size += size < 100 || size + 40 > file.size() ? 1 : file.size() / 100 + 1) {
      ExpectDamaged(other, std::string_view(file).substr(0, size), "ends too early");
    }
    ExpectDamaged(other, file + "x", "bytes follow after its end");
    EXPECT_TRUE(ImportInto(*other.core, "b", file).ok());
    other = Elsewhere();
  }
}

TEST_F(SessionExportTest, OtherFormats) {
  const std::string file = AFile();
  Server other = Elsewhere();
  const auto with_format = [&](char format) {
    std::string bytes = file;
    bytes[8] = format;
    return bytes;
  };
  ExpectRefused(other, with_format(2), absl::StatusCode::kFailedPrecondition, reason::kFormatTooNew,
                "format 2");
  ExpectRefused(other, with_format(0), absl::StatusCode::kFailedPrecondition, reason::kFormatTooOld,
                "format 0");
  FileInParts parts = FileInParts::Of(file);
  parts.EditManifest([](auto& manifest) { manifest.format_version = 1; });
  ExpectRefused(other, parts.File(), absl::StatusCode::kFailedPrecondition, reason::kFormatTooOld);
  parts.EditManifest([](auto& manifest) { manifest.format_version = 3; });
  ExpectRefused(other, parts.File(), absl::StatusCode::kFailedPrecondition, reason::kFormatTooNew);
}

TEST_F(SessionExportTest, AnotherModelOrLayout) {
  const std::string file = AFile();
  const std::string here = Get("a").model_fingerprint();
  Server other = Elsewhere([](Config& c) {
    c.models = {{"tiny", std::string(MNEME_TINY_DIR) + "/tiny-llama-f32.gguf"}};
  });
  auto imported = ImportInto(*other.core, "b", file);
  EXPECT_EQ(ReasonOf(imported.status()), reason::kModelMismatch);
  EXPECT_EQ(Metadata(imported.status(), "session_fingerprint"), here);
  EXPECT_EQ(Metadata(imported.status(), "model_fingerprint").size(), 64u);
  EXPECT_NE(Metadata(imported.status(), "model_fingerprint"), here);
  ExpectNothingLeft(other);

  Server window = Elsewhere([](Config& c) { c.engine.window_tokens = 32; });
  imported = ImportInto(*window.core, "b", file);
  EXPECT_EQ(ReasonOf(imported.status()), reason::kModelMismatch);
  EXPECT_EQ(Metadata(imported.status(), "server_window_tokens"), "32");
  EXPECT_THAT(std::string(imported.status().message()),
              ::testing::HasSubstr("the first tensor that differs: \"0 k F16"));
  ExpectNothingLeft(window);

  // Of several models the file finds its own, under whatever name.
  Server two = Elsewhere([](Config& c) {
    c.models = {{"other", std::string(MNEME_TINY_DIR) + "/tiny-llama-f32.gguf"},
                {"renamed", std::string(MNEME_TINY_DIR) + "/tiny-llama-q.gguf"}};
  });
  imported = ImportInto(*two.core, "b", file);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->session().model(), "models/renamed");
  EXPECT_EQ(SayOn(*two.core, "b"), SayOn(*core, "a"));
  auto wrong = ImportInto(*two.core, "c", file, 1 << 20,
                          [](auto& start) { start.mutable_session()->set_model("other"); });
  EXPECT_EQ(ReasonOf(wrong.status()), reason::kModelMismatch);
}

TEST_F(SessionExportTest, AnotherMachineIsAllowedAndSaid) {
  FileInParts parts = FileInParts::Of(AFile());
  parts.EditManifest([](auto& manifest) { manifest.identity.numerics_id = "mneme/9 gpu"; });
  auto imported = ImportInto(*core, "b", parts.File());
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_FALSE(imported->same_numerics());
  EXPECT_EQ(imported->source_numerics_id(), "mneme/9 gpu");
  EXPECT_NE(imported->numerics_id(), "mneme/9 gpu");
}

// Well-formed in every checksum, and wrong.
TEST_F(SessionExportTest, FilesThatLie) {
  const FileInParts good = FileInParts::Of(AFile());
  Server other = Elsewhere();
  const auto file_with = [&](const std::function<void(FileInParts&)>& edit) {
    FileInParts parts = good;
    edit(parts);
    return parts.File();
  };
  const auto refused_with = [&](const std::string& text,
                                const std::function<void(FileInParts&)>& edit) {
    SCOPED_TRACE(text);
    ExpectDamaged(other, file_with(edit), text);
  };
  refused_with("another position", [](auto& p) {
    p.header.point.set_position_tokens(p.header.point.position_tokens() + 1);
  });
  refused_with("as many tokens", [](auto& p) {
    p.EditManifest([](auto& m) { m.position += 1; });
    p.header.point.set_position_tokens(p.header.point.position_tokens() + 1);
  });
  refused_with("position", [](auto& p) {
    p.EditManifest([](auto& m) { m.position = int64_t{1} << 62; });
    p.header.point.set_position_tokens(int64_t{1} << 62);
    p.header.has_transcript = false;
    p.header.point.clear_transcript();
  });
  refused_with("position", [](auto& p) {
    p.EditManifest([](auto& m) { m.position = std::numeric_limits<int64_t>::max(); });
    p.header.point.set_position_tokens(std::numeric_limits<int64_t>::max());
    p.header.has_transcript = false;
    p.header.point.clear_transcript();
  });
  refused_with("another model", [](auto& p) { p.header.model_fingerprint[0] ^= 1; });
  refused_with("last_token", [](auto& p) { p.header.point.set_last_token(1 << 30); });
  refused_with("last_token", [](auto& p) { p.header.point.set_last_token(-1); });
  refused_with("last_token", [](auto& p) {
    p.header.point.set_last_token(p.header.point.last_token() == 5 ? 6 : 5);
  });
  refused_with("unfinished_character",
               [](auto& p) { p.header.point.set_unfinished_character("\xe2\x82"); });
  refused_with("unfinished_character",
               [](auto& p) { p.header.point.set_unfinished_character("a"); });
  refused_with("schema_text", [](auto& p) { p.header.schema_text += "0 more F32 1\n"; });
  refused_with("printable", [](auto& p) { p.header.model = "models/\x1b[2J"; });
  refused_with("hidden_size", [](auto& p) { p.EditManifest([](auto& m) { ++m.hidden_size; }); });
  refused_with("manifest", [](auto& p) {
    p.header.point.clear_manifest();
    p.header.manifest = nullptr;
  });
  // Sizes that nobody must believe.
  refused_with("at most", [](auto& p) {
    p.EditManifest([](auto& m) { m.chunks[0].size_bytes = 0xfffffff0u; });
  });
  refused_with("a chunk is empty",
               [](auto& p) { p.EditManifest([](auto& m) { m.chunks[0].size_bytes = 0; }); });
  refused_with("at most", [](auto& p) {
    p.EditManifest([](auto& m) {
      const engine::SnapshotChunk chunk = m.chunks[0];
      for (int i = 0; i < 100000; ++i) m.chunks.push_back(chunk);
    });
  });
  refused_with("num_tokens", [](auto& p) {
    p.header.point.mutable_transcript(0)->set_num_tokens(int64_t{1} << 31);
  });
  refused_with("turn_bytes", [](auto& p) {
    p.header.point.mutable_transcript(0)->set_turn_bytes(int64_t{1} << 31);
  });
  // What the state's own reader finds.
  refused_with("snapshot", [](auto& p) { p.EditManifest([](auto& m) { m.chunks.pop_back(); }); });
  refused_with("crc32c", [](auto& p) { p.EditManifest([](auto& m) { ++m.chunks[0].crc32c; }); });
  refused_with("snapshot", [](auto& p) {
    p.EditStateChunk(Kind::kHidden, [](std::string& bytes) { bytes += "more"; });
  });
  // And the transcript's.
  refused_with("vocabulary",
               [](auto& p) { p.EditTranscriptChunk([](auto& ids, auto&) { ids[0] = 1 << 30; }); });
  refused_with("vocabulary",
               [](auto& p) { p.EditTranscriptChunk([](auto& ids, auto&) { ids[0] = -1; }); });
  refused_with("turns overlap", [](auto& p) {
    p.EditTranscriptChunk(
        [](auto&, auto& turns) { *turns.add_turns() = storage::StoredTurn(turns.turns(0)); });
  });
  refused_with("wrong chunk", [](auto& p) {
    p.EditTranscriptChunk(
        [](auto&, auto& turns) { turns.mutable_turns(0)->set_position_tokens(-1); });
  });
  refused_with("length", [](auto& p) {
    p.EditTranscriptChunk([](auto&, auto& turns) {
      turns.mutable_turns(0)->mutable_runs(0)->set_num_tokens(std::numeric_limits<int64_t>::max());
    });
  });
  refused_with("length", [](auto& p) {
    p.EditTranscriptChunk(
        [](auto&, auto& turns) { turns.mutable_turns(0)->mutable_runs(0)->set_lead_bytes(-1); });
  });
  refused_with("a time", [](auto& p) {
    p.EditTranscriptChunk([](auto&, auto& turns) {
      turns.mutable_turns(0)->set_commit_time_us(std::numeric_limits<int64_t>::max());
    });
  });
  for (const Kind kind : {Kind::kRing, Kind::kHidden}) {
    FileInParts parts = good;
    parts.EditStateChunk(kind, [](std::string& bytes) {
      bytes.replace(0, 4, std::string("\x00\x7e\xc0\x7f", 4));  // NaN as f16 and as f32
    });
    ExpectRefused(other, parts.File(), absl::StatusCode::kInvalidArgument, reason::kStateNotFinite,
                  "not finite");
  }
  EXPECT_TRUE(ImportInto(*other.core, "b", good.File()).ok());
}

// A few bytes that inflate to gigabytes end where the header's content does.
TEST_F(SessionExportTest, ACompressionBombIsNotInflated) {
  const FileInParts good = FileInParts::Of(AFile());
  std::string body = good.header.Serialize();
  for (const FileChunk& chunk : ChunksInFile(good.header)) body += good.chunks.at(chunk.id);
  const size_t content = body.size();
  body.resize(content + (256 << 20));
  std::string file = good.File(/*compress=*/true).substr(0, 16);
  std::string packed(ZSTD_compressBound(body.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), body.data(), body.size(), 1));
  file += packed;
  ASSERT_LT(file.size(), 1u << 20);
  Server other = Elsewhere();
  ExpectDamaged(other, file, "more was compressed");
  // And one whose header asks for memory.
  std::string window = good.File(/*compress=*/true).substr(0, 16);
  window += std::string("\x28\xb5\x2f\xfd\x00\xb8", 6) + std::string(64, '\0');  // a 2^33 window
  ExpectDamaged(other, window, "compression is broken");
}

TEST_F(SessionExportTest, NoMoreIsKeptThanTheBudgetHasRoomFor) {
  const std::string file = AFile();
  const int64_t state_bytes = Get("a").state_bytes();
  // The state alone fits, its file beside it does not.
  Server other = Elsewhere([&](Config& c) {
    c.limits.state_memory_bytes = state_bytes + static_cast<int64_t>(file.size()) / 2;
  });
  auto imported = ImportInto(*other.core, "b", file);
  EXPECT_THAT(BadFields(imported.status()), ::testing::ElementsAre("data"));
  EXPECT_EQ(ReasonOf(imported.status()), reason::kFieldOutOfRange);
  ExpectNothingLeft(other);
}

TEST_F(SessionExportTest, ADrainingServerTakesNone) {
  const std::string file = AFile();
  core->StartDrain();
  EXPECT_EQ(ReasonOf(ExportFrom(*core, Name("a")).status()), reason::kDraining);
  EXPECT_EQ(ReasonOf(ImportInto(*core, "b", file).status()), reason::kDraining);
}

// Written by the first server that exported; every later one must read them.
// MNEME_WRITE_GOLDEN=1 writes those of the present format that are not there.
TEST_F(SessionExportTest, GoldenFilesOfEachFormat) {
  const std::string folder = MNEME_SOURCE_DIR "/tests/golden/sessions/";
  for (const char* name : {"format-1.mneme", "format-1-zstd.mneme"}) {
    SCOPED_TRACE(name);
    if (std::getenv("MNEME_WRITE_GOLDEN") != nullptr && !std::ifstream(folder + name)) {
      if (!TryGet("a").ok()) {
        Create("a");
        Say("a", "Once upon a time", 20);
        Say("a", " there was", 30);
      }
      std::ofstream(folder + name, std::ios::binary) << MustExport(Name("a"), [&](auto& r) {
        r.set_compress(std::string(name).find("zstd") != std::string::npos);
      });
    }
    std::ifstream in(folder + name, std::ios::binary);
    const std::string file{std::istreambuf_iterator<char>(in), {}};
    ASSERT_FALSE(file.empty());
    Server other = Elsewhere();
    auto imported = ImportInto(*other.core, "b", file);
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(imported->session().version(), 2);
    EXPECT_EQ(imported->session().transcript(), v1::Session::TOKENS);
    CallContext context;
    v1::ReadTranscriptRequest read;
    read.set_name("b");
    auto transcript = other.core->ReadTranscript(context, read);
    ASSERT_TRUE(transcript.ok()) << transcript.status();
    ASSERT_EQ(transcript->turns_size(), 2);
    EXPECT_EQ(transcript->turns(0).parts(0).text(), "Once upon a time");
    EXPECT_EQ(transcript->turns(1).parts(0).text(), " there was");
    EXPECT_EQ(transcript->position_tokens(), imported->session().position_tokens());
    EXPECT_EQ(SayOn(*other.core, "b").size(), 12u);
  }
}

}  // namespace
}  // namespace mneme::server
