// The dependency picture of docs/architecture.md, checked against every #include:
//
//   client -> proto <- server/rpc -> server/core -> engine
//                                              \-> memstore
//   engine/core <- engine/device <- engine/kernels <- engine/arch/<one>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace mneme {
namespace {

namespace fs = std::filesystem;

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool AnyPrefix(const std::string& text, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return StartsWith(text, prefix); });
}

const std::vector<std::string> kOurFolders{"engine/",   "memstore/", "server/", "client/",
                                           "mneme/v1/", "bench/",    "tests/",  "train/",
                                           "proto/",    "deploy/"};
const std::vector<std::string> kGrpc{"grpc/", "grpcpp/", "grpc++/"};
const std::vector<std::string> kProtobuf{"google/protobuf/", "google/rpc/", "mneme/v1/"};
const std::vector<std::string> kStores{"rocksdb/", "libpq", "postgresql/", "hiredis/",
                                       "sw/redis++"};

// What the file at `path` may not include as `included`; nullopt if it is allowed. Both relative to
// the root, as written.
std::optional<std::string> Forbidden(const std::string& path, const std::string& included) {
  auto ours_except = [&](const std::vector<std::string>& allowed) {
    return AnyPrefix(included, kOurFolders) && !AnyPrefix(included, allowed);
  };
  if (StartsWith(path, "engine/")) {
    if (ours_except({"engine/"})) return "engine includes nothing from other top folders";
    if (AnyPrefix(included, kGrpc) || AnyPrefix(included, kProtobuf) ||
        AnyPrefix(included, kStores)) {
      return "engine knows no network, protobuf or database";
    }
    if (StartsWith(path, "engine/core/") && StartsWith(included, "engine/") &&
        !StartsWith(included, "engine/core/")) {
      return "engine/core is below everything else of the engine";
    }
    if (StartsWith(path, "engine/device/") && StartsWith(included, "engine/") &&
        !AnyPrefix(included, {"engine/core/", "engine/device/"})) {
      return "engine/device is below everything but engine/core";
    }
    if (StartsWith(path, "engine/kernels/") && StartsWith(included, "engine/arch/")) {
      return "kernels are below architectures";
    }
    const std::string arch = "engine/arch/";
    for (const char* inside : {"device/raw.h", "device/host_device.h", "kernels/kernels.h",
                               "kernels/exec.h", "kernels/host.h"}) {
      if (StartsWith(path, arch) && included == std::string("engine/") + inside) {
        return "architectures see ops and opaque rows, not what is behind them";
      }
    }
    // A folder sees itself and the folders around it: engine/arch/rwkv/v7 sees engine/arch/rwkv.
    if (StartsWith(path, arch) && StartsWith(included, arch)) {
      const std::string from = path.substr(0, path.rfind('/') + 1);
      const std::string to = included.substr(0, included.rfind('/') + 1);
      if (from != arch && !StartsWith(from, to)) {
        return "an architecture never includes another one";
      }
    }
  } else if (StartsWith(path, "memstore/")) {
    if (ours_except({"memstore/"})) return "memstore includes nothing from other top folders";
    if (AnyPrefix(included, kGrpc) || AnyPrefix(included, kProtobuf)) {
      return "memstore knows no network and no protobuf";
    }
    if (StartsWith(included, "rocksdb/") && path.find("rocksdb_") == std::string::npos) {
      return "only rocksdb_* includes RocksDB";
    }
    if (AnyPrefix(included, {"libpq", "postgresql/"}) &&
        path.find("postgres_") == std::string::npos) {
      return "only postgres_* includes libpq";
    }
    if (StartsWith(included, "hiredis/") && path.find("redis_") == std::string::npos) {
      return "only redis_* includes hiredis";
    }
  } else if (StartsWith(path, "server/core/") || StartsWith(path, "server/config/")) {
    if (AnyPrefix(included, kGrpc) || included.find(".grpc.pb.h") != std::string::npos) {
      return "the core knows no transport";
    }
    if (StartsWith(included, "server/rpc/")) return "server/rpc is above server/core";
    if (AnyPrefix(included, {"client/", "bench/", "tests/"})) return "nothing includes these";
    if (AnyPrefix(included, kStores)) return "databases are behind memstore";
  } else if (StartsWith(path, "server/")) {
    if (AnyPrefix(included, {"client/", "bench/", "tests/"})) return "nothing includes these";
    if (AnyPrefix(included, kStores)) return "databases are behind memstore";
  } else if (StartsWith(path, "client/")) {
    if (ours_except({"client/", "mneme/v1/"})) return "the client is built on proto alone";
    if (AnyPrefix(included, kStores)) return "the client knows no database";
  }
  return std::nullopt;
}

struct Include {
  std::string path;  // of the including file
  int line;
  std::string included;
};

std::vector<Include> AllIncludes() {
  const fs::path root = MNEME_SOURCE_DIR;
  std::vector<Include> includes;
  for (const char* top : {"engine", "memstore", "proto", "server", "client"}) {
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension().string();
      const bool proto = extension == ".proto";
      if (!proto && extension != ".h" && extension != ".cc" && extension != ".cu" &&
          extension != ".cuh" && extension != ".inc") {
        continue;
      }
      std::ifstream file(entry.path());
      std::string text;
      for (int line = 1; std::getline(file, text); ++line) {
        const size_t begin = text.find_first_not_of(" \t");
        if (begin == std::string::npos) continue;
        const std::string keyword = proto ? "import" : "#include";
        if (text.compare(begin, keyword.size(), keyword) != 0) continue;
        const size_t open = text.find_first_of("\"<", begin);
        if (open == std::string::npos) continue;
        const size_t close = text.find_first_of("\">", open + 1);
        if (close == std::string::npos) continue;
        includes.push_back({fs::relative(entry.path(), root).generic_string(), line,
                            text.substr(open + 1, close - open - 1)});
      }
    }
  }
  return includes;
}

TEST(IncludeDirectionTest, NoForbiddenArrow) {
  const std::vector<Include> includes = AllIncludes();
  for (const char* top : {"engine/", "memstore/", "server/core/", "server/rpc/", "client/"}) {
    EXPECT_TRUE(std::any_of(includes.begin(), includes.end(),
                            [&](const Include& i) { return StartsWith(i.path, top); }))
        << "found no file below " << top << "; has the layout changed?";
  }
  for (const Include& include : includes) {
    if (auto why = Forbidden(include.path, include.included)) {
      ADD_FAILURE() << include.path << ":" << include.line << " includes " << include.included
                    << ": " << *why;
    }
    // A relative include would slip past every rule above.
    EXPECT_THAT(include.included, testing::Not(testing::HasSubstr("../")))
        << include.path << ":" << include.line;
  }
}

// The rules themselves: each arrow that must be refused, and some that must not.
TEST(IncludeDirectionTest, RulesCatchWhatTheyShould) {
  const std::pair<const char*, const char*> forbidden[] = {
      {"engine/engine.cc", "server/core/config.h"},
      {"engine/state/snapshot.cc", "memstore/state_store.h"},
      {"engine/engine.cc", "grpcpp/grpcpp.h"},
      {"engine/engine.cc", "google/protobuf/message.h"},
      {"engine/engine.cc", "rocksdb/db.h"},
      {"engine/core/thread_pool.cc", "engine/kernels/exec.h"},
      {"engine/kernels/cpu/matmul.cc", "engine/arch/arch.h"},
      {"engine/arch/llama/llama.cc", "engine/arch/mamba/scan.h"},
      {"engine/arch/rwkv/v7/rwkv7.cc", "engine/arch/rwkv/v6/weights.h"},
      {"engine/arch/llama/llama.cc", "engine/device/raw.h"},
      {"engine/arch/llama/llama.cc", "engine/kernels/kernels.h"},
      {"engine/device/arena.cc", "engine/kernels/ops.h"},
      {"memstore/memory_state_store.cc", "engine/core/mutex.h"},
      {"memstore/state_store.h", "rocksdb/db.h"},
      {"memstore/validate.cc", "libpq-fe.h"},
      {"memstore/state_store.h", "grpcpp/grpcpp.h"},
      {"server/core/generate.cc", "grpcpp/server_context.h"},
      {"server/core/generate.cc", "mneme/v1/generation.grpc.pb.h"},
      {"server/core/generate.cc", "server/rpc/server.h"},
      {"server/core/generate.cc", "rocksdb/db.h"},
      {"server/core/session_store.cc", "libpq-fe.h"},
      {"engine/engine.cc", "libpq-fe.h"},
      {"client/client.cc", "server/core/errors.h"},
      {"client/client.cc", "engine/core/mutex.h"},
  };
  for (const auto& [path, included] : forbidden) {
    EXPECT_TRUE(Forbidden(path, included)) << path << " -> " << included;
  }
  const std::pair<const char*, const char*> allowed[] = {
      {"engine/arch/llama/llama.cc", "engine/arch/arch.h"},
      {"engine/arch/llama/llama.cc", "engine/arch/llama/config.h"},
      {"engine/arch/rwkv/v7/rwkv7.cc", "engine/arch/rwkv/rwkv_arch.h"},
      {"engine/arch/llama/llama.cc", "engine/kernels/ops.h"},
      {"engine/kernels/cpu/matmul.cc", "engine/device/host_device.h"},
      {"engine/kernels/cpu/matmul.cc", "engine/core/dtype.h"},
      {"memstore/rocksdb_state_store.cc", "rocksdb/db.h"},
      {"memstore/postgres_connection.h", "libpq-fe.h"},
      {"server/core/generate.cc", "mneme/v1/generation.pb.h"},
      {"server/core/generate.cc", "engine/engine.h"},
      {"server/rpc/server.cc", "grpcpp/server_builder.h"},
      {"client/client.cc", "mneme/v1/generation.grpc.pb.h"},
  };
  for (const auto& [path, included] : allowed) {
    EXPECT_FALSE(Forbidden(path, included)) << path << " -> " << included;
  }
}

}  // namespace
}  // namespace mneme
