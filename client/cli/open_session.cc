#include "client/cli/open_session.h"

#include "absl/strings/str_cat.h"

namespace mneme::cli {

absl::StatusOr<OpenedSession> CreateSession(client::Client& client, const Context& context,
                                            const std::string& name, const std::string& model) {
  v1::CreateSessionRequest request;
  request.set_session_id(std::string(client::IdOf(name)));
  request.set_parent(name.substr(0, name.find("/sessions/")));
  request.mutable_session()->set_model(context.ModelOr(model));
  auto session = client.CreateSession(request);
  if (!session.ok()) return session.status();
  return OpenedSession{*std::move(session), /*created=*/true};
}

absl::StatusOr<OpenedSession> OpenSession(client::Client& client, const Context& context,
                                          const std::string& name, const std::string& model,
                                          IfAbsent if_absent) {
  auto session = client.GetSession(name);
  if (absl::IsNotFound(session.status()) && if_absent == IfAbsent::kCreate) {
    return CreateSession(client, context, name, model);
  }
  if (!session.ok()) return session.status();
  if (!model.empty()) {
    auto wanted = client::ModelName(model);
    if (!wanted.ok()) return wanted.status();
    if (*wanted != session->model()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--model ", model, ": session ", context.Short(name), " runs on ",
          std::string(client::IdOf(session->model())),
          ", and a session keeps its model; leave the flag out, or name a new session"));
    }
  }
  return OpenedSession{*std::move(session)};
}

}  // namespace mneme::cli
