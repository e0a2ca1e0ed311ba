#include "bench/made_checkpoint.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/half.h"
#include "tests/engine/kernels/random_operands.h"

namespace mneme::bench {
namespace {

using engine::DType;
using engine::MetadataValue;
using engine::Tensor;

constexpr ModelShape kShapes[] = {
    {"llama-135m", ModelKind::kLlama, 30, 576, 1536, 49152, 9, 3, /*tied=*/true},
    {"llama-1.1b", ModelKind::kLlama, 22, 2048, 5632, 32000, 32, 4},
    {"rwkv7-0.19b", ModelKind::kRwkv7, 12, 768, 3072, 65536, 12, 12},
    {"rwkv7-1.5b", ModelKind::kRwkv7, 24, 2048, 8192, 65536, 32, 32},
    {"titans-mag-0.3b", ModelKind::kTitansMag, 12, 1024, 2816, 32000, 16, 16, false, 512},
    {"titans-mac-0.3b", ModelKind::kTitansMac, 12, 1024, 2816, 32000, 16, 16, false, 64},
    {"infini-0.3b", ModelKind::kInfini, 24, 1024, 2816, 32000, 16, 4, /*tied=*/true},
};

// Random, of a type, in `bytes` bytes: one small piece over and over.
void FillRandom(DType dtype, std::span<std::byte> bytes) {
  constexpr int64_t kElements = 1 << 16;
  const engine::TestWeight pattern(dtype, 1, kElements, /*seed=*/1, /*misalign=*/0);
  const size_t piece = pattern.view().size_bytes();
  for (size_t at = 0; at < bytes.size(); at += piece) {
    std::memcpy(bytes.data() + at, pattern.view().data, std::min(piece, bytes.size() - at));
  }
}

class MadeCheckpoint final : public engine::Checkpoint {
 public:
  MadeCheckpoint(std::string_view name, DType dtype, Values values)
      : path_(name), dtype_(dtype), values_(values) {}
  ~MadeCheckpoint() override {
    for (const auto& [dtype, mapping] : mappings_) munmap(mapping.at, mapping.bytes);
  }

  Format format() const override { return Format::kSafetensors; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::map<std::string, Tensor, std::less<>>& tensors() const override { return tensors_; }
  const std::string& path() const override { return path_; }
  std::string Fingerprint() const override { return std::string(32, 'm'); }
  absl::StatusOr<std::string> ReadSideFile(std::string_view name, size_t) const override {
    return absl::NotFoundError(absl::StrCat("no ", std::string(name), " beside a made checkpoint"));
  }

  void Set(const std::string& key, MetadataValue value) { metadata_[key] = std::move(value); }
  void Set(const std::string& key, const char* value) { metadata_[key] = std::string(value); }
  void Set(const std::string& key, int64_t value) { metadata_[key] = value; }
  void Matrix(const std::string& name, int64_t rows, int64_t columns) {
    DType dtype = dtype_;
    for (const DType other : {DType::kQ8_0, DType::kF16}) {
      if (columns % engine::Traits(dtype).block_elements != 0) dtype = other;
    }
    Add(name, {rows, columns}, dtype);
  }
  // Of a float type whatever the others are.
  void FloatMatrix(const std::string& name, int64_t rows, int64_t columns) {
    Add(name, {rows, columns}, engine::IsQuantized(dtype_) ? DType::kF16 : dtype_);
  }
  void Floats(const std::string& name, std::vector<int64_t> shape) {
    Add(name, std::move(shape), DType::kF32);
  }

  // Call when all tensors are there. Those of a type share their bytes.
  void Finish() {
    for (const auto& [name, tensor] : tensors_) {
      size_t& most = mappings_[tensor.dtype].bytes;
      most = std::max(most, tensor.size_bytes);
    }
    for (auto& [dtype, mapping] : mappings_) {
      mapping.at = mmap(nullptr, mapping.bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapping.at == MAP_FAILED) std::abort();
      if (values_ == Values::kRandom) {
        FillRandom(dtype, {static_cast<std::byte*>(mapping.at), mapping.bytes});
      }
    }
    for (auto& [name, tensor] : tensors_) {
      tensor.data = static_cast<const std::byte*>(mappings_[tensor.dtype].at);
    }
  }

 private:
  struct Mapping {
    void* at = nullptr;
    size_t bytes = 0;
  };

  void Add(const std::string& name, std::vector<int64_t> shape, DType dtype) {
    int64_t elements = 1;
    for (const int64_t n : shape) elements *= n;
    const engine::DTypeTraits& traits = engine::Traits(dtype);
    const size_t bytes = elements / traits.block_elements * traits.block_bytes;
    tensors_[name] = {.name = name,
                      .dtype = dtype,
                      .shape = std::move(shape),
                      .data = nullptr,
                      .size_bytes = bytes};
  }

  const std::string path_;
  const DType dtype_;
  const Values values_;
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::map<DType, Mapping> mappings_;
};

void AddEnds(const ModelShape& s, MadeCheckpoint& c) {
  c.Set("vocab_size", s.vocab_size);
  c.Set("hidden_size", s.width);
  c.Set("num_hidden_layers", s.layers);
  c.Set("intermediate_size", s.ffn_width);
  c.Set("tie_word_embeddings", MetadataValue(s.tied));
  c.Matrix("model.embed_tokens.weight", s.vocab_size, s.width);
  if (!s.tied) c.Matrix("lm_head.weight", s.vocab_size, s.width);
  c.Floats("model.norm.weight", {s.width});
}

void AddFeedForward(const ModelShape& s, const std::string& layer, MadeCheckpoint& c) {
  c.Floats(layer + "post_attention_layernorm.weight", {s.width});
  c.Matrix(layer + "mlp.gate_proj.weight", s.ffn_width, s.width);
  c.Matrix(layer + "mlp.up_proj.weight", s.ffn_width, s.width);
  c.Matrix(layer + "mlp.down_proj.weight", s.width, s.ffn_width);
}

void AddAttention(const ModelShape& s, const std::string& layer, MadeCheckpoint& c) {
  const int64_t kv_width = s.width / s.heads * s.kv_heads;
  c.Matrix(layer + "self_attn.q_proj.weight", s.width, s.width);
  c.Matrix(layer + "self_attn.k_proj.weight", kv_width, s.width);
  c.Matrix(layer + "self_attn.v_proj.weight", kv_width, s.width);
  c.Matrix(layer + "self_attn.o_proj.weight", s.width, s.width);
}

void MakeLlama(const ModelShape& s, MadeCheckpoint& c) {
  AddEnds(s, c);
  c.Set("model_type", "llama");
  c.Set("num_attention_heads", s.heads);
  c.Set("num_key_value_heads", s.kv_heads);
  c.Set("max_position_embeddings", s.window);
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    c.Floats(layer + "input_layernorm.weight", {s.width});
    AddAttention(s, layer, c);
    AddFeedForward(s, layer, c);
  }
}

void MakeInfini(const ModelShape& s, MadeCheckpoint& c) {
  AddEnds(s, c);
  c.Set("model_type", "infini");
  c.Set("mneme_config_version", 1);
  c.Set("num_attention_heads", s.heads);
  c.Set("num_key_value_heads", s.kv_heads);
  c.Set("segment_tokens", s.window);
  c.Set("memory_update", "linear_delta");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    c.Floats(layer + "input_layernorm.weight", {s.width});
    AddAttention(s, layer, c);
    c.Floats(layer + "self_attn.memory_gate", {s.heads});
    AddFeedForward(s, layer, c);
  }
}

void MakeRwkv7(const ModelShape& s, MadeCheckpoint& c) {
  const int64_t C = s.width;
  c.Set("model_type", "rwkv7");
  c.Set("vocab_size", s.vocab_size);
  c.Set("hidden_size", C);
  c.Set("num_hidden_layers", s.layers);
  c.Set("intermediate_size", s.ffn_width);
  const auto norm = [&](const std::string& name) {
    c.Floats(name + ".weight", {C});
    c.Floats(name + ".bias", {C});
  };
  // Ranks as the published models of these sizes have them.
  const int64_t rank = C > 1024 ? 96 : std::min<int64_t>(64, C / 2);
  const auto low_rank = [&](const std::string& name, int64_t r, bool has_bias) {
    c.FloatMatrix(name + "_lora.lora.0.weight", r, C);
    c.FloatMatrix(name + "_lora.lora.2.weight", C, r);
    if (has_bias) c.Floats(name + "_lora.lora.2.bias", {C});
  };
  c.Matrix("model.embeddings.weight", s.vocab_size, C);
  c.Matrix("lm_head.weight", s.vocab_size, C);
  norm("model.norm");
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    if (i == 0) norm(layer + "pre_norm");
    norm(layer + "attn_norm");
    norm(layer + "ffn_norm");
    norm(layer + "attn.g_norm");
    for (const char* x : {"r", "w", "k", "v", "a", "g"}) {
      c.Floats(absl::StrCat(layer, "attn.x_", x), {C});
    }
    for (const char* x : {"r", "k", "v", "o"}) {
      c.Matrix(absl::StrCat(layer, "attn.", x, "_proj.weight"), C, C);
    }
    low_rank(layer + "attn.w", rank, true);
    low_rank(layer + "attn.a", rank, true);
    low_rank(layer + "attn.g", C > 1024 ? 256 : 2 * rank, false);
    if (i > 0) low_rank(layer + "attn.v", C > 1024 ? 64 : rank / 2, true);
    c.Floats(layer + "attn.k_k", {C});
    c.Floats(layer + "attn.k_a", {C});
    c.Floats(layer + "attn.r_k", {s.heads, C / s.heads});
    c.Floats(layer + "ffn.x_k", {C});
    c.Matrix(layer + "ffn.key.weight", s.ffn_width, C);
    c.Matrix(layer + "ffn.value.weight", C, s.ffn_width);
  }
}

void MakeTitans(const ModelShape& s, MadeCheckpoint& c) {
  const bool context = s.kind == ModelKind::kTitansMac;
  const int64_t D = s.width, H = s.heads, e = D / H, h = 2 * e;
  constexpr int64_t kChunk = 64, kTaps = 4, kPersistent = 4;
  AddEnds(s, c);
  c.Set("model_type", "titans");
  c.Set("mneme_config_version", 1);
  c.Set("variant", context ? "mac" : "mag");
  c.Set("num_attention_heads", H);
  c.Set("persistent_tokens", kPersistent);
  c.Set("memory_heads", H);
  c.Set("memory_head_dim", e);
  c.Set("memory_depth", 2);
  c.Set("memory_hidden_dim", h);
  c.Set("memory_chunk_tokens", context ? s.window : std::min(kChunk, s.window));
  c.Set(context ? "segment_tokens" : "window_tokens", s.window);
  c.Set("conv_taps", kTaps);
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = absl::StrCat("model.layers.", i, ".");
    const std::string memory = layer + "memory.";
    c.Floats(layer + "input_layernorm.weight", {D});
    for (const char* x : {"q", "k", "v"}) {
      c.Matrix(absl::StrCat(memory, x, "_proj.weight"), D, D);
      c.Floats(absl::StrCat(memory, x, "_conv.weight"), {D, kTaps});
    }
    c.FloatMatrix(memory + "gate.weight", 3 * H, D);
    c.Floats(memory + "gate.bias", {3 * H});
    c.Floats(memory + "init.0", {H, e, h});
    c.Floats(memory + "init.1", {H, h, e});
    c.Floats(memory + "output_norm.weight", {e});
    c.Matrix(memory + "output_gate.weight", D, D);
    c.Matrix(memory + "o_proj.weight", D, D);
    if (context) {
      c.Matrix(memory + "q2_proj.weight", D, D);
      c.Floats(memory + "q2_conv.weight", {D, kTaps});
      c.Floats(memory + "output_norm2.weight", {e});
      c.Matrix(memory + "output_gate2.weight", D, D);
      c.Matrix(memory + "o2_proj.weight", D, D);
      c.Floats(memory + "input_norm.weight", {D});
    }
    AddAttention(s, layer, c);
    c.Floats(layer + "self_attn.persistent", {kPersistent, D});
    c.Floats(layer + "mix.attention_norm.weight", {D});
    c.Floats(layer + "mix.memory_norm.weight", {D});
    c.Matrix(layer + "mix.o_proj.weight", D, D);
    AddFeedForward(s, layer, c);
  }
}

}  // namespace

std::span<const ModelShape> ModelShapes() { return kShapes; }

ModelShape Toy(const ModelShape& shape) {
  ModelShape toy = shape;
  toy.layers = 2;
  toy.width = 64;
  toy.ffn_width = 96;
  toy.vocab_size = 128;
  toy.heads = 4;
  toy.kv_heads = shape.kv_heads < shape.heads ? 2 : 4;
  toy.window = 16;
  return toy;
}

std::shared_ptr<const engine::Checkpoint> MakeCheckpoint(const ModelShape& shape, DType dtype,
                                                         Values values) {
  auto checkpoint = std::make_shared<MadeCheckpoint>(shape.name, dtype, values);
  switch (shape.kind) {
    case ModelKind::kLlama:
      MakeLlama(shape, *checkpoint);
      break;
    case ModelKind::kRwkv7:
      MakeRwkv7(shape, *checkpoint);
      break;
    case ModelKind::kTitansMag:
    case ModelKind::kTitansMac:
      MakeTitans(shape, *checkpoint);
      break;
    case ModelKind::kInfini:
      MakeInfini(shape, *checkpoint);
      break;
  }
  checkpoint->Finish();
  return checkpoint;
}

}  // namespace mneme::bench
