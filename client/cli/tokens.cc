// mneme tokenize and mneme score: what a model makes of a text.
#include <cmath>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/context.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

namespace mneme::cli {
namespace {

struct TokenizeFlags {
  std::string text = "-", model;
  bool special = false, bos = false, chat = false, count = false;
  std::vector<int32_t> decode;
};

int RunDetokenize(client::Client& client, const Context& context, const TokenizeFlags& flags) {
  v1::DetokenizeRequest request;
  request.set_model(context.ModelOr(flags.model));
  request.mutable_token_ids()->Assign(flags.decode.begin(), flags.decode.end());
  auto response = client.Detokenize(request);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*response)) << "\n";
  } else {
    std::cout << ForStdout(response->text()) << (StdoutIsTty() ? "\n" : "");
  }
  return kOk;
}

int RunTokenize(client::Client& client, const Context& context, const TokenizeFlags& flags) {
  if (!flags.decode.empty()) return RunDetokenize(client, context, flags);
  auto text = TextOrStdin(flags.text);
  if (!text.ok()) return context.Fail(text.status());
  v1::TokenizeRequest request;
  request.set_model(context.ModelOr(flags.model));
  request.set_parse_special_tokens(flags.special);
  request.set_add_bos(flags.bos);
  if (flags.chat) {
    auto& m = *request.mutable_messages()->add_messages();
    m.set_role("user");
    m.set_content(*text);
  } else {
    request.set_text(*text);
  }
  auto response = client.Tokenize(request);
  if (!response.ok()) return context.Fail(response.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*response)) << "\n";
  } else if (flags.count) {
    std::cout << response->token_ids_size() << "\n";
  } else if (context.names_only()) {
    for (int id : response->token_ids()) std::cout << id << "\n";
  } else {
    Table table({"ID", "BYTES"});
    for (int i = 0; i < response->token_ids_size(); ++i) {
      table.Add({absl::StrCat(response->token_ids(i)),
                 i < response->pieces_size() ? Quoted(response->pieces(i)) : ""});
    }
    table.Print(std::cout);
  }
  return kOk;
}

struct ScoreFlags {
  std::string text = "-", model, session;
  bool special = false, summary = false;
  int logprobs = 0;
};

std::string Alternatives(const v1::Logprobs& logprobs) {
  std::string text;
  for (const auto& t : logprobs.top()) {
    absl::StrAppendFormat(&text, "%s%d:%.3f", text.empty() ? "" : " ", t.token_id(), t.logprob());
  }
  return text;
}

int RunScore(client::Client& client, const Context& context, const ScoreFlags& flags) {
  auto text = TextOrStdin(flags.text);
  if (!text.ok()) return context.Fail(text.status());
  v1::ScoreRequest request;
  request.set_model(flags.session.empty() ? context.ModelOr(flags.model) : flags.model);
  request.set_session(flags.session);
  request.set_text(*text);
  request.set_parse_special_tokens(flags.special);
  request.set_logprobs(flags.logprobs);
  auto score = client.Score(request);
  if (!score.ok()) return context.Fail(score.status());
  if (context.json()) {
    std::cout << Dump(ToJson(*score)) << "\n";
    return kOk;
  }
  if (!flags.summary) {
    std::vector<std::string> header = {"ID", "LOGPROB"};
    if (flags.logprobs > 0) header.push_back("ALTERNATIVES (id:logprob)");
    Table table(header);
    for (int i = 0; i < score->token_ids_size(); ++i) {
      const bool scored = i >= score->unscored_tokens() && i < score->logprobs_size();
      std::vector<std::string> row = {
          absl::StrCat(score->token_ids(i)),
          scored ? absl::StrFormat("%.4f", score->logprobs(i).logprob()) : "-"};
      if (flags.logprobs > 0) row.push_back(scored ? Alternatives(score->logprobs(i)) : "");
      table.Add(row);
    }
    table.Print(std::cout);
  }
  const auto count = static_cast<double>(score->token_ids_size() - score->unscored_tokens());
  std::cout << absl::StrFormat("%.0f tokens, log-probability %.4f, perplexity %.4f\n", count,
                               score->total_logprob(),
                               count > 0 ? std::exp(-score->total_logprob() / count) : NAN);
  return kOk;
}

}  // namespace

void AddTokenize(CLI::App& app, Context& context) {
  auto* command =
      app.add_subcommand("tokenize", "Show the tokens of a text, or the text of tokens");
  auto flags = std::make_shared<TokenizeFlags>();
  command->add_option("TEXT", flags->text, "Text; '-' or nothing reads stdin");
  AddModelFlag(*command, flags->model, "Model whose tokens");
  command->add_flag("--add-bos", flags->bos, "Begin with the model's begin-of-text token");
  command->add_flag("--parse-special-tokens", flags->special, "Recognise control tokens");
  command->add_flag("--chat", flags->chat, "As a user's message, through the chat template");
  command->add_flag("--count", flags->count, "Print their number only");
  command->add_option("--decode", flags->decode, "Token ids to turn into text instead")
      ->delimiter(',');
  command->footer(R"(
Examples:
  mneme tokenize "Hello, world"
  mneme tokenize --count < book.txt
  mneme tokenize -o name "Hello"          # ids only, one a line
  mneme tokenize --decode 19556,28,905)");
  OnRun(command, context,
        [&context, flags](client::Client& c) { return RunTokenize(c, context, *flags); });
}

void AddScore(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("score", "Log-probability of every token of a text");
  auto flags = std::make_shared<ScoreFlags>();
  command->add_option("TEXT", flags->text, "Text; '-' or nothing reads stdin");
  AddModelFlag(*command, flags->model, "Model to run, if on no session");
  command->add_option("-s,--session", flags->session,
                      "Score as a continuation of this session, which does not change");
  command->add_option("--logprobs", flags->logprobs, "Show so many alternatives a token, 0..20");
  command->add_flag("--parse-special-tokens", flags->special, "Recognise control tokens");
  command->add_flag("--summary", flags->summary, "Print the last line only");
  command->footer(R"(
Examples:
  mneme score "The cat sat on the mat" --logprobs 3
  mneme score --summary < chapter.txt
  mneme score --session reader " Elizabeth" --json | jq .total_logprob)");
  OnRun(command, context,
        [&context, flags](client::Client& c) { return RunScore(c, context, *flags); });
}

}  // namespace mneme::cli
