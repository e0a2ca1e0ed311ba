// Debian's libprotobuf is not instrumented, but its map_field.h gives MapFieldBase two members more
// under ThreadSanitizer: the library then reads every map field of ours at the wrong offsets, and
// reflection over a map ends in a crash. Found before the real header, in the tsan preset.
#pragma once

#include <google/protobuf/map_entry.h>
#include <google/protobuf/message.h>
#include <google/protobuf/stubs/mutex.h>

#include <atomic>
#include <functional>

#pragma push_macro("__SANITIZE_THREAD__")
#undef __SANITIZE_THREAD__
#include_next <google/protobuf/map_field.h>
#pragma pop_macro("__SANITIZE_THREAD__")
