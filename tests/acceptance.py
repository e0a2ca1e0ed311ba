#!/usr/bin/env python3
"""What a server promises, tried at length: each promise's tests with as many trials as it is worth.

    tests/acceptance.py                 all of them; most of the time goes to kill: 2,000 servers
    tests/acceptance.py kill fork       some of them
    tests/acceptance.py --list

Prints, for each test: trials, what came out, passed or FAILED. Exit code 1 if one failed. ctest runs the
same programs with few trials. Build first: cmake --build --preset release.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass
class Check:
    program: str  # below the build folder
    tests: str = "*"  # which of a GoogleTest program
    args: list = field(default_factory=list)
    runs: int = 1


E2E, CORE, RPC = "tests/e2e/e2e_", "tests/server/core/server_core_", "tests/server/rpc/"
PROMISES = {
    "restart": (
        "a session goes on bit for bit after a stop, also on another server, and recomputes nothing",
        [
            Check(E2E + "server_test", "ServerTest.ARestartChangesNoToken"),
            Check(E2E + "architectures_test"),
            Check(E2E + "postgres_test", "PostgresTest.ASessionGoesOnAfterKill9"),
            Check(E2E + "replicas_test", "ReplicasTest.ASessionGoesToAndFro"),
        ],
    ),
    "kill": (
        "kill -9 at any moment loses nothing that was acknowledged",
        [
            Check(E2E + "kill_test", args=["--kills", "1000"]),
            Check(E2E + "kill_test", args=["--kills", "1000", "--servers", "2"]),
        ],
    ),
    "cancel": (
        "cancels, deadlines and disconnects leave nothing behind and disturb nobody",
        [
            Check(CORE + "concurrency_test", "*.CancelAtAnyMomentLeavesNothing", runs=7),
            Check(RPC + "rpc_streams_test", "*.ACancelledStream*:*.AStreamThatCancels*"),
        ],
    ),
    "pause": (
        "an owner that stood still for longer than its lease writes nothing",
        [Check(E2E + "replicas_test", "ReplicasTest.AnOwnerThatStoodStillCannotWrite", runs=5)],
    ),
    "fork": (
        "64 forks of a session that generates differ from it by nothing, and leave nothing behind",
        [
            Check(CORE + "concurrency_test", "*.ForkWhileTheParentGenerates", runs=10),
            Check(CORE + "sessions_test", "*.ForkSharesAndDiverges:*.EverythingGoesWithTheSessions"),
        ],
    ),
    "resume": (
        "a stream that is cut behind any token goes on without a gap",
        [Check(E2E + "resume_test"), Check(CORE + "resume_test")],
    ),
    "slow": (
        "a client that does not read holds bounded memory, hinders nobody and ends as SLOW_CONSUMER",
        [Check(RPC + "rpc_streams_test", "*.AReaderThatNeverReads*:*NobodyReads*:*.ASlowReader*", runs=5)],
    ),
    "errors": (
        "every error has its code, reason and fields; hostile input has no other effect",
        [
            Check(RPC + "rpc_error_table_test"),
            Check(CORE + "session_export_test"),
            Check(CORE + "hostile_state_test", args=["--mutations", "1000000"]),
        ],
    ),
    "drain": (
        "a drain behind a balancer costs no call",
        [Check(E2E + "balancer_test", runs=3), Check(RPC + "rpc_streams_test", "DrainTest.*")],
    ),
    "rolling": (
        "three servers are restarted one after the other under load: no call fails, no text differs",
        [Check(E2E + "rolling_restart_test", args=["--rounds", "20"])],
    ),
    "million": (
        "a million tokens later a session's state and its time for a token are what they were",
        [
            Check("bench/memory_bench", args=[str(ROOT / "train/checkpoints" / model)])
            for model in ("rwkv7-passkey", "titans-passkey", "infini-passkey")
        ],
    ),
}


def run_once(program, check, report):
    """(passed, trials, figure, output)"""
    command = [str(program), *check.args]
    is_test = "tests" in program.parts
    if is_test:
        command += [f"--gtest_filter={check.tests}", f"--gtest_output=json:{report}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    output = done.stdout + done.stderr
    if not is_test:
        lines = done.stdout.strip().splitlines()
        return done.returncode == 0, 1, lines[-1] if lines else "", output
    try:
        results = json.loads(report.read_text())
    except (OSError, ValueError):
        return False, 0, f"exit code {done.returncode}", output
    cases = [case for suite in results["testsuites"] for case in suite["testsuite"]]
    ran = [case for case in cases if case["status"] == "RUN" and case["result"] == "COMPLETED"]
    trials = sum(int(case.get("trials", 1)) for case in ran)
    figures = [case["figure"] for case in ran if "figure" in case]
    # A filter that fits no test, or a test that was skipped, has shown nothing.
    return done.returncode == 0 and bool(ran) and len(ran) == len(cases), trials, "; ".join(figures), output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promises", nargs="*", metavar="PROMISE", help="default: every one")
    parser.add_argument("--list", action="store_true", help="say what they are")
    parser.add_argument("--build", default=ROOT / "build-release", type=pathlib.Path, help="default: build-release")
    args = parser.parse_args()
    if args.list:
        for name, (text, _) in PROMISES.items():
            print(f"{name:10} {text}")
        return 0
    if unknown := set(args.promises) - PROMISES.keys():
        parser.error(f"no promise is called {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}")

    failed = 0
    for name in args.promises or PROMISES:
        text, checks = PROMISES[name]
        print(f"{name}: {text}", flush=True)
        for check in checks:
            program = args.build.resolve() / check.program
            if not program.exists():
                parser.error(f"{program} is not there; build it first")
            begin, passed, trials, figure = time.monotonic(), True, 0, ""
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(check.runs):
                    good, count, figure, output = run_once(program, check, pathlib.Path(folder) / "report.json")
                    trials += count
                    if not good:
                        passed = False
                        print(output)
                        break
            failed += not passed
            what = " ".join([program.name, *(a for a in check.args if not a.startswith("/"))])
            seconds = time.monotonic() - begin
            print(f"  {'passed' if passed else 'FAILED'}  {what:38} {trials:6} trials {seconds:6.0f} s  {figure}", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
