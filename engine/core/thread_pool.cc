#include "engine/core/thread_pool.h"
