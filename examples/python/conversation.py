#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A conversation that survives its server: stream, go on after a restart, fork, rewind, cancel.

  examples/python/conversation.py [HOST:PORT]      the stubs must be on PYTHONPATH: examples/README.md
"""

import sys
import time

import grpc
from mneme.v1 import generation_pb2, generation_pb2_grpc, sessions_pb2, sessions_pb2_grpc

# While a server starts, wait for it instead of failing.
CALL = {"wait_for_ready": True, "timeout": 120}


def turn(generation, session, text, **fields):
    """Streams one turn to the terminal and returns its Final: by then it is on the server's disk."""
    request = generation_pb2.GenerateRequest(session=session.name, text=text, max_output_tokens=24, **fields)
    while True:
        try:
            for event in generation.Generate(request, **CALL):
                if event.HasField("delta"):
                    print(event.delta.text, end="", flush=True)
                elif event.HasField("final"):
                    print()
                    return event.final
        except grpc.RpcError as error:
            # The server went away. A turn with expected_version is safe to send again: it happens once,
            # or ABORTED VERSION_MISMATCH says that it has happened, and ReadTranscript what was said.
            if error.code() != grpc.StatusCode.UNAVAILABLE or not request.expected_version:
                raise
            time.sleep(0.5)


def main():
    channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7447")
    sessions = sessions_pb2_grpc.SessionsStub(channel)
    generation = generation_pb2_grpc.GenerationStub(channel)

    # A session: a name, a version and one state of fixed size. The server chooses the name.
    session = sessions.CreateSession(sessions_pb2.CreateSessionRequest(parent="tenants/default"), **CALL)
    print("session", session.name)
    first = turn(generation, session, "The sea was calm that morning, and")
    print(f"[version {first.version}, {first.position_tokens} tokens]")

    print("You may restart the server now. Press Enter.")
    sys.stdin.readline()
    second = turn(generation, session, " Then the wind", expected_version=first.version)
    print(f"[version {second.version}, read again: {second.usage.recomputed_tokens} tokens]")

    # Two answers from the same point. A fork copies a name, however much the session has read.
    forks = sessions.ForkSession(sessions_pb2.ForkSessionRequest(name=session.name, count=2), **CALL).sessions
    for seed, fork in enumerate(forks):
        print(f"answer {seed}:")
        turn(generation, fork, " and so", sampling=generation_pb2.Sampling(seed=seed))

    # A turn that went wrong is taken back.
    turn(generation, session, " (nonsense)")
    rewound = sessions.RewindSession(
        sessions_pb2.RewindSessionRequest(name=session.name, position_tokens=second.position_tokens), **CALL).session
    print(f"rewound to {rewound.position_tokens} tokens")

    # Cancelled after three deltas. DISCARD: the session is as if it had never been asked.
    request = generation_pb2.GenerateRequest(session=session.name, text=" for ever", max_output_tokens=4096,
                                             ignore_eos=True, commit_policy=generation_pb2.GenerateRequest.DISCARD)
    deltas = 0
    for event in generation.Generate(request, **CALL):
        if event.HasField("started"):
            name = event.started.generation
        elif event.HasField("delta"):
            deltas += 1
            if deltas == 3:
                generation.CancelGeneration(generation_pb2.CancelGenerationRequest(name=name), **CALL)
        elif event.HasField("final"):
            print("ended by", generation_pb2.FinishReason.Name(event.final.finish_reason))
    now = sessions.GetSession(sessions_pb2.GetSessionRequest(name=session.name), **CALL)
    print(f"still at {now.position_tokens} tokens")

    for each in [session, *forks]:
        sessions.DeleteSession(sessions_pb2.DeleteSessionRequest(name=each.name), **CALL)


if __name__ == "__main__":
    main()
