// The bytes of a session's file around its header and chunks: preamble, compression, digest.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/state/little_endian.h"
#include "server/core/errors.h"
#include "server/core/session_file.h"

namespace mneme::server {
namespace {

constexpr std::string_view kMagic = "MNEMSESS";
constexpr size_t kPreambleBytes = 16;
constexpr uint32_t kCompressed = 1;
constexpr size_t kDigestBytes = 32;
constexpr size_t kInflateBytes = 128 << 10;
// Of what a frame may ask the reader to remember: 8 MiB, which zstd's default levels stay below.
constexpr int kMaxWindowLog = 23;

absl::Status CompressorFailed() {
  return Error(absl::StatusCode::kInternal, reason::kInternal, "zstd failed");
}

}  // namespace

Sha256Stream::Sha256Stream() : hash_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  EVP_DigestInit_ex(hash_.get(), EVP_sha256(), nullptr);
}

void Sha256Stream::Update(std::string_view bytes) {
  EVP_DigestUpdate(hash_.get(), bytes.data(), bytes.size());
}

std::string Sha256Stream::Digest() {
  std::string digest(kDigestBytes, '\0');
  EVP_DigestFinal_ex(hash_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

SessionFileWriter::SessionFileWriter(bool compress, Write write)
    : write_(std::move(write)),
      zstd_(compress ? ZSTD_createCStream() : nullptr, ZSTD_freeCStream) {}

absl::Status SessionFileWriter::Emit(std::string_view bytes) {
  hash_.Update(bytes);
  return write_(bytes);
}

absl::Status SessionFileWriter::Put(std::string_view body, bool last) {
  if (zstd_ == nullptr) return Emit(body);
  ZSTD_inBuffer in = {body.data(), body.size(), 0};
  std::string piece(ZSTD_CStreamOutSize(), '\0');
  while (true) {
    ZSTD_outBuffer out = {piece.data(), piece.size(), 0};
    const size_t left =
        ZSTD_compressStream2(zstd_.get(), &out, &in, last ? ZSTD_e_end : ZSTD_e_continue);
    if (ZSTD_isError(left)) return CompressorFailed();
    MNEME_RETURN_IF_ERROR(Emit(std::string_view(piece).substr(0, out.pos)));
    if (last ? left == 0 : in.pos == in.size) return absl::OkStatus();
  }
}

absl::Status SessionFileWriter::Begin(const SessionFileHeader& header) {
  std::string preamble(kMagic);
  engine::AppendLittle(preamble, kSessionFileFormat);
  engine::AppendLittle(preamble, zstd_ != nullptr ? kCompressed : 0);
  MNEME_RETURN_IF_ERROR(Emit(preamble));
  return Put(header.Serialize(), /*last=*/false);
}

absl::Status SessionFileWriter::Chunk(std::string_view bytes) { return Put(bytes, false); }

absl::Status SessionFileWriter::End() {
  if (zstd_ != nullptr) MNEME_RETURN_IF_ERROR(Put("", /*last=*/true));
  return write_(hash_.Digest());
}

SessionFileReader::SessionFileReader(OnHeader on_header, OnChunk on_chunk)
    : on_header_(std::move(on_header)),
      on_chunk_(std::move(on_chunk)),
      zstd_(nullptr, ZSTD_freeDStream) {}

bool SessionFileReader::Gather(std::string_view& bytes, size_t wanted) {
  const size_t n = std::min(bytes.size(), wanted - partial_.size());
  partial_.append(bytes.substr(0, n));
  bytes.remove_prefix(n);
  return partial_.size() == wanted;
}

absl::Status SessionFileReader::Feed(std::string_view bytes) {
  if (status_.ok()) status_ = FeedUnchecked(bytes);
  return status_;
}

absl::Status SessionFileReader::FeedUnchecked(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::string_view before = bytes;
    switch (stage_) {
      case Stage::kPreamble:
        if (Gather(bytes, kPreambleBytes)) MNEME_RETURN_IF_ERROR(TakePreamble());
        break;
      case Stage::kHeader:
      case Stage::kChunks:
        MNEME_RETURN_IF_ERROR(zstd_ != nullptr ? Inflate(bytes) : TakeBody(bytes));
        break;
      case Stage::kDigest:
        // The compressed body may have bytes after its last content.
        if (zstd_ != nullptr && !inflated_) {
          MNEME_RETURN_IF_ERROR(Inflate(bytes));
          break;
        }
        if (Gather(bytes, kDigestBytes)) {
          if (partial_ != hash_.Digest()) {
            return DamagedFile("its SHA-256 is not that of its content");
          }
          stage_ = Stage::kEnd;
        }
        continue;  // not hashed
      case Stage::kEnd:
        return DamagedFile("bytes follow after its end");
    }
    hash_.Update(before.substr(0, before.size() - bytes.size()));
  }
  return absl::OkStatus();
}

absl::Status SessionFileReader::Finish() {
  if (status_.ok() && stage_ != Stage::kEnd) status_ = DamagedFile("it ends too early");
  return status_;
}

absl::Status SessionFileReader::TakePreamble() {
  engine::LittleEndianCursor cursor("preamble", partial_);
  const std::string magic = cursor.Bytes(kMagic.size(), "magic").value();
  const auto version = cursor.Read<uint32_t>("format_version").value();
  const auto flags = cursor.Read<uint32_t>("flags").value();
  if (magic != kMagic) return DamagedFile("it does not begin as an exported session does");
  if (version < kOldestSessionFileFormat || version > kSessionFileFormat) {
    const bool newer = version > kSessionFileFormat;
    return Error(
        absl::StatusCode::kFailedPrecondition,
        newer ? reason::kFormatTooNew : reason::kFormatTooOld,
        absl::StrCat("the file has format ", version, ", this server reads ", kSessionFileFormat,
                     "; import it with ", newer ? "a newer server" : "the server that wrote it"),
        {{"file_format", absl::StrCat(version)},
         {"server_format", absl::StrCat(kSessionFileFormat)}});
  }
  if ((flags & ~kCompressed) != 0) return DamagedFile("flags: unknown bits are set");
  if (flags & kCompressed) {
    zstd_.reset(ZSTD_createDStream());
    if (zstd_ == nullptr ||
        ZSTD_isError(ZSTD_DCtx_setParameter(zstd_.get(), ZSTD_d_windowLogMax, kMaxWindowLog))) {
      return CompressorFailed();
    }
  }
  partial_.clear();
  stage_ = Stage::kHeader;
  return absl::OkStatus();
}

absl::Status SessionFileReader::TakeBody(std::string_view& bytes) {
  while (!bytes.empty() && !BodyIsComplete()) {
    if (stage_ == Stage::kHeader) {
      if (partial_.size() < sizeof(uint32_t) && !Gather(bytes, sizeof(uint32_t))) break;
      uint32_t header_bytes = 0;
      std::memcpy(&header_bytes, partial_.data(), sizeof(header_bytes));
      if (header_bytes < sizeof(header_bytes) || header_bytes > kMaxSessionFileHeaderBytes) {
        return DamagedFile("header_bytes: must be at most 16 MiB");
      }
      if (Gather(bytes, header_bytes)) MNEME_RETURN_IF_ERROR(TakeHeader());
    } else if (Gather(bytes, static_cast<size_t>(chunks_[next_chunk_].size_bytes))) {
      MNEME_RETURN_IF_ERROR(TakeChunk());
    }
  }
  return absl::OkStatus();
}

absl::Status SessionFileReader::TakeHeader() {
  MNEME_ASSIGN_OR_RETURN(const SessionFileHeader header, SessionFileHeader::Parse(partial_));
  partial_.clear();
  chunks_ = ChunksInFile(header);
  MNEME_RETURN_IF_ERROR(on_header_(header, chunks_));
  stage_ = chunks_.empty() ? Stage::kDigest : Stage::kChunks;
  return absl::OkStatus();
}

absl::Status SessionFileReader::TakeChunk() {
  const FileChunk& chunk = chunks_[next_chunk_];
  if (memstore::HashChunk(partial_) != chunk.id) {
    return DamagedFile(absl::StrCat("chunk ", next_chunk_, " is not what its SHA-256 says"));
  }
  MNEME_RETURN_IF_ERROR(on_chunk_(chunk, std::exchange(partial_, std::string())));
  if (++next_chunk_ == chunks_.size()) stage_ = Stage::kDigest;
  return absl::OkStatus();
}

absl::Status SessionFileReader::Inflate(std::string_view& bytes) {
  inflate_buffer_.resize(kInflateBytes);
  ZSTD_inBuffer in = {bytes.data(), bytes.size(), 0};
  // Once more after the last byte of input: what it still holds.
  for (bool more = true; more;) {
    ZSTD_outBuffer out = {inflate_buffer_.data(), inflate_buffer_.size(), 0};
    const size_t left = ZSTD_decompressStream(zstd_.get(), &out, &in);
    if (ZSTD_isError(left)) return DamagedFile("its compression is broken");
    std::string_view body = std::string_view(inflate_buffer_).substr(0, out.pos);
    MNEME_RETURN_IF_ERROR(TakeBody(body));
    if (!body.empty()) return DamagedFile("more was compressed than its header says");
    if (left == 0) {
      if (!BodyIsComplete()) return DamagedFile("less was compressed than its header says");
      inflated_ = true;
      break;
    }
    more = in.pos < in.size || out.pos == out.size;
  }
  bytes.remove_prefix(in.pos);
  return absl::OkStatus();
}

}  // namespace mneme::server
