"""Reads a checkpoint folder: config.json and safetensors, as docs/checkpoint_format.md says."""

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
