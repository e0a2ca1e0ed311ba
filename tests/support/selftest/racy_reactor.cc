// Races on purpose, in the tsan preset: ThreadSanitizer must see it in spite of tsan.supp.
//
// The race is the typical one of a reactor: a worker thread touches what OnDone, on a thread of
// gRPC's, touches too, after it has finished the call.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <thread>

#include "mneme/v1/models.grpc.pb.h"

namespace {

int finished_calls = 0;  // not guarded

class Reactor final : public grpc::ServerUnaryReactor {
 public:
  Reactor()
      : worker_([this] {
          Finish(grpc::Status::OK);
          ++finished_calls;
        }) {}
  void OnDone() override {
    ++finished_calls;
    worker_.join();
    delete this;
  }

 private:
  std::thread worker_;
};

class Service final : public mneme::v1::Models::CallbackService {
 public:
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext*,
                                       const mneme::v1::ListModelsRequest*,
                                       mneme::v1::ListModelsResponse*) override {
    return new Reactor;
  }
};

}  // namespace

int main() {
  Service service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = mneme::v1::Models::NewStub(
      grpc::CreateChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  for (int call = 0; call < 50; ++call) {
    grpc::ClientContext context;
    mneme::v1::ListModelsResponse response;
    if (!stub->ListModels(&context, {}, &response).ok()) return 1;
  }
  server->Shutdown();
  std::printf("%d: no race was reported\n", finished_calls);
}
