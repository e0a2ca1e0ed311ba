// That this program links is the test (CMakeLists.txt): it holds every object of the engine, the
// store, the server and the client once.
#include <gtest/gtest.h>

#include "client/names.h"
#include "engine/core/utf8.h"
#include "memstore/state_store.h"
#include "server/core/resource_id.h"
#include "server/core/session_names.h"

namespace mneme {
namespace {

TEST(OneDefinition, EveryLayerIsThere) {
  EXPECT_FALSE(engine::IsValidUtf8("\xC0\x80"));
  EXPECT_NE(memstore::HashChunk("a"), memstore::HashChunk("b"));
  EXPECT_TRUE(server::IsValidId(server::MakeSessionId()));
}

}  // namespace
}  // namespace mneme
