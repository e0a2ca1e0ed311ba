#!/usr/bin/env python3
"""Clang's checks of C++ sources, with the flags that the build compiles them with.

  clang_check.py thread-safety BUILD   locks are held where annotations say so: every source outside of
                                       tests/ and bench/ that includes a mutex.h, itself or through a
                                       header
  clang_check.py tidy BUILD FOLDER...  .clang-tidy over the sources below these folders

BUILD holds compile_commands.json. Ends with 1 if something was found, with 2 if nothing was checked.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
MUTEXES = {"engine/core/mutex.h", "memstore/mutex.h"}


def flags(command):
    """Include paths, macros and the standard: what Clang needs, without GCC's precompiled headers."""
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word in ("-isystem", "-I", "-D"):
            kept += [word, next(words)]
        elif word.startswith(("-I", "-D", "-std=")):
            kept.append(word)
    return kept


def units(build):
    """The tree's own sources: path within it -> flags."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(os.path.realpath(os.path.join(entry["directory"], entry["file"])))
        # Clang would take a .cu for what it is.
        if path.is_relative_to(ROOT) and not path.is_relative_to(build) and path.suffix != ".cu":
            found[str(path.relative_to(ROOT))] = flags(entry["command"])
    return found


def includes_mutex(path, known):
    """Whether a file of the tree includes a mutex.h; `known` remembers the answers."""
    if path not in known:
        known[path] = False  # while it is being asked
        names = INCLUDE.findall((ROOT / path).read_text())
        known[path] = any(name in MUTEXES or ((ROOT / name).is_file() and includes_mutex(name, known))
                          for name in names)
    return known[path]


def run_all(commands):
    """Runs every command, as many at once as there are processors; prints what failed."""
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        run = lambda command: subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        for result in pool.map(run, commands):
            if result.returncode != 0:
                failed += 1
                print(result.stdout + result.stderr, flush=True)
    print(f"{len(commands)} sources checked, {failed} with findings")
    return 2 if not commands else 1 if failed else 0


def thread_safety(sources):
    known = {}
    return run_all([["clang++", "-fsyntax-only", "-Wthread-safety", "-Werror=thread-safety", *its, path]
                    for path, its in sorted(sources.items())
                    if not path.startswith(("tests/", "bench/")) and includes_mutex(path, known)])


def tidy(sources, folders):
    chosen = {path: its for path, its in sorted(sources.items())
              if path.startswith(tuple(folder.rstrip("/") + "/" for folder in folders))}
    with tempfile.TemporaryDirectory() as folder:
        database = [{"directory": str(ROOT), "file": path, "arguments": ["clang++", *its, "-c", path]}
                    for path, its in chosen.items()]
        (pathlib.Path(folder) / "compile_commands.json").write_text(json.dumps(database))
        return run_all([["clang-tidy", "--quiet", "--warnings-as-errors=*", "-p", folder, path]
                        for path in chosen])


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("thread-safety", "tidy"):
        sys.exit(__doc__)
    for program in ("clang++", "clang-tidy"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: run deploy/install_packages.sh test")
    sources = units(pathlib.Path(os.path.realpath(sys.argv[2])))
    if sys.argv[1] == "thread-safety":
        return thread_safety(sources)
    return tidy(sources, sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
