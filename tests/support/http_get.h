// A GET over plain HTTP: for tests of what scrapers and balancers see.
#pragma once

#include <string>

namespace mneme::test {

struct HttpReply {
  int code = 0;  // 0: nobody answers
  std::string head, body;
};

// `address` as in "127.0.0.1:7448", IPv4. `headers`: further ones, each ended by CR LF.
HttpReply HttpGet(const std::string& address, const std::string& path,
                  const std::string& method = "GET", const std::string& headers = "");

// Of the metrics page: the sample's value; `series` with its labels as they are printed,
// 'mneme_requests_finished_total{finish_reason="EOS"}'. -1 if there is none.
double SampleIn(const std::string& page, const std::string& series);

}  // namespace mneme::test
