#!/usr/bin/env python3
"""Writes corpus/gguf/, corpus/rwkv_cpp/ and corpus/safetensors/: small files that reach each part of the parsers."""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent / "corpus"


def string(text):
    return struct.pack("<Q", len(text)) + text


def gguf(entries, tensors, alignment=32, version=3):
    """entries: (key, type, stored value); tensors: (name, dimensions, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    for key, kind, value in entries:
        head += string(key) + struct.pack("<I", kind) + value
    body = b""
    for name, dims, kind, data in tensors:
        body += bytes(-len(body) % alignment)
        head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(body))
        body += data
    return head + bytes(-len(head) % alignment) + body


def array(kind, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def u32(x):
    return struct.pack("<I", x)


SCALARS = [
    (b"a.u8", 0, b"\xff"), (b"a.i8", 1, b"\x80"), (b"a.u16", 2, b"\1\2"), (b"a.i16", 3, b"\1\2"),
    (b"a.u32", 4, u32(7)), (b"a.i32", 5, u32(7)), (b"a.f32", 6, struct.pack("<f", 1e-5)),
    (b"a.bool", 7, b"\1"), (b"a.str", 8, string("caf\u00e9".encode())), (b"a.u64", 10, struct.pack("<Q", 1 << 40)),
    (b"a.i64", 11, struct.pack("<q", -1)), (b"a.f64", 12, struct.pack("<d", 0.5)),
]
ARRAYS = [
    (b"b.str", 9, array(8, [string(b"one"), string(b""), string("\u20ac\U0001f600".encode())])),
    (b"b.i32", 9, array(5, [u32(i) for i in range(5)])), (b"b.f32", 9, array(6, [struct.pack("<f", 2)])),
    (b"b.bool", 9, array(7, [b"\0", b"\1"])), (b"b.u8", 9, array(0, [b"x"] * 9)), (b"b.none", 9, array(4, [])),
]
VOCABULARY = [
    (b"general.architecture", 8, string(b"llama")),
    (b"tokenizer.ggml.tokens", 9, array(8, [string(b"a"), string(b"b")])),
    (b"tokenizer.ggml.scores", 9, array(6, [struct.pack("<f", 0)] * 2)),
    (b"tokenizer.ggml.token_type", 9, array(5, [u32(1)] * 2)),
    (b"tokenizer.ggml.eos_token_id", 4, u32(1)),
]
BLOCKS = [(0, 1, 4), (1, 1, 2), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (8, 32, 34),
          (12, 256, 144), (13, 256, 176), (14, 256, 210), (30, 1, 2)]

GGUF = {
    "empty.gguf": gguf([], []),
    "scalars.gguf": gguf(SCALARS, [], version=2),
    "arrays.gguf": gguf(ARRAYS, []),
    "vocabulary.gguf": gguf(VOCABULARY, [(b"token_embd.weight", (4, 2), 0, bytes(32))]),
    "types.gguf": gguf([], [(b"t%d" % t, (n, 2), t, bytes(2 * size)) for t, n, size in BLOCKS]),
    "shapes.gguf": gguf([(b"general.alignment", 4, u32(64))],
                        [(b"a", (3,), 0, bytes(12)), (b"b", (2, 3, 4, 5), 1, bytes(240))], alignment=64),
}


def safetensors(header, buffer=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"\0" + struct.pack("<Q", len(text)) + text + buffer


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "weights-none": safetensors({}),
    "weights-types": safetensors(
        {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 2], 0, 16), "b": tensor("F16", [3], 16, 22),
         "c": tensor("BF16", [], 22, 24), "d": tensor("F32", [0, 7], 24, 24)}, bytes(24)),
    "weights-spaces": safetensors(b'{"\\u0061":{"shape":[1],"data_offsets":[0,4],"dtype":"F32"}}   ', bytes(4)),
    "weights-hole": safetensors({"a": tensor("F32", [1], 4, 8)}, bytes(8)),
    "config-llama": b"\1" + json.dumps(
        {"architectures": ["LlamaForCausalLM"], "hidden_size": 48, "rms_norm_eps": 1e-5, "tie": True,
         "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}, "none": None, "mixed": [1, "a", [2.5]]}).encode(),
    "config-numbers": b'\1{"a":18446744073709551615,"b":-9223372036854775808,"c":[1,2.5],"d":[true,false],"e":[]}',
    "index": b"\2" + json.dumps(
        {"metadata": {"total_size": 8},
         "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode(),
}

def rwkv_cpp(records, version=101, kind=0):
    out = struct.pack("<6I", 0x67676D66, version, 256, 32, 1, kind)
    for name, dims, kind, size in records:
        out += struct.pack(f"<3I{len(dims)}I", len(dims), len(name), kind, *dims) + name + bytes(size)
    return out


RWKV_CPP = {
    "empty.bin": rwkv_cpp([]),
    "old.bin": rwkv_cpp([(b"emb.weight", (32, 4), 1, 256)], version=100, kind=1),
    "shapes.bin": rwkv_cpp([(b"blocks.0.att.x_rwkvag", (8, 1, 6), 0, 192), (b"blocks.0.att.r_k", (4, 2), 0, 32),
                            (b"blocks.0.ln1.weight", (8,), 0, 32)]),
    "types.bin": rwkv_cpp([(b"t%d" % t, (n, 2), t, 2 * size) for t, n, size in (
        (0, 1, 4), (1, 1, 2), (2, 32, 18), (3, 32, 20), (7, 32, 22), (8, 32, 24), (9, 32, 34), (13, 256, 144),
        (14, 256, 176), (15, 256, 210))], kind=8),
}

for folder, files in (("gguf", GGUF), ("rwkv_cpp", RWKV_CPP), ("safetensors", SAFETENSORS)):
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (HERE / folder / name).write_bytes(data)
