#include "client/cli/command_line.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/context.h"
#include "client/cli/nearest.h"

namespace mneme::cli {
namespace {

// The command that was reached, from the program's name on: mneme, sessions, list.
std::vector<const CLI::App*> Reached(const CLI::App& app) {
  std::vector<const CLI::App*> path = {&app};
  for (auto next = app.get_subcommands(); !next.empty(); next = next[0]->get_subcommands()) {
    path.push_back(next[0]);
  }
  return path;
}

std::string Name(const std::vector<const CLI::App*>& path) {
  return absl::StrJoin(path, " ",
                       [](std::string* out, const CLI::App* app) { out->append(app->get_name()); });
}

std::vector<const CLI::App*> AllCommands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> CommandsOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : AllCommands(app)) names.push_back(command->get_name());
  return names;
}

// Without their dashes.
std::vector<std::string> FlagsOf(const std::vector<const CLI::App*>& path) {
  std::set<std::string> names;
  for (const CLI::App* app : path) {
    for (const CLI::Option* option : app->get_options()) {
      for (const auto& all : {option->get_lnames(), option->get_snames()}) {
        names.insert(all.begin(), all.end());
      }
    }
  }
  return {names.begin(), names.end()};
}

bool IsFlag(const std::string& word) { return word.size() > 1 && word[0] == '-'; }

std::string UnknownFlag(const std::vector<const CLI::App*>& path, const std::string& word) {
  const std::string flag = word.substr(0, word.find('='));
  const std::string bare = flag.substr(std::min(flag.find_first_not_of('-'), flag.size()));
  std::vector<std::string> nearest = Nearest(bare, FlagsOf(path));
  for (std::string& name : nearest) name.insert(0, name.size() == 1 ? "-" : "--");
  return absl::StrCat("unknown flag ", flag, DidYouMean(nearest));
}

std::string UnknownCommand(const std::vector<const CLI::App*>& path, const std::string& word) {
  const std::vector<std::string> commands = CommandsOf(*path.back());
  const std::string near = DidYouMean(Nearest(word, commands));
  const std::string name = Name({path.begin() + 1, path.end()});
  return absl::StrCat(
      "unknown command ", name, name.empty() ? "" : " ", word,
      near.empty() ? absl::StrCat("; there are ", absl::StrJoin(commands, ", ")) : near);
}

bool NeedsCommand(const CLI::App& app) {
  return app.get_require_subcommand_min() > 0 && app.get_subcommands().empty();
}

std::string FirstUnplaced(const CLI::App& app, bool flag) {
  for (const std::string& word : app.remaining(/*recurse=*/true)) {
    if (IsFlag(word) == flag) return word;
  }
  return "";
}

}  // namespace

bool NamesNoCommand(const CLI::App& app) {
  const CLI::App& last = *Reached(app).back();
  return !CommandsOf(last).empty() && !FirstUnplaced(app, /*flag=*/false).empty();
}

std::string Explain(const CLI::App& app, const CLI::ParseError& error) {
  const auto path = Reached(app);
  const std::string flag = FirstUnplaced(app, /*flag=*/true);
  const std::string word = FirstUnplaced(app, /*flag=*/false);
  std::string text;
  if (!flag.empty()) {
    text = UnknownFlag(path, flag);  // a word that is left over is its value
  } else if (!word.empty() && !CommandsOf(*path.back()).empty()) {
    text = UnknownCommand(path, word);
  } else if (!word.empty()) {
    text = absl::StrCat("unexpected argument '", word, "'");
  } else if (NeedsCommand(*path.back())) {
    text = absl::StrCat("a command is missing; there are ",
                        absl::StrJoin(CommandsOf(*path.back()), ", "));
  } else {
    text = error.what();
  }
  return absl::StrCat(text, "\nSee `", Name(path), " --help`.");
}

void AddHelp(CLI::App& app, Context& context) {
  auto* command = app.add_subcommand("help", "Show the help of a command");
  auto words = std::make_shared<std::vector<std::string>>();
  command->add_option("COMMAND", *words, "Its words, such as: sessions rewind");
  command->footer("\nExample:\n  mneme help sessions rewind");
  command->callback([&app, &context, words] {
    std::vector<const CLI::App*> path = {&app};
    for (const std::string& word : *words) {
      const auto commands = AllCommands(*path.back());
      const auto next = std::find_if(commands.begin(), commands.end(),
                                     [&](const CLI::App* c) { return c->check_name(word); });
      if (next == commands.end()) {
        context.exit_code =
            context.FailUsage(CommandsOf(*path.back()).empty()
                                  ? absl::StrCat(Name(path), " has no commands of its own")
                                  : UnknownCommand(path, word));
        return;
      }
      path.push_back(*next);
    }
    const std::string name = Name(path);
    std::cout << app.get_formatter()->make_help(path.back(), name, CLI::AppFormatMode::Normal);
  });
}

}  // namespace mneme::cli
