#!/usr/bin/env python3
"""Compiles every CUDA kernel for real GPUs and holds what they need of one to a budget.

  cubin_budget.py [--write] [-j N]

No kernel may use more registers than tests/gates/cubin_budget.txt grants, or fewer threads would fit on a
multiprocessor, nor more bytes of stack and spills, which are none where the file says no "+". --write makes
that file anew. Ends with 77, which ctest counts as skipped, where there is no nvcc
(deploy/install_packages.sh cuda), or one of another release than made the file: it would allocate otherwise.
"""
import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "engine/kernels/cuda"
BUDGET = pathlib.Path(__file__).with_suffix(".txt")
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "--expt-relaxed-constexpr", f"-I{ROOT}"]
PROPERTIES = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r"\s+ptxas info\s+: Used (\d+) registers")


def measure(nvcc, source, architecture):
    """[(kernel's mangled name, bytes of stack and spills, registers)]"""
    done = subprocess.run([nvcc, *FLAGS, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", "/dev/null",
                           source], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{source.name} for {architecture}:\n{done.stderr}")
    return [(name, int(stack) + int(stores) + int(loads), int(registers))
            for name, stack, stores, loads, registers in PROPERTIES.findall(done.stderr)]


def demangle(names):
    """Without namespaces and parameters: MatMulKernel<4, 8, 2>."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = {}
    for name, line in zip(names, text.splitlines()):
        line = re.sub(r"^void ", "", line).replace("(anonymous namespace)::", "")
        line = line.replace("mneme::engine::cuda::", "").replace("mneme::engine::", "")
        short[name] = re.sub(r"\([^()]*\)$", "", line)
    return short


def release(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release [\d.]+, V([\d.]+)", text).group(1)


def show(need):
    registers, spilled = need
    return f"{registers}+{spilled}" if spilled else str(registers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-j", type=int, default=os.cpu_count(), help="compilers at a time")
    options = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("SKIP: no nvcc here, so no code for GPUs was made")
        return 77

    jobs = [(source, arch) for source in sorted(KERNELS.glob("*.cu")) for arch in ARCHITECTURES]
    with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
        results = list(pool.map(lambda job: measure(nvcc, *job), jobs))
    names = demangle(sorted({kernel[0] for result in results for kernel in result}))
    used = collections.defaultdict(dict)
    faults = []
    for (source, arch), result in zip(jobs, results):
        for name, spilled, registers in result:
            kernel = f"{source.stem}: {names[name]}"
            used[kernel][arch] = (registers, spilled)
    if not used:
        sys.exit("no kernel was found: has the compiler's report changed?")
    if options.write:
        lines = [f"{kernel}: " + " ".join(show(used[kernel][arch]) for arch in ARCHITECTURES)
                 for kernel in sorted(used)]
        BUDGET.write_text(f"# nvcc {release(nvcc)}: registers of a thread (+ bytes of stack and spills) on "
                          f"{', '.join(ARCHITECTURES)}; made by cubin_budget.py --write\n"
                          + "\n".join(lines) + "\n", encoding="utf-8")
    granted = {}
    if f"nvcc {release(nvcc)}:" not in BUDGET.read_text(encoding="utf-8"):
        print(f"SKIP: {len(used)} kernels compile, but the budget is of another release than {release(nvcc)}")
        return 77
    for line in BUDGET.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kernel, registers = line.rsplit(": ", 1)
            pairs = [tuple(map(int, (word + "+0").split("+")[:2])) for word in registers.split()]
            granted[kernel] = dict(zip(ARCHITECTURES, pairs))
    for kernel in sorted(used.keys() | granted.keys()):
        if kernel not in granted:
            faults.append(f"{kernel}: not in {BUDGET.name} (--write)")
        elif kernel not in used:
            faults.append(f"{kernel}: in {BUDGET.name}, but there is no such kernel (--write)")
        else:
            faults += [f"{kernel} on {arch}: {show(used[kernel][arch])} registers, granted {show(granted[kernel][arch])}"
                       for arch in ARCHITECTURES
                       if any(a > b for a, b in zip(used[kernel][arch], granted[kernel][arch]))]
    print(f"{len(used)} kernels for {', '.join(ARCHITECTURES)}; registers at most "
          f"{max(max(of.values())[0] for of in used.values())}")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
