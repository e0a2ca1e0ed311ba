// Whether the driver has a GPU for us, asked without toolkit: "NAME CAPABILITY" ("NVIDIA H100 90"),
// or the reason and exit code 77. For bench/device_check.sh, before anything is built.
#include <dlfcn.h>

#include <cstdio>

namespace {

void* driver;

// The driver's own word for an error.
const char* NameOf(int error) {
  const char* name = nullptr;
  const auto get = reinterpret_cast<int (*)(int, const char**)>(dlsym(driver, "cuGetErrorName"));
  return get != nullptr && get(error, &name) == 0 ? name : "an unknown error";
}

template <typename... Args>
int Call(const char* name, Args... args) {
  const auto function = reinterpret_cast<int (*)(Args...)>(dlsym(driver, name));
  const int error = function != nullptr ? function(args...) : -1;
  if (error != 0) std::printf("no usable GPU: %s: %s\n", name, NameOf(error));
  return error;
}

}  // namespace

int main() {
  constexpr int kNoDevice = 77, kMajor = 75, kMinor = 76;
  driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) {
    std::printf("no usable GPU: no driver: %s\n", dlerror());
    return kNoDevice;
  }
  int count = 0, device = 0, major = 0, minor = 0;
  char name[256] = {};
  if (Call("cuInit", 0u) != 0 || Call("cuDeviceGetCount", &count) != 0) return kNoDevice;
  if (count == 0) {
    std::printf("no usable GPU: the driver knows of none\n");
    return kNoDevice;
  }
  if (Call("cuDeviceGet", &device, 0) != 0 ||
      Call("cuDeviceGetName", static_cast<char*>(name), 255, device) != 0 ||
      Call("cuDeviceGetAttribute", &major, kMajor, device) != 0 ||
      Call("cuDeviceGetAttribute", &minor, kMinor, device) != 0) {
    return kNoDevice;
  }
  std::printf("%s %d%d\n", name, major, minor);
  return 0;
}
