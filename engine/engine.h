// The engine: a checkpoint that reads tokens into states. Start reading here.
//
//   auto engine = Engine::Load({.checkpoint_path = "model.gguf"});
//   State state = (*engine)->CreateState();
//   std::vector<float> logits((*engine)->info().vocab_size);
//   EngineSlice slice{.state = &state, .tokens = prompt, .num_logits = 1, .logits = logits.data()};
//   (*engine)->Step({&slice, 1});
//
// State goes in and comes out; the engine owns no session. It knows no network, database or
// protobuf.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/arch/arch.h"
#include "engine/checkpoint/sampling_hints.h"
#include "engine/device/device.h"
#include "engine/kernels/contract.h"
#include "engine/state/schema.h"
#include "engine/state/snapshot.h"
#include "engine/state/state_pool.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

struct EngineOptions {
  std::string checkpoint_path;
  std::string backend = "cpu";  // a name of AllBackends()
  // The device to load on, which other engines may share: then one pass runs at a time, and they
  // take turns. Null: one of this engine alone, of `backend` and `num_threads`.
  std::shared_ptr<Device> device;
  // kInt8 is the default of the cpu backend for quantised weights.
  Contract contract = Contract::kInt8;
  ArchOptions arch;
  int num_threads = 0;  // 0: the number of processors this process may use
};

// Some tokens of one sequence.
struct EngineSlice {
  State* state = nullptr;  // position is advanced by the step
  // None: logits are wanted after what the state has read, whose hidden row it must hold.
  std::span<const TokenId> tokens;
  // Logits wanted for tokens [tokens.size() - num_logits, tokens.size()): rows of [num_logits, V].
  // Without tokens: 1.
  int64_t num_logits = 0;
  float* logits = nullptr;
};

class Engine {
 public:
  // NOT_FOUND, INVALID_ARGUMENT or UNIMPLEMENTED naming file, tensor or key.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const EngineOptions& options);
  ~Engine();

  Device& device() const;  // that it runs on
  const ArchInfo& info() const;
  const std::string& model_name() const;         // the checkpoint's own name
  const std::string& model_fingerprint() const;  // 32 raw bytes
  // "mneme-0.1.0+<hash of kernel sources and flags>.gcc12.2/cpu/avx3/int8/kv-f16": equal ids
  // promise equal bits.
  const std::string& numerics_id() const;
  SnapshotIdentity snapshot_identity() const;
  const StateSchema& schema() const;
  const StatePool& states() const;
  // Numbers in a hidden row.
  int64_t hidden_size() const;

  const Tokenizer& tokenizer() const;
  // nullptr if the checkpoint has none or one of no known family; chat_template_problem() then says
  // why.
  const ChatTemplate* chat_template() const;
  const std::string& chat_template_problem() const;
  // How the checkpoint's makers say that tokens should be chosen.
  const SamplingHints& sampling_hints() const;

  // A state that has read nothing. Thread-safe. Throws std::bad_alloc.
  State CreateState() const;

  // Feeds every slice, advances its state's position and sets the hidden row. Slices have distinct
  // states, and 0 <= num_logits <= tokens.size() if there are tokens. One caller at a time.
  // INVALID_ARGUMENT (token id out of range, bad slice: nothing was read); INTERNAL "not finite" if
  // a wanted logit row is NaN or infinite: that slice's index is in `non_finite`, its state must be
  // thrown away, the others are good. OUT_OF_RANGE: a slice would go beyond
  // schema().position_limit(); nothing was read. RESOURCE_EXHAUSTED if memory ran out, INTERNAL
  // with the device's words if it failed (for good: Device::Fault): all the states must be thrown
  // away.
  absl::Status Step(std::span<const EngineSlice> slices, std::vector<int>* non_finite = nullptr);

  // Step in two halves, for a caller with work of its own meanwhile: Submit returns at once, Wait
  // when the step is done, with what Step would have returned. In between, what the slices refer to
  // is the engine's. Steps run in the order in which they were submitted.
  class Ticket;
  Ticket Submit(std::span<const EngineSlice> slices);
  absl::Status Wait(const Ticket& ticket, std::vector<int>* non_finite = nullptr);

  // Calls fn(i) for every i in [0, n) on the device's threads, which have nothing to do between
  // two steps: work of the host that many sequences have at once, such as choosing their tokens. fn
  // must neither throw nor call the engine.
  void ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn);

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A step that was submitted.
class Engine::Ticket {
 private:
  friend class Engine;
  struct Outcome {
    absl::Status status;
    std::vector<int> non_finite;
  };
  uint64_t number_ = 0;
  std::shared_ptr<Outcome> outcome_;  // the engine's until the step is done
};

// One line about this machine and build: processors, SIMD targets, memory. For logs and bench.
std::string DescribeMachine();

}  // namespace mneme::engine
