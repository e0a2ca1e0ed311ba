// SPDX-License-Identifier: Apache-2.0
//
// A conversation that survives its server: stream, go on after a restart, fork, rewind, cancel.
//
//   conversation [HOST:PORT]
#include <cstdlib>
#include <iostream>
#include <string>

#include "client/client.h"

namespace {

namespace v1 = mneme::v1;
using mneme::client::Client;

// The value, or the end of the program with the server's reason.
template <typename T>
T Must(absl::StatusOr<T> result) {
  if (result.ok()) return *std::move(result);
  std::cerr << result.status() << "\n" << mneme::client::ErrorOf(result.status()).reason << "\n";
  std::exit(1);
}

v1::GenerateRequest Turn(const v1::Session& session, const std::string& text) {
  v1::GenerateRequest request;
  request.set_session(session.name());
  request.set_text(text);
  request.set_max_output_tokens(24);
  return request;
}

// Streams one turn to the terminal and returns its Final: by then it is on the server's disk.
v1::GenerateResponse::Final Stream(const Client& client, const v1::GenerateRequest& request) {
  auto stream = Must(client.Generate(request));
  for (const v1::GenerateResponse& event : stream) std::cout << event.delta().text() << std::flush;
  std::cout << "\n";
  return Must(stream.Finish());
}

}  // namespace

int main(int argc, char** argv) {
  const Client client = Must(Client::Connect({.server = argc > 1 ? argv[1] : "127.0.0.1:7447"}));

  // A session: a name, a version and one state of fixed size. The server chooses the name.
  const v1::Session session = Must(client.CreateSession({}));
  std::cout << "session " << session.name() << "\n";
  const auto first = Stream(client, Turn(session, "The sea was calm that morning, and"));
  std::cout << "[version " << first.version() << ", " << first.position_tokens() << " tokens]\n";

  // With expected_version the client may send the turn again: it happens once, or ABORTED says that
  // the session has changed since.
  std::cout << "You may restart the server now. Press Enter." << std::endl;
  std::string line;
  std::getline(std::cin, line);
  v1::GenerateRequest next = Turn(session, " Then the wind");
  next.set_expected_version(first.version());
  const auto second = Stream(client, next);
  std::cout << "[version " << second.version()
            << ", read again: " << second.usage().recomputed_tokens() << " tokens]\n";

  // Two answers from the same point. A fork copies a name, however much the session has read.
  v1::ForkSessionRequest fork;
  fork.set_name(session.name());
  fork.set_count(2);
  const v1::ForkSessionResponse forks = Must(client.ForkSession(fork));
  for (int seed = 0; seed < forks.sessions_size(); ++seed) {
    std::cout << "answer " << seed << ":\n";
    v1::GenerateRequest request = Turn(forks.sessions(seed), " and so");
    request.mutable_sampling()->set_seed(seed);
    Stream(client, request);
  }

  // A turn that went wrong is taken back.
  Stream(client, Turn(session, " (nonsense)"));
  v1::RewindSessionRequest rewind;
  rewind.set_name(session.name());
  rewind.set_position_tokens(second.position_tokens());
  const auto rewound = Must(client.RewindSession(rewind));
  std::cout << "rewound to " << rewound.session().position_tokens() << " tokens\n";

  // Cancelled after three deltas. DISCARD: the session is as if it had never been asked.
  v1::GenerateRequest endless = Turn(session, " for ever");
  endless.set_max_output_tokens(4096);
  endless.set_ignore_eos(true);
  endless.set_commit_policy(v1::GenerateRequest::DISCARD);
  auto stream = Must(client.Generate(endless));
  int deltas = 0;
  for (const v1::GenerateResponse& event : stream) {
    if (!event.has_delta() || ++deltas != 3) continue;
    const absl::Status cancelled = client.CancelGeneration(stream.started()->generation());
    if (!cancelled.ok()) std::cerr << cancelled << "\n";
  }
  std::cout << "ended by " << v1::FinishReason_Name(Must(stream.Finish()).finish_reason()) << "\n";
  std::cout << "still at " << Must(client.GetSession(session.name())).position_tokens()
            << " tokens\n";

  v1::DeleteSessionRequest remove;
  remove.set_name(session.name());
  Must(client.DeleteSession(remove));
  for (const v1::Session& child : forks.sessions()) {
    remove.set_name(child.name());
    Must(client.DeleteSession(remove));
  }
}
