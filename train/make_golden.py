#!/usr/bin/python3
"""Writes tests/golden/<architecture>/: logits of the tiny checkpoints on random tokens and of the trained
ones (train/checkpoints) on a pass-key text, after every token, and for the recurrent architectures the
state after the last one, as the independent PyTorch references compute them in f64 and f32 stores them.

Needs python3-torch and, for llama alone, the PyPI package `gguf` (for the quantised types).

  train/make_golden.py [ARCHITECTURE ...]            writes manifest.json and the cases' files
  train/make_golden.py --check [ARCHITECTURE ...]    computes again and compares with what is committed
                                                     (1e-6 relative)
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import sys

import needs

needs.modules("numpy", "torch")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tasks import passkey  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = os.path.join("tests", "golden", "tiny")
TRAINED = os.path.join("train", "checkpoints")
SEED = 20240611
TOLERANCE = {"absolute": 1e-4, "relative": 1e-4}
# States of trained checkpoints: one of RWKV-7's 9,216 numbers is 2e-4 off in f32, on both backends alike.
TRAINED_STATE_TOLERANCE = {"absolute": 5e-4, "relative": 5e-4}

# Architecture: model_type of its folders, module of its reference, tokens of a case.
RECURRENT = {
    "infini": ("infini", "infini.reference", 96),
    "rwkv7": ("rwkv7", "rwkv.reference", 96),
    "rwkv4": ("rwkv", "rwkv.reference", 96),
    "rwkv5": ("rwkv5", "rwkv.reference", 96),
    "rwkv6": ("rwkv6", "rwkv.reference", 96),
    "titans": ("titans", "titans.reference", 80),
    "fam": ("fam", "fam.reference", 96),
}

# Attention over a window: model_type and module.
WINDOWED = {
    "llama": ("llama", "llama.reference"),
    "pangu_pi": ("pangu_pi", "pangu_pi.reference"),
}
WINDOWED_TOKENS = 72  # beyond one attention tile of 64 keys
# (name, sinks, window_tokens): the whole text, and a window smaller than the text.
WINDOWS = [("full", 4, 0), ("window", 4, 24)]


def checkpoints(model_type, within):
    """(name, path below ROOT, config) of the folders of this type and, for llama, of the .gguf files (config: None)."""
    for name in sorted(os.listdir(os.path.join(ROOT, within))):
        path = os.path.join(within, name)
        if name.endswith(".gguf") and model_type == "llama":
            yield name, path, None
        elif os.path.exists(os.path.join(ROOT, path, "config.json")):
            with open(os.path.join(ROOT, path, "config.json")) as f:
                config = json.load(f)
            if config["model_type"] == model_type:
                yield name, path, config


def random_tokens(name, vocab_size, count):
    rng = random.Random(f"{SEED}/{name}")
    return [rng.randrange(vocab_size) for _ in range(count)]


def passkey_text(name, config):
    """A pass-key text in words never trained on, long enough that the answer needs the memory."""
    count = 192 + 2 * config.get("segment_tokens", 32)
    batch = passkey.Task(("nonsense",)).batch(np.random.default_rng([SEED, *name.encode()]), 1, count, depth=0.25)
    return batch.tokens[0, :count].tolist()


def as_f32(tensor):
    return tensor.float().numpy().astype("<f4")


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def windowed_case(name, path, module, tokens, window, sinks, total):
    """(entry of the manifest, {file: array})"""
    model = importlib.import_module(module).load(os.path.join(ROOT, path), torch.float64)
    tokens = tokens or random_tokens(name, model.vocab_size, WINDOWED_TOKENS)
    logits = as_f32(model.logits(tokens, sinks=sinks, recents=total - sinks if total else None))
    stem = name.removesuffix(".gguf") + "-" + window
    return {"name": stem, "checkpoint": path, "sink_tokens": sinks, "window_tokens": total,
            "tokens": tokens, "vocab_size": model.vocab_size, "logits": stem + ".f32",
            "sha256": sha256(logits)}, {stem + ".f32": logits}


def windowed_cases(architecture):
    model_type, module = WINDOWED[architecture]
    for name, path, _ in checkpoints(model_type, TINY):
        for window in WINDOWS:
            yield windowed_case(name, path, module, None, *window)
    for name, path, config in checkpoints(model_type, TRAINED):
        yield windowed_case(name, path, module, passkey_text(name, config), "window", 0, config["max_position_embeddings"])


def recurrent_case(name, path, module, count, tokens):
    model = importlib.import_module(module).load(os.path.join(ROOT, path), torch.float64)
    tokens = tokens or random_tokens(name, model.vocab_size, count)
    state = model.initial_state()
    logits = as_f32(model.forward(state, tokens))
    schema = list(model.schema())
    values = np.concatenate([as_f32(state[i, n]).reshape(-1) for i, n, _ in schema])
    assert np.isfinite(logits).all() and np.isfinite(values).all()
    tensors = [{"layer": i, "name": n, "shape": list(shape)} for i, n, shape in schema]
    return {"name": name, "checkpoint": path, "sink_tokens": 4, "window_tokens": 0,
            "tokens": tokens, "vocab_size": model.vocab_size,
            "logits": name + ".f32", "sha256": sha256(logits),
            "state": tensors, "state_values": name + ".state.f32",
            "state_sha256": sha256(values)}, {name + ".f32": logits, name + ".state.f32": values}


def recurrent_cases(architecture):
    model_type, module, count = RECURRENT[architecture]
    for name, path, _ in checkpoints(model_type, TINY):
        yield recurrent_case(name, path, module, count, None)
    for name, path, config in checkpoints(model_type, TRAINED):
        entry, files = recurrent_case(name, path, module, None, passkey_text(name, config))
        yield {**entry, "state_tolerance": TRAINED_STATE_TOLERANCE}, files


def cases(architecture):
    return windowed_cases(architecture) if architecture in WINDOWED else recurrent_cases(architecture)


def reference_path(architecture):
    module = {**WINDOWED, **RECURRENT}[architecture][1]
    return "train/" + module.replace(".", "/") + ".py"


def write(architecture, out):
    os.makedirs(out, exist_ok=True)
    entries = []
    for entry, files in cases(architecture):
        for name, array in files.items():
            array.tofile(os.path.join(out, name))
        entries.append(entry)
    manifest = {
        "generator": f"train/make_golden.py (reference: {reference_path(architecture)})",
        "seed": SEED,
        "computed_in": "float64",
        "dtype": "f32, little-endian, row-major [tokens, vocab_size]",
        "engine": {"contract": "f32", "kv_dtype": "f32"},
        "tolerance": TOLERANCE,
    }
    if architecture in RECURRENT:
        manifest["state_dtype"] = "f32, little-endian: the tensors after the last token, one behind the other"
    manifest["cases"] = entries
    with open(os.path.join(out, "manifest.json"), "w") as f:
        f.write(re.sub(r",\n {4,}", ", ", json.dumps(manifest, indent=1)) + "\n")
    print(f"wrote {len(entries)} cases to {out}")


def check(architecture, out):
    with open(os.path.join(out, "manifest.json")) as f:
        committed = {entry["name"]: entry for entry in json.load(f)["cases"]}
    worst = 0.0
    for entry, files in cases(architecture):
        old = committed.pop(entry["name"], None)
        if old is None:
            sys.exit(f"{entry['name']} is not in the manifest: run without --check")
        for key in entry.keys() - {"sha256", "state_sha256"}:
            if old[key] != entry[key]:
                sys.exit(f"{entry['name']}: {key} differs")
        for name, array in files.items():
            stored = np.fromfile(os.path.join(out, name), "<f4").reshape(array.shape)
            error = np.abs(stored - array) / np.maximum(np.abs(array), 1.0)
            worst = max(worst, float(error.max()))
            if not error.max() <= 1e-6:
                sys.exit(f"{name}: worst relative difference {error.max():.3g}")
    if committed:
        sys.exit(f"no longer generated: {sorted(committed)}")
    print(f"{architecture}: ok, worst relative difference {worst:.3g}")


if __name__ == "__main__":
    names = [*WINDOWED, *RECURRENT]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help=", ".join(names))
    args = parser.parse_args()
    for wanted in args.architectures or names:
        if wanted not in names:
            parser.error(f"{wanted} is none of {names}")
        folder = os.path.join(ROOT, "tests", "golden", wanted)
        check(wanted, folder) if args.check else write(wanted, folder)
