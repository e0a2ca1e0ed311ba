"""Reads and writes a checkpoint folder: config.json and safetensors, as docs/checkpoint_format.md says."""

import json
import os
import struct

import numpy as np
import torch

DTYPES = {"F32": "<f4", "F16": "<f2"}


def read_folder(path):
    """(config, {name: f32 tensor})"""
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)
    tensors = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            tensors.update(read_safetensors(os.path.join(path, name)))
    return config, tensors


def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, DTYPES[entry["dtype"]])
        tensors[name] = torch.from_numpy(values.astype(np.float32).reshape(entry["shape"]))
    return tensors


def write_folder(path, config, tensors, kind="F32"):
    """The inverse of read_folder; kind F32, F16 or BF16, all tensors alike."""
    os.makedirs(path, exist_ok=True)
    header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        data = encoded(tensor.detach().float().contiguous().numpy(), kind)
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(parts))
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def encoded(array, kind):
    if kind == "BF16":  # to nearest, ties to even
        bits = np.ascontiguousarray(array, "<f4").view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    out = array.astype(DTYPES[kind])
    assert np.isfinite(out).all(), "a weight does not fit into " + kind
    return out.tobytes()
