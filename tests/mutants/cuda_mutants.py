#!/usr/bin/env python3
"""Puts mistakes into the CUDA backend, one at a time, and demands that a test finds each.

  cuda_mutants.py [BUILD] [NAME...]     BUILD: a built tree, build-release by default

A mutant is one replacement in one source. It is compiled and linked beside the build, which stays as it
is, and the kernel test that its entry names runs on it: in three orders of threads and blocks, with
streams as late as they may be and at once, as under ctest. About 2 minutes on two cores. Ends with 1 if a
mutant lives.
"""
import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
CUDA = "engine/kernels/cuda/"
EMULATIONS = [("forward", "lazy"), ("reverse", "eager"), ("7", "lazy")]


@dataclasses.dataclass
class Mutant:
    name: str
    source: str  # what is changed, below engine/kernels/cuda
    old: str
    new: str
    test: str
    unit: str = ""  # what is compiled, if that is another


MUTANTS = [
    # Missing barriers: what one thread writes is read before it is there, or written before it was read.
    Mutant("scan_reads_before_staging", "wkv.cu", "  stage.Put(0);\n  __syncthreads();", "  stage.Put(0);",
           "recurrent_test"),
    Mutant("parts_read_before_written", "matmul.cu", "parts[warp * kOutputs + output] = value;\n    __syncthreads();",
           "parts[warp * kOutputs + output] = value;", "matmul_test"),
    Mutant("softmax_before_scores", "attention_core.cuh",
           "            shape.scale * score[i][j];\n      }\n    }\n    __syncthreads();",
           "            shape.scale * score[i][j];\n      }\n    }", "attention_test", unit="attention.cu"),
    Mutant("norm_sums_half_there", "device.cuh", "shared[threadIdx.x / kWarp] = x;\n  __syncthreads();",
           "shared[threadIdx.x / kWarp] = x;", "vector_ops_test", unit="norm.cu"),
    Mutant("segments_added_before_shared", "titans_memory.cu",
           "Segment<1>(m, t, (first + mine) * kSegment, j).Share(shared);\n      }\n      __syncthreads();",
           "Segment<1>(m, t, (first + mine) * kSegment, j).Share(shared);\n      }", "titans_memory_test"),
    # Races between blocks: state that others still read.
    Mutant("shift_replaces_too_early", "token_shift.cu",
           "  float before = first == 0 ? args.previous[c] : args.x[(first - 1) * C + c];",
           "  args.previous[c] = args.x[(args.T - 1) * C + c];\n"
           "  float before = first == 0 ? args.previous[c] : args.x[(first - 1) * C + c];", "recurrent_test"),
    Mutant("convolution_keeps_too_early", "short_conv.cu", "  if (first_row != 0) return;",
           "  if (rows_end != args.rows) return;", "short_conv_test"),
    # Rows and edges.
    Mutant("a_row_too_many", "rows.cu", "  if (row >= args.rows) return;\n  const float* from = args.from",
           "  if (row > args.rows) return;\n  const float* from = args.from", "rows_test"),
    Mutant("one_lane_decides", "rows.cu", "  good = __all_sync(kAllLanes, good);\n", "", "rows_test"),
    Mutant("window_one_longer", "attention.cu", "p - args.window + 1;", "p - args.window;", "attention_test"),
    Mutant("last_partial_lost", "attention_core.cuh", "for (int i = 0; i < block.partials; ++i) {",
           "for (int i = 0; i + 1 < block.partials; ++i) {", "attention_test", unit="attention.cu"),
    # State.
    Mutant("pending_stays", "infini_memory.cu", "  pending = {};\n", "", "infini_memory_test"),
    Mutant("state_is_not_kept", "wkv.cu", "  state.Store(row, N, exists, aligned);\n}\n\ntemplate <int kLanes, bool kWhole>",
           "}\n\ntemplate <int kLanes, bool kWhole>", "recurrent_test"),
    # Arithmetic.
    Mutant("scale_of_the_first_half", "matmul.cu", "s = fmaf(static_cast<float>(dot), w[r].scale[1] * scales.x, s);",
           "s = fmaf(static_cast<float>(dot), w[r].scale[0] * scales.x, s);", "matmul_test"),
    Mutant("ties_away_from_even", "matmul.cu", "rintf(value[i] / d)", "roundf(value[i] / d)", "matmul_test"),
    # The device: nothing waits for it, or it waits for nothing.
    Mutant("nobody_waits", "runtime.cc", '  Check(cudaStreamSynchronize(stream_), "running kernels");\n', "", "rows_test"),
    Mutant("lists_stay_behind", "launch.h", "  upload.Send();\n  return list;", "  return list;", "rows_test",
           unit="rows.cu"),
]


def commands(build):
    """How each source of the plugin is compiled, and how it is linked."""
    compile_of = {}
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        if "mneme_cuda_emu.dir" in entry["command"]:
            compile_of[pathlib.Path(entry["file"]).name] = shlex.split(entry["command"])
    target = next(build.glob("lib*/**/libmneme_cuda-emu.so")).relative_to(build)
    listed = subprocess.run(["ninja", "-C", build, "-t", "commands", target], capture_output=True, text=True, check=True)
    link = [word for word in shlex.split(listed.stdout.strip().splitlines()[-1]) if word not in (":", "&&")]
    return compile_of, link, str(target)


def make(mutant, build, folder, compile_of, link, target):
    """The mutant's library."""
    text = (ROOT / CUDA / mutant.source).read_text(encoding="utf-8")
    if text.count(mutant.old) < 1:
        sys.exit(f"{mutant.name}: {mutant.source} has changed: no\n{mutant.old}")
    changed = folder / CUDA / mutant.source
    changed.parent.mkdir(parents=True)
    changed.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    unit = mutant.unit or mutant.source
    words = list(compile_of[unit])
    original = words[words.index("-o") + 1]
    words[words.index("-o") + 1] = str(folder / "mutant.o")
    words[words.index("-c") + 1] = str(ROOT / CUDA / unit if mutant.unit else changed)
    words[1:1] = [f"-I{folder}", "-Wno-error"]  # a changed header hides the tree's own
    subprocess.run(words, cwd=build, check=True, stderr=subprocess.DEVNULL)
    library = folder / "mutant.so"
    linked = [str(folder / "mutant.o") if word == original else word for word in link]
    linked = [str(library) if word == target else word for word in linked]
    subprocess.run(linked, cwd=build, check=True)
    return library


def killed_by(mutant, build, library):
    """The emulation under which the test fails; None if it lives."""
    test = next(path for path in (build / "tests").rglob(mutant.test) if path.is_file())
    for order, streams in EMULATIONS:
        environment = dict(os.environ, TESTED_BACKEND="cuda-emu", TESTED_PLUGIN=str(library), CUEMU_ORDER=order,
                           CUEMU_STREAMS=streams)
        if subprocess.run([test, "--gtest_brief=1"], env=environment, capture_output=True, check=False).returncode != 0:
            return f"{order}, {streams}"
    return None


def main():
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build-release").resolve()
    chosen = [mutant for mutant in MUTANTS if len(sys.argv) < 3 or mutant.name in sys.argv[2:]]
    compile_of, link, target = commands(build)
    alive = 0
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            by = killed_by(mutant, build, make(mutant, build, pathlib.Path(folder), compile_of, link, target))
        alive += by is None
        print(f"{mutant.name:32} " + (f"killed by {mutant.test} ({by})" if by else f"LIVES through {mutant.test}"), flush=True)
    print(f"{len(chosen)} mutants, {alive} alive")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
