// A real ServerCore behind a real RpcServer and a real channel: for what only the whole shows.
#pragma once

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "google/rpc/status.pb.h"
#include "mneme/v1/generation.grpc.pb.h"
#include "mneme/v1/models.grpc.pb.h"
#include "mneme/v1/sessions.grpc.pb.h"
#include "server/rpc/server.h"
#include "tests/server/core/core_test_base.h"

namespace mneme::server {

class ServedCoreTest : public CoreTest {
 protected:
  ServedCoreTest() {
    config.listen.address = "127.0.0.1:0";
    config.listen.metrics_address = "";
    config.drain = {.pre_stop_delay_ms = 0, .timeout_ms = 5000};
  }
  ~ServedCoreTest() override { Stop(); }

  void Stop() {
    server_.reset();
    if (core != nullptr) {
      EXPECT_EQ(Series(), series_) << "a series was not there from the start";
    }
    core.reset();
  }
  // Again on the same store.
  void Serve() {
    Stop();
    Start();
    auto server = RpcServer::Start(config, *core);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    series_ = Series();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE,
                     0);  // windows that do not grow: slow readers show soon
    channel_ = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(),
                                         arguments);
    sessions_ = v1::Sessions::NewStub(channel_);
    generation_ = v1::Generation::NewStub(channel_);
    models_ = v1::Models::NewStub(channel_);
  }

  // The counters that there are, with their labels.
  std::set<std::string> Series() {
    std::set<std::string> series;
    for (const auto& family : core->metrics().registry()->Collect()) {
      if (family.type != prometheus::MetricType::Counter) continue;
      for (const auto& metric : family.metric) {
        std::string name = family.name;
        for (const auto& label : metric.label) name += " " + label.name + "=" + label.value;
        series.insert(name);
      }
    }
    return series;
  }

  // What mneme_requests_failed_total has counted of these.
  double Failed(const std::string& code, const std::string& reason) {
    const prometheus::ClientMetric::Label wanted[] = {{"code", code}, {"reason", reason}};
    for (const auto& family : core->metrics().registry()->Collect()) {
      if (family.name != "mneme_requests_failed_total") continue;
      for (const auto& metric : family.metric) {
        if (std::is_permutation(metric.label.begin(), metric.label.end(), std::begin(wanted),
                                std::end(wanted))) {
          return metric.counter.value;
        }
      }
    }
    return 0;
  }

  // One unary call.
  template <typename Stub, typename Request, typename Response>
  grpc::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    Response ignored;
    return (stub.*method)(&context, request, response != nullptr ? response : &ignored);
  }
  // A turn to its end. Tokens are ours.
  grpc::Status Turn(const v1::GenerateRequest& request, v1::CompleteResponse* response = nullptr) {
    return Call(*generation_, &v1::Generation::Stub::Complete, request, response);
  }
  grpc::Status CreateOverRpc(const std::string& id) {
    v1::CreateSessionRequest request;
    request.set_parent("tenants/default");
    request.set_session_id(id);
    return Call(*sessions_, &v1::Sessions::Stub::CreateSession, request);
  }
  grpc::Status GetOverRpc(const std::string& name) {
    v1::GetSessionRequest request;
    request.set_name(name);
    return Call(*sessions_, &v1::Sessions::Stub::GetSession, request);
  }

  // A turn that runs until it is told to stop; its Started has been read.
  struct Running {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> stream;
    std::string generation;
    // Ends it by CancelGeneration and returns the status.
    grpc::Status Cancel(v1::Generation::Stub& stub) {
      grpc::ClientContext cancel_context;
      v1::CancelGenerationRequest request;
      request.set_name(generation);
      v1::CancelGenerationResponse response;
      EXPECT_TRUE(stub.CancelGeneration(&cancel_context, request, &response).ok());
      return Drain();
    }
    grpc::Status Drain() {
      v1::GenerateResponse event;
      while (stream->Read(&event)) {
      }
      return stream->Finish();
    }
  };
  std::unique_ptr<Running> Run(const v1::GenerateRequest& request) {
    auto running = std::make_unique<Running>();
    running->stream = generation_->Generate(&running->context, request);
    v1::GenerateResponse event;
    EXPECT_TRUE(running->stream->Read(&event));
    running->generation = event.started().generation();
    return running;
  }
  static v1::GenerateRequest Endless(const std::string& id) { return Request(id, "x", 65536); }

  std::unique_ptr<RpcServer> server_;
  std::set<std::string> series_;  // when it began to serve
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Sessions::Stub> sessions_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Models::Stub> models_;
};

// A copy of the tiny safetensors checkpoint in `folder` whose weights are finite, and whose values
// overflow as soon as it reads `poison` (and only then): that token's embedding alone reaches
// channel 0, on which gate and up projection of layer 0 have one weight of 1e30 each; their product
// is not finite any more.
inline void WritePoisonedCheckpoint(const std::filesystem::path& folder, int32_t poison) {
  std::filesystem::copy(std::string(MNEME_TINY_DIR) + "/tiny-llama-hf", folder);
  const auto path = folder / "model.safetensors";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  std::string bytes;
  {
    std::ifstream file(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const auto header = nlohmann::json::parse(bytes.substr(8, header_bytes));
  const auto set = [&](const std::string& tensor, int64_t row, int64_t column, float value) {
    const auto& entry = header.at(tensor);
    ASSERT_EQ(entry.at("dtype"), "BF16");
    const int64_t columns = entry.at("shape").at(1);
    const int64_t begin = entry.at("data_offsets").at(0);
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    const auto half = static_cast<uint16_t>(bits >> 16);
    std::memcpy(bytes.data() + 8 + header_bytes + begin + 2 * (row * columns + column), &half, 2);
  };
  const std::string embedding = "model.embed_tokens.weight", layer = "model.layers.0.";
  const int64_t vocab = header.at(embedding).at("shape").at(0);
  const int64_t width = header.at(embedding).at("shape").at(1);
  for (int64_t token = 0; token < vocab; ++token) set(embedding, token, 0, 0.0f);
  for (int64_t i = 0; i < width; ++i) set(embedding, poison, i, i == 0 ? 1.0f : 0.0f);
  const int64_t heads_width = header.at(layer + "self_attn.o_proj.weight").at("shape").at(1);
  for (int64_t i = 0; i < heads_width; ++i) set(layer + "self_attn.o_proj.weight", 0, i, 0.0f);
  set(layer + "mlp.gate_proj.weight", 0, 0, 1e30f);
  set(layer + "mlp.up_proj.weight", 0, 0, 1e30f);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace mneme::server
