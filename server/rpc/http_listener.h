// What scrapers, balancers and orchestrators ask over plain HTTP:
//
//   GET /metrics   Prometheus' text format; 401 to who may not scrape
//   GET /healthz   200 as long as the process answers and can compute; 503 and why not: restart it
//   GET /readyz    200 if new work may be sent here; 503 and why not, from the first moment of a
//                  drain on
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

class CivetServer;

namespace mneme::server {

class HttpListener {
 public:
  // What is wrong, "" if nothing. Called on the listener's threads until the destructor has
  // returned.
  using Probe = std::function<std::string()>;
  // `address` as in "127.0.0.1:7448"; port 0 takes any free one. `may_scrape` is asked with the
  // header `authorization`, "" if there is none, on the same threads. nullptr if it cannot listen
  // there.
  static std::unique_ptr<HttpListener> Start(
      const std::string& address, std::vector<std::shared_ptr<prometheus::Collectable>> metrics,
      Probe why_not_alive, Probe why_not_ready,
      std::function<bool(const std::string& authorization)> may_scrape);
  ~HttpListener();

  int port() const;

 private:
  class Handler;
  HttpListener();

  std::vector<std::unique_ptr<Handler>> handlers_;  // outlive the server's threads
  std::unique_ptr<CivetServer> server_;
};

}  // namespace mneme::server
