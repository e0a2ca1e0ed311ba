// mneme bench: what streams cost through the server.
#include <algorithm>
#include <atomic>
#include <iostream>
#include <mutex>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

struct BenchFlags {
  std::string model, mode = "both";
  int streams = 4, concurrency = 1, turns = 1, prompt_tokens = 64, output_tokens = 64;
  uint64_t seed = 1;
  bool prefix_reuse = false;
};

// What the turns of one mode measured. Times in ms.
struct Samples {
  std::vector<double> first_token, gap, commit, queue, decode_rate, prefill_rate;
  int64_t input_tokens = 0, output_tokens = 0, turns = 0;
  double wall_s = 0;
};

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  const auto rank = static_cast<size_t>(p * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rank),
                   values.end());
  return values[rank];
}

// One conversation of `flags.turns` turns. With a session each turn sends what is new; without one
// it sends everything again.
absl::Status RunStream(client::Client& client, const BenchFlags& flags, const v1::Model& model,
                       bool with_session, int index, std::mutex& mutex, Samples& samples) {
  std::mt19937_64 random(flags.seed + static_cast<uint64_t>(index));
  std::uniform_int_distribution<int32_t> any(
      0, static_cast<int32_t>(std::max<int64_t>(model.vocab_size(), 1) - 1));
  std::string session;
  if (with_session) {
    v1::CreateSessionRequest create;
    create.mutable_session()->set_model(model.name());
    create.mutable_session()->set_display_name("mneme bench");
    auto made = client.CreateSession(create);
    if (!made.ok()) return made.status();
    session = made->name();
  }
  absl::Status status;
  std::vector<int32_t> history;
  for (int turn = 0; turn < flags.turns && status.ok(); ++turn) {
    v1::GenerateRequest request;
    if (with_session) {
      request.set_session(session);
    } else {
      request.set_model(model.name());
      request.mutable_token_ids()->mutable_ids()->Assign(history.begin(), history.end());
    }
    for (int i = 0; i < flags.prompt_tokens; ++i) {
      const int32_t id = any(random);
      request.mutable_token_ids()->add_ids(id);
      history.push_back(id);
    }
    request.mutable_sampling()->set_temperature(0);
    request.set_ignore_eos(true);
    request.set_no_prefix_reuse(!flags.prefix_reuse);
    request.set_max_output_tokens(flags.output_tokens);
    const absl::Time sent = absl::Now();
    auto stream = client.Generate(request);
    if (!stream.ok()) {
      status = stream.status();
      break;
    }
    absl::Time last = sent;
    double first_ms = 0;
    std::vector<double> gaps;
    int64_t tokens = 0;
    for (const auto& event : *stream) {
      if (!event.has_delta()) continue;
      const absl::Time now = absl::Now();
      if (tokens == 0) {
        first_ms = absl::ToDoubleMilliseconds(now - sent);
      } else {
        gaps.push_back(absl::ToDoubleMilliseconds(now - last));
      }
      last = now;
      tokens += event.delta().token_ids_size();
      history.insert(history.end(), event.delta().token_ids().begin(),
                     event.delta().token_ids().end());
    }
    auto final = stream->Finish();
    if (!final.ok()) {
      status = final.status();
      break;
    }
    const auto& usage = final->usage();
    std::lock_guard lock(mutex);
    ++samples.turns;
    samples.input_tokens += usage.input_tokens();
    samples.output_tokens += usage.output_tokens();
    if (tokens > 0) samples.first_token.push_back(first_ms);
    samples.gap.insert(samples.gap.end(), gaps.begin(), gaps.end());
    samples.queue.push_back(usage.queue_ms());
    if (with_session) samples.commit.push_back(usage.commit_ms());
    if (usage.decode_ms() > 0) {
      samples.decode_rate.push_back(static_cast<double>(usage.output_tokens()) * 1000 /
                                    usage.decode_ms());
    }
    if (usage.prefill_ms() > 0) {
      samples.prefill_rate.push_back(static_cast<double>(usage.input_tokens()) * 1000 /
                                     usage.prefill_ms());
    }
  }
  if (with_session) {
    v1::DeleteSessionRequest remove;
    remove.set_name(session);
    remove.set_force(true);
    auto removed = client.DeleteSession(remove);
    if (status.ok()) status = removed.status();
  }
  return status;
}

absl::Status RunMode(client::Client& client, const BenchFlags& flags, const v1::Model& model,
                     bool with_session, Samples& samples) {
  std::atomic<int> next{0};
  std::mutex mutex;
  absl::Status status;
  const absl::Time begin = absl::Now();
  std::vector<std::thread> workers;
  for (int w = 0; w < std::min(flags.concurrency, flags.streams); ++w) {
    workers.emplace_back([&] {
      for (int i = next++; i < flags.streams; i = next++) {
        absl::Status s = RunStream(client, flags, model, with_session, i, mutex, samples);
        if (s.ok()) continue;
        std::lock_guard lock(mutex);
        if (status.ok()) status = s;
        next = flags.streams;
      }
    });
  }
  for (auto& worker : workers) worker.join();
  samples.wall_s = absl::ToDoubleSeconds(absl::Now() - begin);
  return status;
}

Json Summary(const Samples& s) {
  auto spread = [](const std::vector<double>& v) {
    return Json{{"p50", Percentile(v, 0.5)},
                {"p90", Percentile(v, 0.9)},
                {"p99", Percentile(v, 0.99)},
                {"max", Percentile(v, 1)}};
  };
  return Json{
      {"turns", s.turns},
      {"input_tokens", s.input_tokens},
      {"output_tokens", s.output_tokens},
      {"wall_s", s.wall_s},
      {"output_tokens_per_s", s.wall_s > 0 ? static_cast<double>(s.output_tokens) / s.wall_s : 0},
      {"stream_decode_tokens_per_s", spread(s.decode_rate)},
      {"stream_prefill_tokens_per_s", spread(s.prefill_rate)},
      {"first_token_ms", spread(s.first_token)},
      {"inter_token_ms", spread(s.gap)},
      {"queue_ms", spread(s.queue)},
      {"commit_ms", spread(s.commit)}};
}

// `name`, or the server's only model.
absl::StatusOr<v1::Model> ModelToMeasure(client::Client& client, const std::string& name) {
  if (!name.empty()) return client.GetModel(name);
  auto models = client.ListModels({});
  if (!models.ok()) return models.status();
  if (models->models_size() == 1) return models->models(0);
  return absl::InvalidArgumentError(absl::StrCat(
      "the server has several models, ",
      absl::StrJoin(
          models->models(), ", ",
          [](std::string* out, const v1::Model& m) { out->append(client::IdOf(m.name())); }),
      ": choose one with --model"));
}

int Run(client::Client& client, const Context& context, BenchFlags flags) {
  auto model = ModelToMeasure(client, context.ModelOr(flags.model));
  if (!model.ok()) return context.Fail(model.status());
  Json report = {{"model", model->name()},
                 {"numerics_id", model->numerics_id()},
                 {"streams", flags.streams},
                 {"concurrency", flags.concurrency},
                 {"turns", flags.turns},
                 {"prompt_tokens", flags.prompt_tokens},
                 {"max_output_tokens", flags.output_tokens}};
  if (!context.json()) {
    std::cout << "model " << client::IdOf(model->name()) << ", " << flags.streams << " streams, "
              << flags.concurrency << " at once, " << flags.turns << " turns of "
              << flags.prompt_tokens << " + " << flags.output_tokens << " tokens each\n"
              << std::flush;
  }
  Table table({"MODE", "TOK/S", "DECODE/STREAM", "PREFILL/STREAM", "TTFT p50", "p90", "p99",
               "ITL p50", "p90", "p99", "COMMIT p50", "TOKENS READ"});
  for (const char* mode : {"stateless", "session"}) {
    if (flags.mode != mode && flags.mode != "both") continue;
    Samples s;
    if (auto status = RunMode(client, flags, *model, std::string(mode) == "session", s);
        !status.ok()) {
      return context.Fail(status);
    }
    report[mode] = Summary(s);
    auto ms = [](const std::vector<double>& v, double p) {
      return absl::StrFormat("%.1f ms", Percentile(v, p));
    };
    table.Add({mode, absl::StrFormat("%.1f", static_cast<double>(s.output_tokens) / s.wall_s),
               absl::StrFormat("%.1f", Percentile(s.decode_rate, 0.5)),
               absl::StrFormat("%.1f", Percentile(s.prefill_rate, 0.5)), ms(s.first_token, 0.5),
               ms(s.first_token, 0.9), ms(s.first_token, 0.99), ms(s.gap, 0.5), ms(s.gap, 0.9),
               ms(s.gap, 0.99), s.commit.empty() ? "-" : ms(s.commit, 0.5),
               HumanCount(s.input_tokens)});
  }
  if (context.json()) {
    std::cout << Dump(report) << "\n";
  } else {
    table.Print(std::cout);
  }
  return kOk;
}

}  // namespace

void AddBench(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("bench", "Measure streams through the server");
  auto flags = std::make_shared<BenchFlags>();
  AddModelFlag(*command, flags->model);
  command->add_option("--mode", flags->mode, "stateless, session or both")
      ->check(CLI::IsMember({"stateless", "session", "both"}))
      ->capture_default_str();
  auto count = [&](const char* name, int& value, const char* help) {
    command->add_option(name, value, help)->check(CLI::Range(1, 1000000))->capture_default_str();
  };
  count("--streams", flags->streams, "Conversations in all");
  count("--concurrency", flags->concurrency, "Conversations at once");
  count("--turns", flags->turns, "Turns of each");
  count("--prompt-tokens", flags->prompt_tokens, "New input tokens of each turn");
  count("--output-tokens", flags->output_tokens, "Output tokens of each turn");
  command->add_option("--seed", flags->seed, "Of the random input tokens")->capture_default_str();
  command->add_flag("--prefix-reuse", flags->prefix_reuse,
                    "Let stateless turns go on from what the server still has of the one before");
  command->footer(R"(
Each conversation sends random tokens and reads the answer greedily to its full length. A stateless
turn sends the whole conversation again, a session's turn only what is new: compare TOKENS READ and
TTFT with --turns 8. What a stateless turn finds read with --prefix-reuse is there by luck: other calls
may have needed the memory, or the turn comes to another server. TOK/S counts all streams by the wall
clock; DECODE/STREAM and PREFILL/STREAM are the medians the server reports; TTFT and ITL (the gap
between deltas) are seen from here.

Examples:
  mneme bench
  mneme bench --streams 16 --concurrency 8 --output-tokens 128
  mneme bench --turns 8 --prompt-tokens 256 --output-tokens 32
  mneme bench --json | jq .session.first_token_ms.p99)");
  OnRun(command, context, [&context, flags](client::Client& c) { return Run(c, context, *flags); });
}

}  // namespace mneme::cli
