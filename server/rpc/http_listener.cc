#include "server/rpc/http_listener.h"

#include <CivetServer.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme::server {
namespace {

struct Reply {
  int code = 200;
  std::string type = "text/plain; charset=utf-8";
  std::string body;
  std::string more_headers = "";
};

// What a path says to a request with this header `authorization`.
using Answer = std::function<Reply(const std::string& authorization)>;

// A peer that sends nothing, or reads nothing, holds one of few threads for so long.
constexpr char kTimeoutMs[] = "5000";
constexpr char kThreads[] = "4";

Reply Scrape(const std::vector<std::shared_ptr<prometheus::Collectable>>& metrics) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& part : metrics) {
    std::vector<prometheus::MetricFamily> its = part->Collect();
    std::move(its.begin(), its.end(), std::back_inserter(families));
  }
  return {.type = "text/plain; version=0.0.4; charset=utf-8",
          .body = prometheus::TextSerializer().Serialize(families)};
}

}  // namespace

class HttpListener::Handler : public CivetHandler {
 public:
  explicit Handler(Answer answer) : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    return Send(connection, /*with_body=*/true);
  }
  bool handleHead(CivetServer*, mg_connection* connection) override {
    return Send(connection, /*with_body=*/false);
  }

 private:
  bool Send(mg_connection* connection, bool with_body) {
    const char* const authorization = mg_get_header(connection, "authorization");
    const Reply reply = answer_(authorization == nullptr ? "" : authorization);
    std::string text = absl::StrCat(
        "HTTP/1.1 ", reply.code, " ", mg_get_response_code_text(connection, reply.code),
        "\r\nContent-Type: ", reply.type, "\r\nContent-Length: ", reply.body.size(), "\r\n",
        reply.more_headers, "Cache-Control: no-store\r\nConnection: close\r\n\r\n");
    if (with_body) text += reply.body;
    mg_write(connection, text.data(), text.size());
    return true;
  }

  const Answer answer_;
};

HttpListener::HttpListener() = default;
HttpListener::~HttpListener() = default;

std::unique_ptr<HttpListener> HttpListener::Start(
    const std::string& address, std::vector<std::shared_ptr<prometheus::Collectable>> metrics,
    Probe why_not_alive, Probe why_not_ready,
    std::function<bool(const std::string& authorization)> may_scrape) {
  std::unique_ptr<HttpListener> listener(new HttpListener);
  try {
    listener->server_ = std::make_unique<CivetServer>(std::vector<std::string>{
        "listening_ports", address, "num_threads", kThreads, "request_timeout_ms", kTimeoutMs});
  } catch (const CivetException&) {
    return nullptr;
  }
  auto serve = [&](const char* path, Answer answer) {
    listener->handlers_.push_back(std::make_unique<Handler>(std::move(answer)));
    listener->server_->addHandler(path, listener->handlers_.back().get());
  };
  serve("/metrics", [metrics = std::move(metrics),
                     may_scrape = std::move(may_scrape)](const std::string& authorization) {
    if (may_scrape(authorization)) return Scrape(metrics);
    return Reply{.code = 401,
                 .body = "send `Authorization: Bearer KEY` with a key of role metrics\n",
                 .more_headers = "WWW-Authenticate: Bearer\r\n"};
  });
  const auto probe = [&](const char* path, const char* good, Probe ask) {
    serve(path, [good, ask = std::move(ask)](const std::string&) {
      const std::string why = ask();
      return why.empty() ? Reply{.body = good} : Reply{.code = 503, .body = why + "\n"};
    });
  };
  probe("/healthz", "ok\n", std::move(why_not_alive));
  probe("/readyz", "ready\n", std::move(why_not_ready));
  return listener;
}

int HttpListener::port() const {
  const std::vector<int> ports = server_->getListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace mneme::server
