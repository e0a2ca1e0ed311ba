// Places to listen for tests that run beside each other on one machine.
#pragma once

#include <string>

namespace mneme::test {

// A loopback address of this process alone, in 127.128.0.0/10: another test neither listens on it
// nor has one of its connections' ends there, so a port that a server gives up is still free when
// it starts again. (On 127.0.0.1 the system may hand it out as the local end of a connection.)
std::string OwnLoopback();

// "IP:PORT" on OwnLoopback(), where nobody listens now: for programs that cannot say which port
// they were given.
std::string FreeAddress();

// A socket that listens on 127.0.0.1, at a port of the system's choice. Aborts if there is none.
int ListenOnLoopback(int* port);

}  // namespace mneme::test
