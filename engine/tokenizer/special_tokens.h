// Cuts control tokens and user-defined pieces out of a text before the model-specific part sees it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "engine/tokenizer/tokenizer.h"

namespace mneme::engine {

// Values are those of tokenizer.ggml.token_type.
enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Pieces that close a turn, a message or a document in the known families; a model that emits one
// has finished. Spellings only; ids come from the vocabulary.
std::span<const std::string_view> EndOfGenerationSpellings();

// Makes control tokens of the user-defined pieces that conversations are framed with (some
// converters store them as user-defined, and then every user could forge a turn).
void PromoteFramingPieces(std::span<const std::string> pieces, std::span<PieceType> types);

// Checks that the ids are below `num_pieces` (or -1) and fills end_of_generation from eos, `extra`
// and the spellings above. INVALID_ARGUMENT names the id.
absl::Status FinishSpecialTokens(std::span<const std::string> pieces, int64_t num_pieces,
                                 std::span<const TokenId> extra, SpecialTokens* special);

// A part of a text: either ordinary text (id < 0) or one special piece.
struct Fragment {
  std::string_view text;
  TokenId id = -1;
};

// Immutable and thread-safe. A pass over a text costs at most kMaxSpellingBytes steps per byte.
class SpecialMatcher {
 public:
  static constexpr size_t kMaxSpellingBytes = 256;

  SpecialMatcher() = default;

  // Control and unknown pieces match only if special parsing is on, user-defined ones always.
  // Pieces of other types and empty ones are passed over. INVALID_ARGUMENT if a spelling is longer
  // than kMaxSpellingBytes.
  absl::Status Init(std::span<const std::string> pieces, std::span<const PieceType> types);

  // The text in order, cut at special pieces: leftmost first, the longest where several start. No
  // fragment is empty. Views into `text`.
  std::vector<Fragment> Cut(std::string_view text, bool parse_special) const;

  // Whether some spelling holds a whitespace character after another character. Cutting a text
  // before whitespace could then cut such a piece in two. A space after a space does not count
  // (GPT-NeoX has pieces of 2 to 24 spaces): nobody cuts there.
  bool has_inner_space() const { return has_inner_space_; }
  // Whether some spelling ends with this byte.
  bool ends_spelling(char byte) const { return last_byte_[static_cast<unsigned char>(byte)]; }

 private:
  struct Node {
    TokenId control = -1;
    TokenId user_defined = -1;
  };

  void Add(std::string_view spelling, TokenId id, bool control);

  // A byte trie; node 0 is the root. Edges are keyed by node * 256 + byte.
  std::vector<Node> nodes_ = std::vector<Node>(1);
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  bool first_byte_control_[256] = {};
  bool first_byte_user_[256] = {};
  bool last_byte_[256] = {};
  bool has_inner_space_ = false;
};

}  // namespace mneme::engine
