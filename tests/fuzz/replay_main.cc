// Runs a fuzz target without libFuzzer: over every file of its corpus, and over seeded random
// mutations of each, so that ordinary and sanitizer builds exercise the parsers too.
//
//   x_fuzz FOLDER_OR_FILE...
//
// A failure names the file and the number of the mutation; the seed is the file's name.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kMutationsPerFile = 200;

// What runs now, for the message when a signal ends the program.
char current_input[512] = "nothing yet";

void Report(int signal_number) {
  const char text[] = "\nfailed on ";
  // Only async-signal-safe calls; nothing can be done if they fail.
  (void)!write(2, text, sizeof(text) - 1);
  (void)!write(2, current_input, std::strlen(current_input));
  (void)!write(2, "\n", 1);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

using Input = std::vector<uint8_t>;

void Run(const Input& input, const std::string& name) {
  std::snprintf(current_input, sizeof(current_input), "%s", name.c_str());
  // An exact heap block, so that AddressSanitizer sees a read past the end.
  const std::unique_ptr<uint8_t[]> exact(new uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), exact.get());
  LLVMFuzzerTestOneInput(exact.get(), input.size());
}

Input Mutate(Input input, std::mt19937_64& random) {
  static constexpr uint64_t kEdges[] = {0,          1,          0x7F,       0x80,       0xFF,
                                        0x7FFF,     0xFFFF,     0x7FFFFFFF, 0xFFFFFFFF, 1ull << 32,
                                        1ull << 62, ~0ull >> 1, ~0ull};
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (size_t n = 1 + below(4); n > 0; --n) {
    if (input.empty()) input.push_back(0);
    const size_t at = below(input.size());
    const size_t length = std::min(input.size() - at, 1 + below(16));
    switch (below(7)) {
      case 0:
        input[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        input[at] = static_cast<uint8_t>(random());
        break;
      case 2:
        input.resize(at);
        break;
      case 3:  // remove
        input.erase(input.begin() + at, input.begin() + at + length);
        break;
      case 4: {  // repeat
        const Input copy(input.begin() + at, input.begin() + at + length);
        input.insert(input.begin() + at, copy.begin(), copy.end());
        break;
      }
      case 5: {  // move elsewhere
        const Input copy(input.begin() + at, input.begin() + at + length);
        std::copy(copy.begin(), copy.end(), input.begin() + below(input.size() - copy.size() + 1));
        break;
      }
      default: {  // a length or count that is wrong in an interesting way
        const uint64_t edge = kEdges[below(std::size(kEdges))];
        std::memcpy(input.data() + at, &edge, std::min<size_t>(input.size() - at, 1 + below(8)));
        break;
      }
    }
  }
  return input;
}

uint64_t SeedOf(const std::string& name) {  // FNV-1a: the same on every machine
  uint64_t hash = 1469598103934665603ull;
  for (const unsigned char c : name) hash = (hash ^ c) * 1099511628211ull;
  return hash;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::path path = argv[i];
    if (std::filesystem::is_directory(path)) {
      for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    } else if (std::filesystem::is_regular_file(path)) {
      files.push_back(path);
    } else {
      std::fprintf(stderr, "%s: no such file or folder\n", argv[i]);
      return 1;
    }
  }
  std::sort(files.begin(), files.end());
  for (const int signal_number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
    std::signal(signal_number, Report);
  }

  Run({}, "the empty input");
  int64_t num_mutations = 0;
  for (const auto& path : files) {
    std::ifstream stream(path, std::ios::binary);
    const Input input((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    Run(input, path.string());
    std::mt19937_64 random(SeedOf(path.filename().string()));
    for (int i = 0; i < kMutationsPerFile; ++i) {
      Run(Mutate(input, random), path.string() + ", mutation " + std::to_string(i));
      ++num_mutations;
    }
  }
  std::printf("%zu corpus files and %lld mutations of them ran, seeded by file name\n",
              files.size(), static_cast<long long>(num_mutations));
  if (files.empty()) {
    std::fprintf(stderr, "no corpus file found\n");
    return 1;
  }
  return 0;
}
