// What is wrong with a command line, said so that one can correct it.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace mneme::cli {

// `app` as its parse left it, which threw `error`: the first word that it could not place, with
// what was probably meant, or what else it missed; and where the help for it is.
std::string Explain(const CLI::App& app, const CLI::ParseError& error);

// True if a word stands where only a command may, and is none. The parser shows the help of what
// comes before it then, if that is asked for, as if all were well.
bool NamesNoCommand(const CLI::App& app);

// mneme help [COMMAND ...]
struct Context;
void AddHelp(CLI::App& app, Context& context);

}  // namespace mneme::cli
