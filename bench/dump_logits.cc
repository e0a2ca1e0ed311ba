// Writes what the engine computes, so that another implementation can be compared with it: token
// ids of a text, logits after every token as raw little-endian f32 [T, V], and greedy answers.
// train/compare_smollm2.py drives it.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "engine/engine.h"
#include "engine/sampler/sampler.h"

namespace mneme::engine {
namespace {

struct Flags {
  EngineOptions engine;
  std::string contract = "int8";
  std::string kv = "f16";
  std::string text_file, ids_out, out, chat;
  int64_t limit = 0;
  int64_t chunk_tokens = 64;
  int64_t max_tokens = 80;
};

absl::StatusOr<std::vector<TokenId>> InputTokens(const Flags& flags, const Engine& engine) {
  std::ifstream file(flags.text_file, std::ios::binary);
  if (!file) return absl::NotFoundError("cannot read " + flags.text_file);
  std::stringstream text;
  text << file.rdbuf();
  absl::StatusOr<std::vector<TokenId>> tokens =
      engine.tokenizer().Encode(text.str(), /*parse_special=*/false, /*at_start=*/true);
  if (tokens.ok() && flags.limit > 0 && static_cast<int64_t>(tokens->size()) > flags.limit) {
    tokens->resize(flags.limit);
  }
  return tokens;
}

absl::Status DumpLogits(const Flags& flags, Engine& engine, std::span<const TokenId> tokens) {
  std::ofstream out(flags.out, std::ios::binary);
  if (!out) return absl::InvalidArgumentError("cannot write " + flags.out);
  State state = engine.CreateState();
  const int64_t vocab_size = engine.info().vocab_size;
  std::vector<float> logits(flags.chunk_tokens * vocab_size);
  for (size_t begin = 0; begin < tokens.size(); begin += flags.chunk_tokens) {
    const size_t count = std::min<size_t>(flags.chunk_tokens, tokens.size() - begin);
    const EngineSlice slice{.state = &state,
                            .tokens = tokens.subspan(begin, count),
                            .num_logits = static_cast<int64_t>(count),
                            .logits = logits.data()};
    if (absl::Status status = engine.Step({&slice, 1}); !status.ok()) return status;
    out.write(reinterpret_cast<const char*>(logits.data()), count * vocab_size * sizeof(float));
  }
  return out.flush() ? absl::OkStatus() : absl::InternalError("cannot write " + flags.out);
}

absl::Status GreedyAnswer(const Flags& flags, Engine& engine) {
  if (engine.chat_template() == nullptr) {
    return absl::FailedPreconditionError(engine.chat_template_problem());
  }
  const ChatMessage message{.role = "user", .content = flags.chat};
  absl::StatusOr<std::vector<TokenId>> prompt = engine.chat_template()->Render({&message, 1}, {});
  if (!prompt.ok()) return prompt.status();
  State state = engine.CreateState();
  std::vector<float> logits(engine.info().vocab_size);
  std::vector<TokenId> input = *prompt, answer;
  Sampler sampler({.temperature = 0});
  const std::vector<TokenId>& ends = engine.tokenizer().special().end_of_generation;
  for (int64_t i = 0; i < flags.max_tokens; ++i) {
    const EngineSlice slice{
        .state = &state, .tokens = input, .num_logits = 1, .logits = logits.data()};
    if (absl::Status status = engine.Step({&slice, 1}); !status.ok()) return status;
    const TokenId token = sampler.Sample(logits, {}, i);
    if (std::binary_search(ends.begin(), ends.end(), token)) break;
    answer.push_back(token);
    input = {token};
  }
  std::cout << engine.tokenizer().Decode(answer, false) << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{"Writes token ids, logits and greedy answers of a checkpoint."};
  app.add_option("checkpoint", flags.engine.checkpoint_path, "GGUF file or safetensors folder")
      ->required();
  app.add_option("--text", flags.text_file, "read this text");
  app.add_option("--limit", flags.limit, "use at most so many tokens");
  app.add_option("--ids-out", flags.ids_out, "write the token ids here, one a line");
  app.add_option("--out", flags.out, "write logits here, raw f32 [T, V]");
  app.add_option("--chunk", flags.chunk_tokens, "tokens a step")->check(CLI::Range(1, 4096));
  app.add_option("--chat", flags.chat, "answer this user message greedily on standard output");
  app.add_option("--max-tokens", flags.max_tokens, "length of that answer");
  app.add_option("--contract", flags.contract)->check(CLI::IsMember({"f32", "int8"}));
  app.add_option("--kv", flags.kv)->check(CLI::IsMember({"f32", "f16"}));
  app.add_option("--backend", flags.engine.backend);
  app.add_option("--threads", flags.engine.num_threads);
  app.add_option("--window", flags.engine.arch.window_tokens);
  app.add_option("--sinks", flags.engine.arch.sink_tokens);
  CLI11_PARSE(app, argc, argv);
  flags.engine.contract = flags.contract == "f32" ? Contract::kF32 : Contract::kInt8;
  flags.engine.arch.kv_dtype = flags.kv == "f32" ? DType::kF32 : DType::kF16;

  const auto run = [&]() -> absl::Status {
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Load(flags.engine);
    if (!engine.ok()) return engine.status();
    std::fprintf(stderr, "%s, %s\n", (*engine)->model_name().c_str(),
                 (*engine)->numerics_id().c_str());
    if (!flags.chat.empty()) return GreedyAnswer(flags, **engine);
    absl::StatusOr<std::vector<TokenId>> tokens = InputTokens(flags, **engine);
    if (!tokens.ok()) return tokens.status();
    if (!flags.ids_out.empty()) {
      std::ofstream out(flags.ids_out);
      for (const TokenId token : *tokens) out << token << "\n";
      if (!out.flush()) return absl::InternalError("cannot write " + flags.ids_out);
    }
    return flags.out.empty() ? absl::OkStatus() : DumpLogits(flags, **engine, *tokens);
  };
  if (const absl::Status status = run(); !status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace mneme::engine

int main(int argc, char** argv) { return mneme::engine::Main(argc, argv); }
