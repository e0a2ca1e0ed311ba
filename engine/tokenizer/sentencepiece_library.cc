#include "engine/tokenizer/sentencepiece_library.h"

#include <sentencepiece_processor.h>

#include <utility>

namespace mneme::engine {

struct SentencePieceLibrary::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

SentencePieceLibrary::SentencePieceLibrary(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

SentencePieceLibrary::~SentencePieceLibrary() = default;

std::unique_ptr<const SentencePieceLibrary> SentencePieceLibrary::Load(const std::string& model,
                                                                       std::string* error) {
  auto impl = std::make_unique<Impl>();
  const sentencepiece::util::Status status = impl->processor.LoadFromSerializedProto(model);
  if (!status.ok()) {
    *error = status.ToString();
    return nullptr;
  }
  return std::unique_ptr<const SentencePieceLibrary>(new SentencePieceLibrary(std::move(impl)));
}

int SentencePieceLibrary::size() const { return impl_->processor.GetPieceSize(); }

const std::string& SentencePieceLibrary::piece(int id) const {
  return impl_->processor.IdToPiece(id);
}

SentencePieceLibrary::Type SentencePieceLibrary::type(int id) const {
  const auto& processor = impl_->processor;
  if (processor.IsUnknown(id)) return Type::kUnknown;
  if (processor.IsControl(id)) return Type::kControl;
  if (processor.IsByte(id)) return Type::kByte;
  if (processor.IsUnused(id)) return Type::kUnused;
  return Type::kNormal;
}

int SentencePieceLibrary::unk_id() const { return impl_->processor.unk_id(); }
int SentencePieceLibrary::bos_id() const { return impl_->processor.bos_id(); }
int SentencePieceLibrary::eos_id() const { return impl_->processor.eos_id(); }
int SentencePieceLibrary::pad_id() const { return impl_->processor.pad_id(); }

bool SentencePieceLibrary::Encode(std::string_view text, std::vector<int>* ids,
                                  std::string* error) const {
  const sentencepiece::util::Status status = impl_->processor.Encode(text, ids);
  if (status.ok()) return true;
  *error = status.ToString();
  return false;
}

}  // namespace mneme::engine
