#!/usr/bin/python3
"""Checks train/convert_rwkv.py: every tiny RWKV folder of tests/golden/tiny, written as an original .pth
file and converted back, gives the same bytes of every tensor and the same configuration.

  train/rwkv/check_convert.py
"""

import contextlib
import io
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch

TRAIN = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TRAIN))
import convert_rwkv  # noqa: E402
import tiny_rwkv_formats as formats  # noqa: E402

TINY = TRAIN.parent / "tests/golden/tiny"
VERSIONS = {"rwkv7": "7", "rwkv4": "4", "rwkv51": "5.1", "rwkv52": "5.2", "rwkv6": "6"}


def run(*args):
    """What the program says on stderr, and why it ended."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            convert_rwkv.main([str(arg) for arg in args])
            reason = None
        except SystemExit as end:
            reason = str(end)
    return stderr.getvalue(), reason


def check_folder(path, scratch):
    version = VERSIONS[path.name.split("-")[1]]
    data = (path / "model.safetensors").read_bytes()
    wanted = formats.read_safetensors(data)
    kind = "bf16" if b'"BF16"' in data[:4096] else "f32"
    original = {name: torch.from_numpy(np.array(x)) for name, x in formats.to_original(version, wanted).items()}
    if version == "7":  # as many published files have them
        for f in "012":
            original[f"blocks.0.att.v{f}"] = original[f"blocks.0.att.a{f}"].clone()
    original["blocks.1.att.time_state"] = torch.zeros(2, 3, 3)
    torch.save(original, scratch / "model.pth")
    out = scratch / path.name
    vocabulary = scratch / "vocabulary.txt"
    vocabulary.write_text("1 '\\x00' 1\n")
    stderr, reason = run(scratch / "model.pth", out, "--type", kind, "--tokenizer", vocabulary)
    assert reason is None, reason
    assert "time_state" in stderr
    assert (out / "rwkv_vocab_v20230424.txt").read_text() == vocabulary.read_text()

    got = formats.read_safetensors((out / "model.safetensors").read_bytes())
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    for name, x in wanted.items():
        assert got[name].shape == x.shape, (name, got[name].shape, x.shape)
        assert got[name].tobytes() == x.tobytes(), name
    config, old = (json.loads((p / "config.json").read_text()) for p in (out, path))
    for key, value in config.items():
        if old.get(key) is not None:
            assert old[key] == value, (path.name, key, old[key], value)
    print(f"{path.name}: version {version}, {len(wanted)} tensors, {kind}")


def check_refusals(scratch):
    base = {"emb.weight": torch.zeros(4, 4), "blocks.0.ln1.weight": torch.zeros(4),
            "blocks.0.ffn.key.weight": torch.zeros(4, 4)}
    for extra, message in (({"blocks.0.ffn.s_emb.weight": torch.zeros(1)}, "RWKV-7a"),
                           ({"qkv.weight": torch.zeros(1)}, "RWKV-7b"),
                           ({"strange.weight": torch.zeros(1)}, "strange.weight"),
                           ({"head.weight": torch.zeros(1, dtype=torch.int32)}, "head.weight")):
        torch.save({**base, **extra}, scratch / "bad.pth")
        _, reason = run(scratch / "bad.pth", scratch / "bad")
        assert reason and message in reason, reason
    torch.save({"x": torch.zeros(1)}, scratch / "bad.pth")
    assert "no checkpoint of RWKV-LM" in run(scratch / "bad.pth", scratch / "bad")[1]


def main():
    folders = sorted(TINY.glob("tiny-rwkv*"))
    assert {VERSIONS[p.name.split("-")[1]] for p in folders} == set(VERSIONS.values())
    with tempfile.TemporaryDirectory() as scratch:
        for path in folders:
            check_folder(path, pathlib.Path(scratch))
        check_refusals(pathlib.Path(scratch))


if __name__ == "__main__":
    main()
