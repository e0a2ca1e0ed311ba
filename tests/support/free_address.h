// A place to listen, for programs that cannot say which port they were given.
#pragma once

#include <string>

namespace mneme::test {

// "127.0.0.1:PORT": nobody listens there now.
std::string FreeAddress();

}  // namespace mneme::test
