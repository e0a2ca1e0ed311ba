#!/usr/bin/env python3
"""Writes tests/golden/llama/: logits of the tiny checkpoints after every token, as the independent
PyTorch reference computes them in f64 and f32 stores them.

Needs python3-torch and the PyPI package `gguf` (for the quantised types).

  train/make_golden.py            writes manifest.json and one <case>.f32 per case
  train/make_golden.py --check    computes again and compares with what is committed (1e-6 relative)
"""

import argparse
import hashlib
import json
import os
import random
import sys

import numpy as np
import torch

from llama import reference

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = os.path.join(ROOT, "tests", "golden", "tiny")
OUT = os.path.join(ROOT, "tests", "golden", "llama")
SEED = 20240611
TOKENS = 72  # beyond one attention tile of 64 keys
# (name, sinks, window_tokens): the whole text, and a window smaller than the text.
WINDOWS = [("full", 4, 0), ("window", 4, 24)]


def checkpoints():
    for name in sorted(os.listdir(TINY)):
        path = os.path.join(TINY, name)
        if name.endswith(".gguf") or os.path.exists(os.path.join(path, "config.json")):
            yield name, path


def cases():
    """(case for the manifest, logits [T, V] f32)"""
    for name, path in checkpoints():
        model = reference.load(path, torch.float64)
        rng = random.Random(f"{SEED}/{name}")
        tokens = [rng.randrange(model.vocab_size) for _ in range(TOKENS)]
        for window, sinks, total in WINDOWS:
            recents = total - sinks if total else None
            logits = model.logits(tokens, sinks=sinks, recents=recents).float().numpy()
            stem = name.removesuffix(".gguf") + "-" + window
            yield {"name": stem, "checkpoint": name, "sink_tokens": sinks, "window_tokens": total,
                   "tokens": tokens, "vocab_size": model.vocab_size, "logits": stem + ".f32",
                   "sha256": hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()}, logits


def write():
    os.makedirs(OUT, exist_ok=True)
    entries = []
    for case, logits in cases():
        logits.astype("<f4").tofile(os.path.join(OUT, case["logits"]))
        entries.append(case)
    manifest = {
        "generator": "train/make_golden.py (reference: train/llama/reference.py)",
        "seed": SEED,
        "computed_in": "float64",
        "dtype": "f32, little-endian, row-major [tokens, vocab_size]",
        "engine": {"contract": "f32", "kv_dtype": "f32"},
        "tolerance": {"absolute": 1e-4, "relative": 1e-4},
        "cases": entries,
    }
    with open(os.path.join(OUT, "manifest.json"), "w") as f:
        f.write(json.dumps(manifest, indent=1).replace(",\n    ", ", ") + "\n")
    print(f"wrote {len(entries)} cases to {OUT}")


def check():
    with open(os.path.join(OUT, "manifest.json")) as f:
        manifest = json.load(f)
    committed = {case["name"]: case for case in manifest["cases"]}
    worst = 0.0
    for case, logits in cases():
        old = committed.pop(case["name"], None)
        if old is None:
            sys.exit(f"{case['name']} is not in the manifest: run without --check")
        for key in case.keys() - {"sha256"}:
            if old[key] != case[key]:
                sys.exit(f"{case['name']}: {key} differs")
        stored = np.fromfile(os.path.join(OUT, old["logits"]), "<f4").reshape(logits.shape)
        error = np.abs(stored - logits) / np.maximum(np.abs(logits), 1.0)
        worst = max(worst, float(error.max()))
        if not error.max() <= 1e-6:
            sys.exit(f"{case['name']}: worst relative difference {error.max():.3g}")
    if committed:
        sys.exit(f"the manifest has cases that nothing makes: {sorted(committed)}")
    print(f"all cases agree, worst relative difference {worst:.3g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check() if parser.parse_args().check else write()
