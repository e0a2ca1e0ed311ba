#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/core/worker_thread.h"
#include "engine/device/block_reader.h"
#include "engine/device/raw.h"
#include "engine/kernels/exec.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/ops.h"
#include "numerics_hash.h"  // generated from the sources of kernels and architectures

namespace mneme::engine {
namespace {

// Tokens that go through the layers at once. Bounds activations (SmolLM2-135M: 21 MB) whatever a
// caller feeds; more would not make the products faster. Changes no bits.
constexpr int64_t kMaxPassTokens = 512;

std::string CompilerId() {
#if defined(__clang__)
  return absl::StrCat("clang", __clang_major__, ".", __clang_minor__);
#else
  return absl::StrCat("gcc", __GNUC__, ".", __GNUC_MINOR__);
#endif
}

std::string ModelName(const Checkpoint& checkpoint) {
  const char* key =
      checkpoint.format() == Checkpoint::Format::kGguf ? "general.name" : "_name_or_path";
  absl::StatusOr<std::string> name = checkpoint.GetString(key, "");
  if (name.ok() && !name->empty()) return *name;
  std::string path = checkpoint.path();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.find_last_of('/') + 1);
}

// First value of "key<tabs>: value" in /proc files, "" if there is none.
std::string ProcField(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// Tokens that go through the layers together, and where their logits are wanted. One for all steps:
// its memory stays.
class Pass {
 public:
  explicit Pass(const Matrix& head) : head_(head) {}

  int64_t rows() const { return batch_.rows(); }

  // Tokens [begin, begin + count) of a slice, behind what the pass has.
  void Add(int index, const EngineSlice& slice, int64_t begin, int64_t count) {
    // Of the token whose logits come first in slice.logits.
    const int64_t first_wanted = static_cast<int64_t>(slice.tokens.size()) - slice.num_logits;
    const int64_t wanted = std::clamp<int64_t>(begin + count - first_wanted, 0, count);
    batch_.Add(SlotAt(slice.state->block.address(), slice.state->pages.addresses()),
               slice.state->position, slice.tokens.subspan(begin, count), wanted);
    for (int64_t i = count - wanted; i < count; ++i) {
      targets_.push_back({index, slice.logits + (begin + i - first_wanted) * head_.rows()});
    }
    advances_.push_back(
        {slice.state, count, static_cast<int64_t>(targets_.size()) - 1, wanted > 0});
  }

  // A slice without tokens. All of a pass that have some come first.
  void AddHidden(int index, const EngineSlice& slice) {
    targets_.push_back({index, slice.logits});
    kept_.push_back(slice.state);
  }

  // Clears the pass. finite[index] becomes 0 for slices with a logit that is no number. After an
  // error of the device no state has advanced.
  absl::Status Run(Arch& arch, Exec& exec, std::span<uint8_t> finite) {
    const auto wanted = static_cast<int64_t>(targets_.size());
    const auto kept = static_cast<int64_t>(kept_.size());
    Memory& memory = exec.device().memory();
    const Rows hidden = RowsIn(hidden_, memory, wanted, head_.columns());
    if (!batch_.runs.empty()) arch.Forward(exec, batch_, hidden.Slice(0, wanted - kept));
    for (int64_t i = 0; i < kept; ++i) {
      memory.Write(hidden_, (wanted - kept + i) * hidden_bytes(),
                   std::as_bytes(std::span(kept_[i]->hidden)));
    }
    const Rows logits = ComputeLogits(exec, hidden);
    MNEME_RETURN_IF_ERROR(exec.device().Wait());
    for (int64_t i = 0; i < wanted; ++i) finite[targets_[i].index] &= finite_[i];
    if (wanted > 0 && !InPlace(memory)) MNEME_RETURN_IF_ERROR(ScatterLogits(logits));
    MNEME_RETURN_IF_ERROR(KeepHidden());
    Clear();
    return absl::OkStatus();
  }

  void Clear() {
    batch_.Clear();
    targets_.clear();
    advances_.clear();
    kept_.clear();
  }

 private:
  struct Target {
    int index;  // of the slice
    float* logits;
  };
  struct Advance {
    State* state;
    int64_t tokens;
    int64_t last_row;  // of the wanted ones
    bool wanted;       // whether that is of the last token
  };

  size_t hidden_bytes() const { return head_.columns() * sizeof(float); }

  // [count, columns] in a block that grows as needed.
  static Rows RowsIn(Block& block, Memory& memory, int64_t count, int64_t columns) {
    const size_t size_bytes = count * columns * sizeof(float);
    if (block.size() < size_bytes) block = memory.Allocate(size_bytes);
    return RowsAt(reinterpret_cast<float*>(block.address()), count, columns);
  }

  // And finite_ of its rows.
  Rows ComputeLogits(Exec& exec, Rows hidden) {
    const int64_t wanted = hidden.count();
    if (wanted == 0) return {};
    Memory& memory = exec.device().memory();
    const Rows logits = InPlace(memory) ? RowsAt(targets_[0].logits, wanted, head_.rows())
                                        : RowsIn(logits_, memory, wanted, head_.rows());
    ops::MatMul(exec, hidden, {.weight = head_, .y = logits});
    finite_.resize(wanted);
    ops::FiniteRows(exec, logits, finite_);
    return logits;
  }

  // To where they are wanted.
  absl::Status ScatterLogits(Rows logits) {
    const size_t row_bytes = head_.rows() * sizeof(float);
    MNEME_ASSIGN_OR_RETURN(const std::span<const std::byte> rows,
                           logits_reader_.Read(logits_, 0, logits.count() * row_bytes));
    for (size_t i = 0; i < targets_.size(); ++i) {
      std::memcpy(targets_[i].logits, rows.data() + i * row_bytes, row_bytes);
    }
    return absl::OkStatus();
  }

  // The last row of each slice, with its state.
  absl::Status KeepHidden() {
    std::span<const std::byte> rows;
    if (!targets_.empty()) {
      MNEME_ASSIGN_OR_RETURN(rows,
                             hidden_reader_.Read(hidden_, 0, targets_.size() * hidden_bytes()));
    }
    for (const Advance& advance : advances_) {
      advance.state->position += advance.tokens;
      advance.state->hidden.resize(advance.wanted ? head_.columns() : 0);
      if (!advance.wanted) continue;
      std::memcpy(advance.state->hidden.data(), rows.data() + advance.last_row * hidden_bytes(),
                  hidden_bytes());
    }
    return absl::OkStatus();
  }

  bool InPlace(const Memory& memory) const { return memory.OnHost() && LieInOrder(); }
  // Whether the rows are wanted one behind the other.
  bool LieInOrder() const {
    for (size_t i = 1; i < targets_.size(); ++i) {
      if (targets_[i].logits != targets_[i - 1].logits + head_.rows()) return false;
    }
    return true;
  }

  const Matrix& head_;  // [V, D]
  Batch batch_;
  std::vector<Target> targets_;
  std::vector<Advance> advances_;
  std::vector<const State*> kept_;  // whose hidden rows come behind those of the batch
  Block hidden_;
  Block logits_;  // of rows that cannot be written where they are wanted
  std::vector<uint8_t> finite_;
  BlockReader hidden_reader_, logits_reader_;
};

}  // namespace

class Engine::Impl {
 public:
  Impl(std::shared_ptr<Device> device, Contract contract,
       std::shared_ptr<const Checkpoint> checkpoint, std::unique_ptr<Arch> arch)
      : device(std::move(device)),
        checkpoint(std::move(checkpoint)),
        arch(std::move(arch)),
        states(this->device->memory(), this->arch->schema()),
        exec(*this->device, contract),
        pass(this->arch->head()) {}

  const std::shared_ptr<Device> device;
  const std::shared_ptr<const Checkpoint> checkpoint;
  const std::unique_ptr<Arch> arch;
  StatePool states;
  Exec exec;
  Pass pass;
  std::unique_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const ChatTemplate> chat_template;
  std::string chat_template_problem;
  SamplingHints sampling_hints;
  std::string model_name;
  std::string fingerprint;
  std::string numerics_id;

  // Last: its steps use the others.
  WorkerThread stepper;

  absl::Status MakeInitialState();
  absl::Status Validate(std::span<const EngineSlice> slices) const;
  absl::Status Step(std::span<const EngineSlice> slices, std::vector<int>& non_finite);
  // Throws std::bad_alloc.
  absl::Status Passes(std::span<const EngineSlice> slices, std::vector<int>& non_finite);
};

absl::Status Engine::Impl::MakeInitialState() {
  const Turns::Hold turn(device->turns());
  State initial = states.Blank();
  arch->InitState(exec, SlotAt(initial.block.address()));
  return states.SetInitial(std::move(initial));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

absl::StatusOr<std::unique_ptr<Engine>> Engine::Load(const EngineOptions& options) {
  std::shared_ptr<Device> device = options.device;
  if (device == nullptr) {
    MNEME_ASSIGN_OR_RETURN(device, CreateDevice(options.backend, options.num_threads));
  }
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<const Checkpoint> checkpoint,
                         Checkpoint::Open(options.checkpoint_path));
  ArchOptions arch_options = options.arch;
  arch_options.memory = &device->memory();
  MNEME_ASSIGN_OR_RETURN(std::unique_ptr<Arch> arch, CreateArch(checkpoint, arch_options));
  // Without quantised weights both contracts are the same arithmetic: say so.
  const Contract contract = arch->info().has_quantized_weights ? options.contract : Contract::kF32;

  auto impl = std::make_unique<Impl>(device, contract, checkpoint, std::move(arch));
  MNEME_RETURN_IF_ERROR(impl->MakeInitialState());
  MNEME_ASSIGN_OR_RETURN(impl->tokenizer,
                         Tokenizer::Create(*checkpoint, impl->arch->info().vocab_size));
  absl::StatusOr<std::unique_ptr<const ChatTemplate>> chat_template =
      ChatTemplate::Create(*checkpoint, *impl->tokenizer);
  if (chat_template.ok()) {
    impl->chat_template = *std::move(chat_template);
    if (impl->chat_template == nullptr) {
      impl->chat_template_problem = "the checkpoint carries no chat template";
    }
  } else {
    impl->chat_template_problem = std::string(chat_template.status().message());
  }
  MNEME_ASSIGN_OR_RETURN(impl->sampling_hints, ReadSamplingHints(*checkpoint));
  impl->model_name = ModelName(*checkpoint);
  impl->fingerprint = checkpoint->Fingerprint();
  impl->numerics_id = absl::StrCat(MNEME_VERSION, "+", MNEME_NUMERICS_HASH, ".", CompilerId(), "/",
                                   std::string(device->name()), "/", device->numerics(), "/",
                                   contract == Contract::kF32 ? "f32" : "int8", "/kv-",
                                   options.arch.kv_dtype == DType::kF32 ? "f32" : "f16");
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Device& Engine::device() const { return *impl_->device; }
const ArchInfo& Engine::info() const { return impl_->arch->info(); }
const std::string& Engine::model_name() const { return impl_->model_name; }
const std::string& Engine::model_fingerprint() const { return impl_->fingerprint; }
const std::string& Engine::numerics_id() const { return impl_->numerics_id; }
const StateSchema& Engine::schema() const { return impl_->arch->schema(); }
const StatePool& Engine::states() const { return impl_->states; }
int64_t Engine::hidden_size() const { return impl_->arch->head().columns(); }
const Tokenizer& Engine::tokenizer() const { return *impl_->tokenizer; }
const ChatTemplate* Engine::chat_template() const { return impl_->chat_template.get(); }
const std::string& Engine::chat_template_problem() const { return impl_->chat_template_problem; }
const SamplingHints& Engine::sampling_hints() const { return impl_->sampling_hints; }

SnapshotIdentity Engine::snapshot_identity() const {
  return {.architecture = info().architecture,
          .model_fingerprint = impl_->fingerprint,
          .numerics_id = impl_->numerics_id};
}

State Engine::CreateState() const { return impl_->states.New(); }

absl::Status Engine::Impl::Validate(std::span<const EngineSlice> slices) const {
  const int64_t vocab_size = arch->info().vocab_size;
  std::vector<const State*> states;
  for (size_t i = 0; i < slices.size(); ++i) {
    const EngineSlice& slice = slices[i];
    if (slice.state == nullptr || slice.state->block.size() != arch->schema().size_bytes() ||
        slice.state->block.memory() != &device->memory() || slice.state->position < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("slice ", i, ": its state is not one of this engine's"));
    }
    const int64_t least = slice.tokens.empty() ? 1 : 0;
    const int64_t most = std::max<int64_t>(least, slice.tokens.size());
    if (slice.num_logits < least || slice.num_logits > most ||
        (slice.num_logits > 0 && slice.logits == nullptr)) {
      return absl::InvalidArgumentError(absl::StrCat("slice ", i, ": num_logits is ",
                                                     slice.num_logits, ", expected ", least, "..",
                                                     most, " and room for them"));
    }
    if (slice.tokens.empty() &&
        static_cast<int64_t>(slice.state->hidden.size()) != arch->head().columns()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "slice ", i, ": it has no tokens, and its state no hidden row to go on from"));
    }
    const int64_t limit = arch->schema().position_limit();
    const int64_t end = slice.state->position + static_cast<int64_t>(slice.tokens.size());
    if (limit > 0 && end > limit) {
      return absl::OutOfRangeError(absl::StrCat("slice ", i, ": ", slice.tokens.size(),
                                                " tokens behind ", slice.state->position,
                                                " exceed the context limit of ", limit));
    }
    for (size_t t = 0; t < slice.tokens.size(); ++t) {
      if (slice.tokens[t] < 0 || slice.tokens[t] >= vocab_size) {
        return absl::InvalidArgumentError(absl::StrCat(
            "slice ", i, ": token ", t, " is ", slice.tokens[t], ", expected 0..", vocab_size - 1));
      }
    }
    states.push_back(slice.state);
  }
  std::sort(states.begin(), states.end());
  if (std::adjacent_find(states.begin(), states.end()) != states.end()) {
    return absl::InvalidArgumentError("two slices share a state");
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::Step(std::span<const EngineSlice> slices, std::vector<int>& non_finite) {
  const Turns::Hold turn(device->turns());
  try {
    MNEME_RETURN_IF_ERROR(Validate(slices));
    MNEME_RETURN_IF_ERROR(device->Fault());
    return Passes(slices, non_finite);
  } catch (const std::bad_alloc&) {
    // What had begun ends here, with its errors: they are not the next pass's.
    device->Wait().IgnoreError();
    MNEME_RETURN_IF_ERROR(device->Fault());
    return absl::ResourceExhaustedError("there is no memory for this step");
  }
}

absl::Status Engine::Impl::Passes(std::span<const EngineSlice> slices,
                                  std::vector<int>& non_finite) {
  std::vector<uint8_t> finite(slices.size(), 1);

  // Whole slices where they fit, pieces of the long ones otherwise.
  pass.Clear();  // of a step that an exception ended
  for (size_t i = 0; i < slices.size(); ++i) {
    const auto n = static_cast<int64_t>(slices[i].tokens.size());
    for (int64_t begin = 0; begin < n;) {
      const int64_t count = std::min(n - begin, kMaxPassTokens - pass.rows());
      states.Reserve(*slices[i].state, count);
      pass.Add(static_cast<int>(i), slices[i], begin, count);
      begin += count;
      if (pass.rows() == kMaxPassTokens) MNEME_RETURN_IF_ERROR(pass.Run(*arch, exec, finite));
    }
  }
  for (size_t i = 0; i < slices.size(); ++i) {
    if (slices[i].tokens.empty()) pass.AddHidden(static_cast<int>(i), slices[i]);
  }
  MNEME_RETURN_IF_ERROR(pass.Run(*arch, exec, finite));

  for (size_t i = 0; i < slices.size(); ++i) {
    if (!finite[i]) non_finite.push_back(static_cast<int>(i));
  }
  if (non_finite.empty()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("logits of slice ", absl::StrJoin(non_finite, ", "), " are not finite"));
}

absl::Status Engine::Step(std::span<const EngineSlice> slices, std::vector<int>* non_finite) {
  std::vector<int> bad;
  std::vector<int>& found = non_finite != nullptr ? *non_finite : bad;
  found.clear();
  return impl_->Step(slices, found);
}

Engine::Ticket Engine::Submit(std::span<const EngineSlice> slices) {
  Ticket ticket;
  ticket.outcome_ = std::make_shared<Ticket::Outcome>();
  ticket.number_ = impl_->stepper.Submit(
      [this, outcome = ticket.outcome_, slices = std::vector(slices.begin(), slices.end())] {
        outcome->status = Step(slices, &outcome->non_finite);
      });
  return ticket;
}

absl::Status Engine::Wait(const Ticket& ticket, std::vector<int>* non_finite) {
  impl_->stepper.Wait(ticket.number_);
  if (non_finite != nullptr) *non_finite = ticket.outcome_->non_finite;
  return ticket.outcome_->status;
}

void Engine::ForEach(int64_t n, absl::FunctionRef<void(int64_t)> fn) {
  if (n == 1) return fn(0);  // not worth waiting for another model's step
  const Turns::Hold turn(impl_->device->turns());
  impl_->device->ForEach(n, fn);
}

std::string DescribeMachine() {
  std::string model = ProcField("/proc/cpuinfo", "model name");
  if (model.empty()) model = "unknown processor";
  const int64_t memory_bytes =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  return absl::StrCat(model, ", ", AvailableProcessors(), " processors, SIMD ",
                      absl::StrJoin(AvailableSimdTargets(), " "), ", ", memory_bytes >> 20,
                      " MiB of memory, built by ", CompilerId());
}

}  // namespace mneme::engine
