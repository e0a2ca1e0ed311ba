#include "engine/kernels/kernels.h"

#include <dlfcn.h>

#include <array>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/mutex.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/plugin.h"
#include "numerics_hash.h"

namespace mneme::engine {

#define ENGINE_BACKEND(name)       \
  const Kernels& name##_kernels(); \
  std::unique_ptr<Device> name##_device(int num_threads);
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND

namespace {

struct Backend {
  const Kernels* kernels;
  MakeDeviceFn device;
  bool on_host = false;  // one device, the host's processors
};

// Backends are added, never taken away; where they lie does not change.
class Registry {
 public:
  Registry() ABSL_NO_THREAD_SAFETY_ANALYSIS {  // nobody else has it yet
#define ENGINE_BACKEND(name)                                                 \
  Add({&name##_kernels(),                                                    \
       [](int num_threads, int) -> absl::StatusOr<std::unique_ptr<Device>> { \
         return name##_device(num_threads);                                  \
       },                                                                    \
       /*on_host=*/true});
#include "engine/kernels/backend_list.inc"
#undef ENGINE_BACKEND
  }

  std::span<const Kernels* const> kernels() {
    const MutexLock lock(&mutex_);
    return std::span(kernels_).first(count_);
  }
  std::optional<Backend> Find(std::string_view name) {
    const MutexLock lock(&mutex_);
    for (size_t i = 0; i < count_; ++i) {
      if (kernels_[i]->name == name) return backends_[i];
    }
    return std::nullopt;
  }
  absl::Status Open(const std::string& library);

 private:
  void Add(const Backend& backend) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    kernels_[count_] = backend.kernels;
    backends_[count_++] = backend;
  }

  static constexpr size_t kMost = 8;
  Mutex mutex_;
  std::array<const Kernels*, kMost> kernels_ ABSL_GUARDED_BY(mutex_);
  std::array<Backend, kMost> backends_ ABSL_GUARDED_BY(mutex_);
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

Registry& Backends() {
  static Registry* const registry = new Registry;
  return *registry;
}

absl::Status Registry::Open(const std::string& library) {
  // Its symbols stay its own, and it is never closed: devices and tables live on.
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return absl::FailedPreconditionError(dlerror());
  const auto get = reinterpret_cast<BackendPluginFn>(dlsym(handle, kBackendPluginSymbol));
  if (get == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(library, ": not a backend of this program: no ", kBackendPluginSymbol));
  }
  const BackendPlugin& plugin = *get();
  if (std::string_view(plugin.build_id) != MNEME_NUMERICS_HASH) {
    return absl::FailedPreconditionError(absl::StrCat(
        library, ": of another build: ", plugin.build_id, ", expected ", MNEME_NUMERICS_HASH));
  }
  const MutexLock lock(&mutex_);
  for (size_t i = 0; i < count_; ++i) {
    if (kernels_[i] == plugin.kernels) return absl::OkStatus();
    if (kernels_[i]->name == plugin.kernels->name) {
      return absl::FailedPreconditionError(absl::StrCat(
          library, ": a backend '", std::string(plugin.kernels->name), "' is open already"));
    }
  }
  if (count_ == kMost) return absl::FailedPreconditionError("too many backends");
  Add({plugin.kernels, plugin.device});
  return absl::OkStatus();
}

struct Plugin {
  std::string_view name;
  std::string_view library;
  bool always_named;
};
constexpr Plugin kPlugins[] = {
#define ENGINE_PLUGIN(name, always_named) {#name, "libmneme_" #name ".so", always_named},
#include "engine/kernels/plugin_list.inc"
#undef ENGINE_PLUGIN
};

// Where a plugin's library is: beside the program, or among the private libraries that are
// installed, or built, with it. Empty if nowhere.
std::string FindLibrary(const Plugin& plugin) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "";
  const std::filesystem::path beside = program.parent_path();
  for (const auto& directory : {beside, beside / MNEME_PATH_TO_PRIVATE_LIBRARIES}) {
    const std::filesystem::path at = directory / plugin.library;
    if (std::filesystem::exists(at, error)) return at.string();
  }
  return "";
}

}  // namespace

std::span<const Kernels* const> AllBackends() { return Backends().kernels(); }

const Kernels* FindBackend(std::string_view name) {
  const std::optional<Backend> backend = Backends().Find(name);
  return backend ? backend->kernels : nullptr;
}

std::vector<std::string> BackendNames() {
  std::vector<std::string> names;
  for (const Kernels* kernels : AllBackends()) names.emplace_back(kernels->name);
  for (const Plugin& plugin : kPlugins) {
    if (FindBackend(plugin.name) != nullptr) continue;
    if (plugin.always_named || !FindLibrary(plugin).empty()) names.emplace_back(plugin.name);
  }
  return names;
}

absl::Status OpenBackend(const std::string& library) { return Backends().Open(library); }

absl::StatusOr<std::unique_ptr<Device>> CreateDevice(std::string_view backend, int num_threads,
                                                     int ordinal) {
  if (num_threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", num_threads, ", expected 0 or more"));
  }
  if (num_threads == 0) num_threads = AvailableProcessors();
  std::optional<Backend> found = Backends().Find(backend);
  for (const Plugin& plugin : kPlugins) {
    if (found || plugin.name != backend) continue;
    const std::string library = FindLibrary(plugin);
    if (library.empty()) {
      return absl::NotFoundError(absl::StrCat(
          "backend '", std::string(backend), "' is not installed: no ", std::string(plugin.library),
          " beside this program or in ", MNEME_PATH_TO_PRIVATE_LIBRARIES, " from there"));
    }
    MNEME_RETURN_IF_ERROR(OpenBackend(library));
    found = Backends().Find(backend);
  }
  if (!found) {
    return absl::InvalidArgumentError(absl::StrCat("no backend '", std::string(backend),
                                                   "'; there are ",
                                                   absl::StrJoin(BackendNames(), ", ")));
  }
  if (found->on_host && ordinal != 0) {
    return absl::InvalidArgumentError(absl::StrCat("there is no device ", ordinal, " of backend '",
                                                   std::string(backend),
                                                   "': it has device 0 only"));
  }
  return found->device(num_threads, ordinal);
}

}  // namespace mneme::engine
