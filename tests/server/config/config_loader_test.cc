#include "server/config/config_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <utility>

#include "server/config/settings.h"

namespace mneme::server {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class ConfigLoaderTest : public testing::Test {
 protected:
  ConfigLoaderTest() {
    std::string pattern = testing::TempDir() + "mneme-config-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~ConfigLoaderTest() override { std::filesystem::remove_all(folder_); }

  std::string WriteFile(const std::string& text) {
    const std::string path = (folder_ / "mneme.yaml").string();
    std::ofstream(path) << text;
    return path;
  }

  static absl::StatusOr<LoadedConfig> Load(std::vector<std::string> arguments,
                                           std::vector<std::string> environment = {}) {
    arguments.insert(arguments.begin(), "--model=m=m.gguf");
    environment.push_back(kHome);
    return LoadConfig(arguments, environment);
  }

  static std::string ErrorOf(const absl::StatusOr<LoadedConfig>& loaded) {
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << loaded.status();
    return std::string(loaded.status().message());
  }

  static constexpr char kHome[] = "HOME=/home/ada";
  std::filesystem::path folder_;
};

TEST_F(ConfigLoaderTest, DefaultsAreThoseOfTheConfigStruct) {
  auto loaded = Load({});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Config defaults;
  for (const Setting& setting : Settings()) {
    // They depend on the user and the machine.
    if (setting.key == "store.path" || setting.key == "replica.name") continue;
    EXPECT_EQ(setting.get(loaded->config), setting.get(defaults)) << setting.key;
  }
  EXPECT_NE(loaded->config.replica.name, "");
  EXPECT_FALSE(loaded->print_and_exit);
  ASSERT_EQ(loaded->config.models.size(), 1u);
  EXPECT_EQ(loaded->config.models[0].name, "m");
  EXPECT_EQ(loaded->config.models[0].path, "m.gguf");
}

TEST_F(ConfigLoaderTest, EverySettingReadsBackWhatItPrints) {
  const Config defaults;
  for (const Setting& setting : Settings()) {
    Config config;
    EXPECT_TRUE(setting.set(config, setting.get(defaults)).ok())
        << setting.key << " = " << setting.get(defaults);
    EXPECT_EQ(setting.get(config), setting.get(defaults)) << setting.key;
  }
}

TEST_F(ConfigLoaderTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string path = WriteFile(
      "engine:\n  threads: 1\n  sink_tokens: 1\n  window_tokens: 100\nlog_level: debug\n");
  auto loaded = Load({"--config", path, "--engine.threads=3"},
                     {"MNEME_ENGINE_THREADS=2", "MNEME_ENGINE_SINK_TOKENS=2", "HOME=/"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.engine.threads, 3);
  EXPECT_EQ(loaded->config.engine.sink_tokens, 2);
  EXPECT_EQ(loaded->config.engine.window_tokens, 100);
  EXPECT_EQ(loaded->config.log_level, "debug");
  EXPECT_EQ(loaded->config.engine.backend, "auto");
}

TEST_F(ConfigLoaderTest, ModelsComeWholeFromTheHighestSource) {
  const std::string path = WriteFile("models:\n  a: a.gguf\n  b: b.gguf\n");
  auto from_file = LoadConfig({"--config=" + path}, {kHome});
  ASSERT_TRUE(from_file.ok()) << from_file.status();
  EXPECT_EQ(from_file->config.models.size(), 2u);
  auto from_env =
      LoadConfig({}, {kHome, "MNEME_CONFIG=" + path, "MNEME_MODELS=c=c.gguf,d=x=y.gguf"});
  ASSERT_TRUE(from_env.ok()) << from_env.status();
  ASSERT_EQ(from_env->config.models.size(), 2u);
  EXPECT_EQ(from_env->config.models[1].name, "d");
  EXPECT_EQ(from_env->config.models[1].path, "x=y.gguf");
  auto from_flags = LoadConfig({"--model", "e=e.gguf", "--model", "f=f.gguf", "--config", path},
                               {kHome, "MNEME_MODELS=c=c.gguf"});
  ASSERT_TRUE(from_flags.ok()) << from_flags.status();
  ASSERT_EQ(from_flags->config.models.size(), 2u);
  EXPECT_EQ(from_flags->config.models[0].name, "e");
}

TEST_F(ConfigLoaderTest, AModelSaysItsDevice) {
  const auto expect = [](const absl::StatusOr<LoadedConfig>& loaded) {
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const std::vector<ModelConfig>& models = loaded->config.models;
    ASSERT_EQ(models.size(), 3u);
    EXPECT_EQ(models[0].devices, std::vector{0});
    EXPECT_EQ(models[1].path, "b.gguf");
    EXPECT_EQ(models[1].devices, std::vector{3});
    EXPECT_EQ(models[2].name, "c");
    EXPECT_EQ(models[2].devices, (std::vector{2, 0}));
    EXPECT_EQ(loaded->config.num_devices(), 3);
  };
  expect(LoadConfig(
      {"--model=a=a.gguf", "--model", "b=b.gguf,device=3", "--model=c=c.gguf,device=2,device=0"},
      {kHome}));
  expect(LoadConfig({},
                    {kHome, "MNEME_MODELS=a=a.gguf,b=b.gguf,device=3,c=c.gguf,device=2,device=0"}));
  const std::string file = WriteFile(
      "models:\n  a: a.gguf\n  b: {path: b.gguf, device: 3}\n  c: {path: c.gguf, device: [2, "
      "0]}\n");
  expect(LoadConfig({"--config", file}, {kHome}));
  // What is printed is read again.
  auto printed = LoadConfig({"--config", file, "--print-config"}, {kHome});
  ASSERT_TRUE(printed.ok()) << printed.status();
  expect(LoadConfig({"--config", WriteFile(printed->output)}, {kHome}));
  // Paths keep their commas.
  auto comma = LoadConfig({"--model=a=x,y.gguf,device=1"}, {kHome});
  ASSERT_TRUE(comma.ok()) << comma.status();
  EXPECT_EQ(comma->config.models[0].path, "x,y.gguf");
  EXPECT_EQ(comma->config.models[0].devices, std::vector{1});
}

TEST_F(ConfigLoaderTest, WrongOptionsOfAModelAreNamed) {
  const auto flag = [](const std::string& model) {
    return ErrorOf(LoadConfig({"--model", model}, {kHome}));
  };
  EXPECT_THAT(flag("a=a.gguf,devise=1"),
              HasSubstr("--model: model a: unknown key \"devise\", expected device"));
  EXPECT_THAT(flag("a=a.gguf,device=x"),
              HasSubstr("model a: device must be a whole number of at least 0, is \"x\""));
  EXPECT_THAT(flag("a=a.gguf,device=-1"), HasSubstr("at least 0, is \"-1\""));
  EXPECT_THAT(flag("a=a.gguf,device=99999999999"), HasSubstr("is \"99999999999\""));
  EXPECT_THAT(flag("a=a.gguf,device="), HasSubstr("is \"\""));
  EXPECT_THAT(flag("a=a.gguf,device"), HasSubstr("expected device=N behind the path"));
  EXPECT_THAT(flag("a=a.gguf,device=1,x"), HasSubstr("expected device=N behind the path"));
  EXPECT_THAT(flag("a=a.gguf,device=1,device=2,device=1"), HasSubstr("device 1 is given twice"));
  EXPECT_THAT(flag("a=,device=1"), HasSubstr("NAME=PATH"));
  EXPECT_THAT(ErrorOf(LoadConfig({}, {kHome, "MNEME_MODELS=device=1,a=a.gguf"})),
              HasSubstr("environment MNEME_MODELS: device=1 must stand behind its model"));
  EXPECT_THAT(ErrorOf(LoadConfig({}, {kHome, "MNEME_MODELS=a=a.gguf,device=one"})),
              HasSubstr("environment MNEME_MODELS: model a: device must be"));
  const auto file = [this](const std::string& models) {
    return ErrorOf(LoadConfig({"--config", WriteFile(models)}, {kHome}));
  };
  EXPECT_THAT(file("models:\n  a: {path: a, devise: 1}\n"),
              HasSubstr("mneme.yaml:2: model a: unknown key \"devise\""));
  EXPECT_THAT(file("models:\n  a: {path: a, device: x}\n"),
              HasSubstr("mneme.yaml:2: model a: device must be"));
  EXPECT_THAT(file("models:\n  a: {path: [a]}\n"), HasSubstr("path must be a single value"));
  EXPECT_THAT(file("models:\n  a: {path: a, device: [1, [2]]}\n"),
              HasSubstr("device must be a single value"));
  EXPECT_THAT(file("models:\n  a: {path: a, device: {n: 2}}\n"),
              HasSubstr("device must be a single value"));
  EXPECT_THAT(file("models:\n  a: {path: a, device: [1, 1]}\n"),
              HasSubstr("mneme.yaml:2: model a: device 1 is given twice"));
  EXPECT_THAT(file("models:\n  a: {path: a, path: b}\n"), HasSubstr("path is written twice"));
  EXPECT_THAT(file("models:\n  a: [a.gguf]\n"), HasSubstr("{path: PATH, device: N}"));
  EXPECT_THAT(file("models:\n  a: {device: 1}\n"), HasSubstr("model \"a\" has no path"));
}

TEST_F(ConfigLoaderTest, UnknownKeysNameLineAndNearestKey) {
  const std::string path = WriteFile("listen:\n  address: 127.0.0.1:0\nengine:\n  thread: 2\n");
  const std::string error = ErrorOf(Load({"--config", path}));
  EXPECT_THAT(error, HasSubstr("mneme.yaml:4"));
  EXPECT_THAT(error, HasSubstr("\"engine.thread\""));
  EXPECT_THAT(error, HasSubstr("did you mean engine.threads?"));

  EXPECT_THAT(ErrorOf(Load({"--engine.treads=2"})), HasSubstr("did you mean --engine.threads?"));
  EXPECT_THAT(ErrorOf(Load({"--threads=2"})), HasSubstr("did you mean --engine.threads?"));
  EXPECT_THAT(ErrorOf(Load({"--modle", "a=b"})), HasSubstr("did you mean --model?"));
  EXPECT_THAT(ErrorOf(Load({"zzzzzzzzzz"})), HasSubstr("unexpected argument"));
  EXPECT_THAT(ErrorOf(Load({"--config", WriteFile("\nengin:\n  threads: 2\n")})),
              HasSubstr("mneme.yaml:2: unknown section \"engin\"; did you mean engine?"));
}

TEST_F(ConfigLoaderTest, WrongTypesNameTheirOrigin) {
  EXPECT_THAT(ErrorOf(Load({"--config", WriteFile("engine:\n  threads: many\n")})),
              HasSubstr("mneme.yaml:2: engine.threads must be a whole number, is \"many\""));
  EXPECT_THAT(ErrorOf(Load({"--engine.threads=-1"})),
              HasSubstr("flag --engine.threads: engine.threads must be between 0 and 1024"));
  EXPECT_THAT(ErrorOf(Load({}, {"MNEME_DRAIN_TIMEOUT=30"})),
              HasSubstr("environment MNEME_DRAIN_TIMEOUT: drain.timeout must be a time"));
  EXPECT_THAT(ErrorOf(Load({"--engine.backend=gpu"})),
              HasSubstr("one of auto, reference, cpu, cuda"));
  EXPECT_THAT(ErrorOf(Load({"--listen.insecure=maybe"})), HasSubstr("insecure"));
  EXPECT_THAT(ErrorOf(Load({"--config", WriteFile("engine:\n  threads: [1, 2]\n")})),
              HasSubstr("mneme.yaml:2: engine.threads: must be a single value"));
  EXPECT_THAT(ErrorOf(Load({"--config", WriteFile("engine: {threads: 1\n")})),
              HasSubstr("mneme.yaml:"));
  EXPECT_THAT(ErrorOf(Load({"--config", "/nonexistent/x.yaml"})), HasSubstr("cannot be read"));
  EXPECT_THAT(ErrorOf(Load({"--model", "nopath"})), HasSubstr("NAME=PATH"));
  EXPECT_THAT(ErrorOf(Load({"--engine.threads=1", "--engine.threads=2"})),
              HasSubstr("engine.threads"));
}

TEST_F(ConfigLoaderTest, AValueThatIsOverriddenIsCheckedToo) {
  EXPECT_THAT(ErrorOf(Load({"--engine.threads=2"}, {"MNEME_ENGINE_THREADS=x"})),
              HasSubstr("MNEME_ENGINE_THREADS"));
}

TEST_F(ConfigLoaderTest, UnitsAreUnderstood) {
  auto loaded = Load({"--drain.timeout=1m30s", "--limits.slow_client_timeout=250ms",
                      "--limits.max_request_bytes=2MiB", "--limits.state_memory_bytes=1048577"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.drain.timeout_ms, 90000);
  EXPECT_EQ(loaded->config.limits.slow_client_timeout_ms, 250);
  EXPECT_EQ(loaded->config.limits.max_request_bytes, 2 << 20);
  EXPECT_EQ(loaded->config.limits.state_memory_bytes, 1048577);
  EXPECT_THAT(ErrorOf(Load({"--limits.state_memory_bytes=9223372036854775807GiB"})),
              HasSubstr("number of bytes"));
  EXPECT_THAT(ErrorOf(Load({"--drain.timeout=inf"})), HasSubstr("must be a time"));
}

TEST_F(ConfigLoaderTest, AnEmptyValueDoesNotSwallowTheNextFlag) {
  auto loaded = Load({"--listen.metrics_address=", "--engine.threads=3"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.listen.metrics_address, "");
  EXPECT_EQ(loaded->config.engine.threads, 3);
}

TEST_F(ConfigLoaderTest, ImpossibleCombinationsAreRefused) {
  EXPECT_THAT(ErrorOf(LoadConfig({}, {})), HasSubstr("no model to serve"));
  EXPECT_THAT(ErrorOf(Load({"--model=m=other.gguf"})), HasSubstr("\"m\" is given twice"));
  EXPECT_THAT(ErrorOf(Load({"--model=Bad_Name=x.gguf"})), HasSubstr("model name"));
  EXPECT_THAT(ErrorOf(Load({"--limits.max_step_tokens=16"})),
              HasSubstr("limits.prefill_chunk_tokens (256)"));
  EXPECT_THAT(ErrorOf(Load({"--engine.window_tokens=4"})), HasSubstr("engine.sink_tokens (4)"));
}

TEST_F(ConfigLoaderTest, SamplingForAModelThatIsNotServedIsATypo) {
  EXPECT_TRUE(Load({"--sampling.top_k=20,m=0"}).ok());
  EXPECT_TRUE(Load({"--config=" + WriteFile("sampling: {top_k: 20, temperature: 'm=0.5'}")}).ok());
  const std::string error = ErrorOf(Load({"--sampling.top_k=20,n=0"}));
  EXPECT_THAT(error, HasSubstr("sampling.top_k"));
  EXPECT_THAT(error, HasSubstr("\"n\""));
}

TEST_F(ConfigLoaderTest, OtherThanLoopbackNeedsInsecureAndWarns) {
  EXPECT_THAT(ErrorOf(Load({"--listen.address=0.0.0.0:7447"})), HasSubstr("--listen.insecure"));
  EXPECT_THAT(ErrorOf(Load({"--listen.metrics_address=[::]:7448"})),
              HasSubstr("listen.metrics_address"));
  auto loaded = Load({"--listen.address=0.0.0.0:7447", "--listen.insecure"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->warnings.size(), 1u);
  EXPECT_THAT(loaded->warnings[0], HasSubstr("0.0.0.0:7447"));
  for (const char* address : {"127.0.0.1:0", "127.1.2.3:1", "localhost:1", "[::1]:1", "unix:/x"}) {
    EXPECT_TRUE(IsLoopbackAddress(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.org:1"}) {
    EXPECT_FALSE(IsLoopbackAddress(address)) << address;
  }
}

TEST_F(ConfigLoaderTest, TlsFilesBelongTogether) {
  EXPECT_THAT(ErrorOf(Load({"--listen.tls.cert=a.pem"})), HasSubstr("must be given together"));
  EXPECT_THAT(ErrorOf(Load({"--listen.tls.key=a.key"})), HasSubstr("must be given together"));
  EXPECT_THAT(ErrorOf(Load({"--listen.tls.client_ca=ca.pem"})), HasSubstr("needs listen.tls.cert"));
  const std::string both = "listen: {tls: {cert: a.pem, key: a.key}}";
  EXPECT_THAT(ErrorOf(Load({"--config=" + WriteFile(both), "--listen.tls.require_client_cert"})),
              HasSubstr("needs listen.tls.client_ca"));
}

TEST_F(ConfigLoaderTest, SectionsInSectionsAreUnderstood) {
  for (const char* text : {"listen:\n  tls:\n    cert: a.pem\n    key: a.key\n",
                           "listen:\n  tls.cert: a.pem\n  tls: {key: a.key}\n",
                           "listen: {tls: {cert: a.pem}, tls.key: a.key}\n"}) {
    auto loaded = Load({"--config=" + WriteFile(text)});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->config.listen.tls.cert, "a.pem");
    EXPECT_EQ(loaded->config.listen.tls.key, "a.key");
  }
  EXPECT_THAT(ErrorOf(Load({"--config=" + WriteFile("listen:\n  tls:\n    certt: a.pem\n")})),
              HasSubstr("mneme.yaml:3: unknown key \"listen.tls.certt\"; did you mean "
                        "listen.tls.cert?"));
  EXPECT_THAT(ErrorOf(Load({"--config=" + WriteFile("listen: {address: {tls: a}}")})),
              HasSubstr("must be a single value"));
  EXPECT_THAT(ErrorOf(Load({"--config=" + WriteFile("listen: {tls: a.pem}")})),
              HasSubstr("unknown key \"listen.tls\""));
}

// Who can be reached from elsewhere encrypts and knows its callers, or is told that it need not.
TEST_F(ConfigLoaderTest, OtherThanLoopbackNeedsTlsAndKnownCallers) {
  const std::vector<std::string> tls = {"--listen.address=0.0.0.0:7447", "--listen.tls.cert=a.pem",
                                        "--listen.tls.key=a.key"};
  EXPECT_THAT(ErrorOf(Load(tls)), HasSubstr("without keys"));
  auto known = tls;
  known.insert(known.end(), {"--listen.tls.client_ca=ca.pem", "--listen.tls.require_client_cert"});
  auto loaded = Load(known);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->warnings, IsEmpty());
  auto keys = tls;
  keys.push_back("--auth.keys_file=keys.yaml");
  EXPECT_TRUE(Load(keys).ok());
  EXPECT_THAT(ErrorOf(Load({"--listen.address=0.0.0.0:7447", "--auth.keys_file=keys.yaml"})),
              HasSubstr("without TLS;"));
  known.push_back("--listen.metrics_address=0.0.0.0:7448");  // plain HTTP
  EXPECT_THAT(ErrorOf(Load(known)), HasSubstr("listen.metrics_address"));
}

TEST_F(ConfigLoaderTest, WhatAReloadCannotChangeIsListed) {
  const Config running = Load({"--log_level=info"})->config;
  EXPECT_THAT(SettingsThatNeedRestart(running, running), IsEmpty());
  EXPECT_THAT(SettingsThatNeedRestart(running, Load({"--log_level=debug"})->config), IsEmpty());
  EXPECT_THAT(
      SettingsThatNeedRestart(running, LoadConfig({"--model=m=m.gguf,device=1"}, {kHome})->config),
      testing::ElementsAre("models"));
  EXPECT_THAT(SettingsThatNeedRestart(running, Load({"--engine.threads=3", "--listen.tls.cert=a",
                                                     "--listen.tls.key=b", "--model=n=n.gguf"})
                                                   ->config),
              testing::UnorderedElementsAre("models", "engine.threads", "listen.tls.cert",
                                            "listen.tls.key"));
}

TEST_F(ConfigLoaderTest, PrintConfigShowsOriginsAndIsAConfigFile) {
  const std::string path = WriteFile("store:\n  kind: memory\n");
  auto printed =
      Load({"--config", path, "--print-config", "--engine.threads=3", "--drain.timeout", "7s"},
           {"MNEME_LOG_LEVEL=warn"});
  ASSERT_TRUE(printed.ok()) << printed.status();
  EXPECT_TRUE(printed->print_and_exit);
  EXPECT_THAT(printed->output, testing::ContainsRegex("  threads: 3 +# flag --engine.threads"));
  EXPECT_THAT(printed->output, testing::ContainsRegex("log_level: \"warn\" +# environment"));
  EXPECT_THAT(printed->output, testing::ContainsRegex("  kind: \"memory\" +# .*mneme.yaml:2"));
  EXPECT_THAT(printed->output, testing::ContainsRegex("  backend: \"auto\" +# default"));

  auto again = LoadConfig({"--config", WriteFile(printed->output)}, {});
  ASSERT_TRUE(again.ok()) << again.status();
  for (const Setting& setting : Settings()) {
    EXPECT_EQ(setting.get(again->config), setting.get(printed->config)) << setting.key;
  }
  EXPECT_EQ(again->config.models[0].path, "m.gguf");
}

TEST_F(ConfigLoaderTest, AUriMakesTheStorePostgres) {
  const std::string uri = "postgresql://ada:s3cret@db/mneme?sslmode=verify-full";
  auto loaded = Load({"--store.path", uri, "--store.postgres.pool_size=8"},
                     {"MNEME_STORE_POSTGRES_STATEMENT_TIMEOUT=3s"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.store.kind, "postgres");
  EXPECT_EQ(loaded->config.store.path, uri);
  EXPECT_EQ(loaded->config.store.postgres.pool_size, 8);
  EXPECT_EQ(loaded->config.store.postgres.statement_timeout_ms, 3000);
  EXPECT_TRUE(Load({"--store.path", uri, "--store.kind=postgres"}).ok());

  // Nested in a file, or with dots; a file may say the rest and a variable the password.
  for (const char* text : {"store:\n  postgres:\n    synchronous_standbys: 2\n",
                           "store: {postgres.synchronous_standbys: 2}\n"}) {
    loaded = Load({"--config", WriteFile(text)}, {"MNEME_STORE_PATH=" + uri});
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->config.store.postgres.synchronous_standbys, 2);
    EXPECT_EQ(loaded->config.store.kind, "postgres");
  }
  EXPECT_THAT(ErrorOf(Load({"--config", WriteFile("store: {postgres: {pool: 2}}\n")})),
              HasSubstr("store.postgres.pool"));

  EXPECT_THAT(ErrorOf(Load({"--store.path", uri, "--store.kind=rocksdb"})),
              HasSubstr("store.kind is rocksdb"));
  EXPECT_THAT(ErrorOf(Load({"--store.path=data", "--store.kind=postgres"})), HasSubstr("no URI"));
  EXPECT_THAT(ErrorOf(Load({"--store.kind=postgres"})), HasSubstr("no URI"));

  auto printed = Load({"--store.path", uri, "--print-config"});
  ASSERT_TRUE(printed.ok()) << printed.status();
  EXPECT_THAT(printed->output, HasSubstr("postgresql://ada:****@db/mneme?sslmode=verify-full"));
  EXPECT_THAT(printed->output, testing::Not(HasSubstr("s3cret")));
  EXPECT_THAT(printed->output, testing::ContainsRegex("  kind: \"postgres\" +# store.path"));
}

TEST_F(ConfigLoaderTest, HelpNamesEverySettingAndTeaches) {
  auto help = LoadConfig({"--help"}, {});
  ASSERT_TRUE(help.ok()) << help.status();
  EXPECT_TRUE(help->print_and_exit);
  for (const Setting& setting : Settings()) {
    EXPECT_THAT(help->output, HasSubstr("--" + setting.key));
  }
  EXPECT_THAT(help->output, HasSubstr("EXAMPLES"));
  EXPECT_THAT(help->output, HasSubstr("EXIT CODES"));
  auto version = LoadConfig({"--version"}, {});
  ASSERT_TRUE(version.ok());
  EXPECT_THAT(version->output, HasSubstr("mneme-server "));
}

TEST_F(ConfigLoaderTest, UnknownVariablesNameTheNearestOne) {
  const std::pair<const char*, const char*> typos[] = {
      {"MNEME_ENGINE_THREDS=1", "MNEME_ENGINE_THREADS"},
      {"MNEME_THREADS=1", "MNEME_ENGINE_THREADS"},
      {"MNEME_METRICS_ADDRESS=x", "MNEME_LISTEN_METRICS_ADDRESS"},
      {"MNEME_LOGLEVEL=info", "MNEME_LOG_LEVEL"},
      {"MNEME_MODLES=a=b", "MNEME_MODELS"},
      {"MNEME_CONFIGS=x", "MNEME_CONFIG"}};
  for (const auto& [typo, nearest] : typos) {
    const std::string name = std::string(typo).substr(0, std::string(typo).find('='));
    EXPECT_THAT(ErrorOf(Load({}, {typo})), HasSubstr("unknown environment variable " + name +
                                                     "; did you mean " + nearest + "?"));
  }
  for (const std::string far : {"MNEME_", "MNEME_LISTEN_PORT"}) {
    EXPECT_THAT(ErrorOf(Load({}, {far + "=7447"})),
                HasSubstr("unknown environment variable " + far + "; --help shows"));
  }
  EXPECT_TRUE(Load({}, {"MNEMEX=1", "OTHER_MNEME_ENGINE=1"}).ok());
}

// A service named mneme or mneme-api, as Kubernetes tells it to every container beside it.
TEST_F(ConfigLoaderTest, KubernetesVariablesDoNotStopTheServer) {
  for (const std::string service : {"MNEME", "MNEME_API"}) {
    auto loaded =
        Load({}, {service + "_SERVICE_HOST=10.0.0.1", service + "_SERVICE_PORT=7447",
                  service + "_SERVICE_PORT_GRPC=7447", service + "_PORT=tcp://10.0.0.1:7447",
                  service + "_PORT_7447_TCP=tcp://10.0.0.1:7447",
                  service + "_PORT_7447_TCP_ADDR=10.0.0.1", service + "_PORT_7447_TCP_PORT=7447",
                  service + "_PORT_7447_TCP_PROTO=tcp"});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
  }
}

// Whatever the client reads, and the server not, may be set where the server starts.
TEST_F(ConfigLoaderTest, VariablesOfTheClientDoNotStopTheServer) {
  static const std::regex kVariable("\"(MNEME_[A-Z_]+)\"");
  int found = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           std::filesystem::path(MNEME_SOURCE_DIR) / "client")) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path());
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    for (std::sregex_iterator it(text.begin(), text.end(), kVariable), end; it != end; ++it) {
      ++found;
      EXPECT_TRUE(Load({}, {(*it)[1].str() + "=x"}).ok())
          << entry.path() << " reads " << (*it)[1] << ", which stops the server";
    }
  }
  EXPECT_GT(found, 1);
}

class StorePlaceTest : public ConfigLoaderTest {
 protected:
  StorePlaceTest() : before_(std::filesystem::current_path()) {
    std::filesystem::current_path(folder_);
  }
  ~StorePlaceTest() override { std::filesystem::current_path(before_); }

  static std::string PlaceWith(std::vector<std::string> environment,
                               std::vector<std::string> arguments = {}) {
    arguments.push_back("--model=m=m.gguf");
    auto loaded = LoadConfig(arguments, environment);
    return loaded.ok() ? loaded->config.store.path : loaded.status().ToString();
  }

 private:
  const std::filesystem::path before_;
};

TEST_F(StorePlaceTest, IsTheUsersAndNotTheWorkingDirectorys) {
  EXPECT_EQ(PlaceWith({"HOME=/home/ada", "XDG_STATE_HOME=/state"}), "/state/mneme/store");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada"}), "/home/ada/.local/state/mneme/store");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada", "XDG_STATE_HOME="}), "/home/ada/.local/state/mneme/store");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada", "XDG_STATE_HOME=state"}),
            "/home/ada/.local/state/mneme/store");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada"}, {"--store.path="}), "/home/ada/.local/state/mneme/store");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada"}, {"--store.path=data"}), "data");
  EXPECT_EQ(PlaceWith({"HOME=/home/ada", "MNEME_STORE_PATH=/var/lib/mneme"}), "/var/lib/mneme");
  EXPECT_THAT(PlaceWith({}), HasSubstr("give --store.path"));
  EXPECT_THAT(PlaceWith({"HOME=home"}), HasSubstr("give --store.path"));
  EXPECT_EQ(PlaceWith({}, {"--store.kind=memory"}), "");
  auto printed = Load({"--print-config"});
  ASSERT_TRUE(printed.ok()) << printed.status();
  EXPECT_THAT(printed->output,
              testing::ContainsRegex("path: \"/home/ada/.local/state/mneme/store\" +# default"));
}

TEST_F(StorePlaceTest, SessionsOfAnEarlierVersionAreNotLostSilently) {
  EXPECT_THAT(Load({})->warnings, IsEmpty());
  std::filesystem::create_directory("data");
  std::ofstream("data/CURRENT") << "MANIFEST-000001";
  auto loaded = Load({});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->warnings.size(), 1u);
  EXPECT_THAT(loaded->warnings[0], HasSubstr("--store.path data"));
  EXPECT_THAT(Load({"--store.path=data"})->warnings, IsEmpty());
  EXPECT_THAT(Load({"--store.kind=memory"})->warnings, IsEmpty());
}

}  // namespace
}  // namespace mneme::server
