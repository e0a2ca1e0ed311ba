// A safetensors folder with a tokenizer.model, served by a process that uses protobuf's messages:
// the library that reads such files has an older protobuf inside.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/server/core/core_test_base.h"
#include "tests/support/safetensors_builder.h"

namespace mneme::server {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieces = 600;  // of spm.model

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteFile(const fs::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes << std::flush;
  ASSERT_TRUE(file.good()) << path;
}

// The tiny checkpoint with embedding rows for every piece (the added ones repeat the first).
std::string WithMoreRows(const std::string& file) {
  uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(), sizeof header_size);
  const auto header = nlohmann::json::parse(file.substr(8, header_size));
  test::SafetensorsBuilder builder;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    auto shape = tensor["shape"].get<std::vector<int64_t>>();
    const size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    std::string data = file.substr(8 + header_size + begin, end - begin);
    if (name == "model.embed_tokens.weight") {
      const size_t row = data.size() / shape[0];
      data += data.substr(0, row * (kPieces - shape[0]));
      shape[0] = kPieces;
    }
    builder.Tensor(name, tensor["dtype"].get<std::string>(), shape, data);
  }
  return builder.Build();
}

class SentencePieceTest : public CoreTest {
 protected:
  void SetUp() override {
    std::string folder = (fs::temp_directory_path() / "mneme-spm-XXXXXX").string();
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    const fs::path tiny = fs::path(MNEME_TINY_DIR) / "tiny-llama-hf";
    auto config_json = nlohmann::json::parse(ReadFile(tiny / "config.json"));
    config_json["vocab_size"] = kPieces;
    WriteFile(folder_ / "config.json", config_json.dump());
    WriteFile(folder_ / "model.safetensors", WithMoreRows(ReadFile(tiny / "model.safetensors")));
    model_ = ReadFile(fs::path(MNEME_TOKENIZER_GOLDEN_DIR) / "spm.model");
    WriteFile(folder_ / "tokenizer.model", model_);
    config.models = {{"tiny", folder_.string()}};
  }
  void TearDown() override {
    core.reset();
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  fs::path folder_;
  std::string model_;
};

TEST_F(SentencePieceTest, TokenizesLikeTheGoldenCasesAndGenerates) {
  ASSERT_NO_FATAL_FAILURE(Start());
  const auto cases =
      nlohmann::json::parse(ReadFile(fs::path(MNEME_TOKENIZER_GOLDEN_DIR) / "spm.cases.json"));
  ASSERT_GT(cases.size(), 90u);
  for (const auto& c : cases) {
    v1::TokenizeRequest request;
    request.set_model("models/tiny");
    request.set_text(c["text"].get<std::string>());
    // By way of the wire, as a client's request comes.
    v1::TokenizeRequest received;
    ASSERT_TRUE(received.ParseFromString(request.SerializeAsString()));
    CallContext context;
    auto response = core->Tokenize(context, received);
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_THAT(response->token_ids(),
                ::testing::ElementsAreArray(c["ids"].get<std::vector<int>>()))
        << c["text"];
  }
  Create("s");
  EXPECT_EQ(Say("s", "hello world", 4).tokens.size(), 4u);
}

// Neither BOS nor the space that SentencePiece puts in front is anybody's text.
TEST_F(SentencePieceTest, ATranscriptHasTheTextAsItWasGiven) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Create("s");
  auto request = Request("s", "hello world", 0);
  request.set_add_bos(v1::GenerateRequest::ADD_BOS_ALWAYS);
  MustGenerate(request);
  MustGenerate(Request("s", " and you", 0));
  v1::ReadTranscriptRequest read;
  read.set_name("s");
  read.set_page_size(1);
  std::vector<std::string> texts(3);  // BOS, and two prompts
  do {
    CallContext context;
    const auto page = core->ReadTranscript(context, read);
    ASSERT_TRUE(page.ok()) << page.status();
    const auto& part = page->turns(0).parts(0);
    const bool frame = part.role() == v1::TranscriptPart::TEMPLATE;
    texts[frame ? 0 : page->turns(0).version()] += part.text();
    read.set_page_token(page->next_page_token());
  } while (!read.page_token().empty());
  EXPECT_THAT(texts, ::testing::ElementsAre("", "hello world", " and you"));
}

TEST_F(SentencePieceTest, ADamagedFileIsRefusedWithItsName) {
  for (const std::string& damaged :
       {model_.substr(0, model_.size() / 2), std::string("\xff\xff")}) {
    WriteFile(folder_ / "tokenizer.model", damaged);
    const auto made = ServerCore::Create(config, std::make_unique<TestStore>(store));
    ASSERT_FALSE(made.ok());
    EXPECT_THAT(std::string(made.status().message()), ::testing::HasSubstr("tokenizer.model"));
  }
}

}  // namespace
}  // namespace mneme::server
