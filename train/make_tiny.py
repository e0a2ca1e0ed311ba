#!/usr/bin/python3
"""Writes the tiny checkpoints of tests/golden/tiny/: random weights, real containers. Beside them, in
tests/golden/formats/, RWKV ones in the file formats of other programs.

    python3 train/make_tiny.py            writes them
    python3 train/make_tiny.py --check    writes them elsewhere and compares byte for byte

Needs numpy only. The bytes must not depend on machine or numpy version, so random numbers come from
PCG64's raw output (whose stream is fixed) and only correctly rounded operations follow: + - * / sqrt,
no sums over many elements whose order is numpy's choice, no transcendental functions, no matmul.

Block layouts of the quantised types: docs/checkpoint_format.md. Every quantiser is checked here by
dequantising what it wrote.
"""

import argparse
import collections
import filecmp
import hashlib
import json
import pathlib
import re
import struct
import sys
import tempfile

import needs

needs.modules("numpy")

import numpy as np  # noqa: E402

import tiny_archs  # noqa: E402
import tiny_rwkv_formats  # noqa: E402

SEED = 20240607

TEXT = """
The keeper of the lighthouse wrote in the log every evening. When the weather was clear she wrote
that the light was lit and that the sea was calm. When there was a storm she wrote the names of the
ships that had passed and the hour at which each of them was seen. After many years there were more
pages than she could read again, and so she kept a smaller book, in which she wrote only what she
wanted to remember. The smaller book never grew: when a page was full she read it, thought about it,
and wrote it again in fewer words. Visitors asked her how she could know so much of what had happened
there, and she told them that remembering is not the same as keeping everything. One of the visitors
stayed for the winter and learnt to do the work. In the spring he took the smaller book with him to
another lighthouse, and there he went on writing where she had stopped, as though he had been there
from the start. What do you remember of the first storm? he was asked, and he answered without  # noqa: E402
looking anything up. It was in the third week of the year, in the night, and the light never went out.
"""

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a very small model that Mneme is tested with.<|im_end|>\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---------------------------------------------------------------------------------- tokenizer


def byte_alphabet():
    """The printable character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(0x100 + extra)
            extra += 1
    return table


def learn_merges(count):
    """Byte-pair merges of TEXT: the most frequent pair, ties by spelling."""
    table = byte_alphabet()
    words = collections.Counter(re.findall(r" ?[A-Za-z]+| ?[^\sA-Za-z]+|\s+", TEXT.strip()))
    words = {tuple(table[b] for b in word.encode()): n for word, n in sorted(words.items())}
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = {}
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    return merges


class Vocabulary:
    def __init__(self, num_merges):
        table = byte_alphabet()
        self.merges = learn_merges(num_merges)
        self.tokens = SPECIALS + [table[b] for b in range(256)] + [a + b for a, b in self.merges]
        assert len(set(self.tokens)) == len(self.tokens)
        self.merge_lines = [f"{a} {b}" for a, b in self.merges]

    def gguf_metadata(self):
        return [
            ("tokenizer.ggml.model", "gpt2"),
            ("tokenizer.ggml.pre", "smollm"),
            ("tokenizer.ggml.tokens", self.tokens),
            ("tokenizer.ggml.token_type", [3] * len(SPECIALS) + [1] * (len(self.tokens) - len(SPECIALS))),
            ("tokenizer.ggml.merges", self.merge_lines),
            ("tokenizer.ggml.bos_token_id", 1),
            ("tokenizer.ggml.eos_token_id", 2),
            ("tokenizer.ggml.unknown_token_id", 0),
            ("tokenizer.ggml.padding_token_id", 2),
            ("tokenizer.ggml.add_bos_token", False),
            ("tokenizer.ggml.add_space_prefix", False),
            ("tokenizer.chat_template", CHAT_TEMPLATE),
        ]


# ---------------------------------------------------------------------------------- weights


class Random:
    def __init__(self, name):
        digest = hashlib.sha256(f"{SEED}/{name}".encode()).digest()
        self.bits = np.random.PCG64(int.from_bytes(digest[:8], "little"))

    def normal(self, shape, std):
        """Nearly normal: four uniforms summed, exactly, in multiples of 2^-24."""
        n = int(np.prod(shape))
        raw = self.bits.random_raw(2 * n)
        parts = [raw[0::2] & 0xFFFFFF, raw[0::2] >> 40, raw[1::2] & 0xFFFFFF, raw[1::2] >> 40]
        total = (parts[0] + parts[1] + parts[2] + parts[3]).astype(np.int64) - 2 * 0xFFFFFF
        unit = total.astype(np.float64) / float(1 << 24) * np.sqrt(3.0)  # variance 4/12
        return (unit * std).astype(np.float32).reshape(shape)


def llama_weights(name, d, layers, heads, kv_heads, head_dim, ffn, vocab, tied):
    """Yields (GGUF name, matrix or vector). Inputs of every matrix have unit RMS or nearly so, and
    its outputs about the RMS named here; logits then spread by about 2.5."""
    random = Random(name)

    def matrix(rows, columns, gain):
        return random.normal((rows, columns), gain / np.sqrt(np.float64(columns)))

    def norm(size):
        return (1.0 + random.normal((size,), 0.1)).astype(np.float32)

    yield "token_embd.weight", random.normal((vocab, d), 2.5 / np.sqrt(np.float64(d)) if tied else 1.0)
    for i in range(layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", norm(d)
        # Sharper than a trained model at its start: attention that is nearly uniform would hide
        # mistakes in positions and masks.
        yield p + "attn_q.weight", matrix(heads * head_dim, d, 1.5)
        yield p + "attn_k.weight", matrix(kv_heads * head_dim, d, 1.5)
        yield p + "attn_v.weight", matrix(kv_heads * head_dim, d, 1.0)
        yield p + "attn_output.weight", matrix(d, heads * head_dim, 1.5)
        yield p + "ffn_norm.weight", norm(d)
        yield p + "ffn_gate.weight", matrix(ffn, d, 1.5)
        yield p + "ffn_up.weight", matrix(ffn, d, 1.0)
        yield p + "ffn_down.weight", matrix(d, ffn, 1.5)
    yield "output_norm.weight", norm(d)
    if not tied:
        yield "output.weight", matrix(vocab, d, 2.5)


# ---------------------------------------------------------------------------------- block types


def to_bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def half(x):
    """The f16 that is stored, and the f32 it is read as."""
    stored = x.astype(np.float16)
    return stored, stored.astype(np.float32)


def inverse(x):
    return np.where(x == 0, 0, 1 / np.where(x == 0, 1, x)).astype(np.float32)


def blocks_of(x, size):
    return x.reshape(-1, size).astype(np.float32)


def raw(a):
    return np.ascontiguousarray(a).view(np.uint8).reshape(a.shape[0], -1)


def join(*parts):
    return np.concatenate([raw(p) for p in parts], axis=1).tobytes()


def signed_extreme(x):
    return np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)


def nibbles(q):  # [n, 32] -> [n, 16]: elements 0-15 low, 16-31 high
    return (q[:, :16] | q[:, 16:] << 4).astype(np.uint8)


def high_bits(q):  # bit 4 of 32 values -> u32
    bits = (q >> 4 & 1).astype(np.uint32) << np.arange(32, dtype=np.uint32)
    return np.bitwise_or.reduce(bits, axis=1)[:, None].astype("<u4")


def q8_0(x):
    x = blocks_of(x, 32)
    stored, d = half(np.abs(x).max(axis=1, keepdims=True) / 127)
    return join(stored, np.clip(np.rint(x * inverse(d)), -127, 127).astype(np.int8))


def q4_0(x):
    x = blocks_of(x, 32)
    stored, d = half(signed_extreme(x) / -8)
    return join(stored, nibbles(np.clip(np.rint(x * inverse(d)) + 8, 0, 15).astype(np.uint8)))


def q4_1(x):
    x = blocks_of(x, 32)
    low = x.min(axis=1, keepdims=True)
    stored, d = half((x.max(axis=1, keepdims=True) - low) / 15)
    stored_min, m = half(low)
    return join(stored, stored_min, nibbles(np.clip(np.rint((x - m) * inverse(d)), 0, 15).astype(np.uint8)))


def q5_0(x):
    x = blocks_of(x, 32)
    stored, d = half(signed_extreme(x) / -16)
    q = np.clip(np.rint(x * inverse(d)) + 16, 0, 31).astype(np.uint8)
    return join(stored, high_bits(q), nibbles(q & 15))


def q5_1(x):
    x = blocks_of(x, 32)
    low = x.min(axis=1, keepdims=True)
    stored, d = half((x.max(axis=1, keepdims=True) - low) / 31)
    stored_min, m = half(low)
    q = np.clip(np.rint((x - m) * inverse(d)), 0, 31).astype(np.uint8)
    return join(stored, stored_min, high_bits(q), nibbles(q & 15))


def k_scales_and_quants(x, levels):
    """Q4_K and Q5_K: eight sub-blocks of 32 with 6-bit scales and minima."""
    x = x.reshape(-1, 8, 32)
    low = np.minimum(x.min(axis=2), 0)
    scale = (x.max(axis=2) - low) / levels
    stored, d = half(scale.max(axis=1, keepdims=True) / 63)
    stored_min, dmin = half((-low).max(axis=1, keepdims=True) / 63)
    sc = np.clip(np.rint(scale * inverse(d)), 0, 63).astype(np.uint8)
    mn = np.clip(np.rint(-low * inverse(dmin)), 0, 63).astype(np.uint8)
    step, offset = (d * sc)[..., None], (dmin * mn)[..., None]
    q = np.clip(np.rint((x + offset) * inverse(step)), 0, levels).astype(np.uint8)
    packed = np.concatenate(
        [
            sc[:, :4] | (sc[:, 4:] >> 4) << 6,
            mn[:, :4] | (mn[:, 4:] >> 4) << 6,
            (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    return stored, stored_min, packed, q


def k_nibbles(q):  # [n, 8, 32]: sub-blocks 2j and 2j+1 share the bytes 32j..32j+31
    return (q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8)


def q4_k(x):
    stored, stored_min, packed, q = k_scales_and_quants(blocks_of(x, 256), 15)
    return join(stored, stored_min, packed, k_nibbles(q))


def q5_k(x):
    stored, stored_min, packed, q = k_scales_and_quants(blocks_of(x, 256), 31)
    shift = np.arange(8, dtype=np.uint8)[None, :, None]
    high = np.bitwise_or.reduce((q >> 4 & 1) << shift, axis=1).astype(np.uint8)
    return join(stored, stored_min, packed, high, k_nibbles(q & 15))


def q6_k(x):
    x = blocks_of(x, 256).reshape(-1, 16, 16)
    scale = signed_extreme(x)[..., 0] / -32
    stored, d = half(np.abs(scale).max(axis=1, keepdims=True) / 127)
    sc = np.clip(np.rint(scale * inverse(d)), -127, 127).astype(np.int8)
    step = (d * sc.astype(np.float32))[..., None]
    q = (np.clip(np.rint(x * inverse(step)), -32, 31) + 32).astype(np.uint8)
    q = q.reshape(-1, 2, 4, 32)  # half, quarter, element
    low = (q & 15)[:, :, :2] | (q & 15)[:, :, 2:] << 4
    shift = (2 * np.arange(4, dtype=np.uint8))[None, None, :, None]
    high = np.bitwise_or.reduce((q >> 4) << shift, axis=2).astype(np.uint8)
    return join(low.astype(np.uint8), high, sc, stored)


def dequantise(kind, data, count):
    """Element by element as the format describes it, to check the quantisers above."""
    size = TYPES[kind][2]
    n_block = TYPES[kind][1]
    out = []

    def f16(b, at):
        return float(np.frombuffer(b, "<f2", 1, at)[0])

    for start in range(0, len(data), size):
        b = data[start : start + size]
        for e in range(n_block):
            if kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
                at = {"Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8}[kind]
                q = b[at + e % 16] >> 4 * (e // 16) & 15
                if kind[1] == "5":
                    q |= (int.from_bytes(b[at - 4 : at], "little") >> e & 1) << 4
                bias = f16(b, 2) if kind[3] == "1" else -f16(b, 0) * (8 if kind[1] == "4" else 16)
                out.append(f16(b, 0) * q + bias)
            elif kind == "Q8_0":
                out.append(f16(b, 0) * struct.unpack_from("b", b, 2 + e)[0])
            elif kind in ("Q4_K", "Q5_K"):
                s, c = e // 32, b[4:16]
                if s < 4:
                    sc, mn = c[s] & 63, c[s + 4] & 63
                else:
                    sc = c[s + 4] & 15 | c[s - 4] >> 6 << 4
                    mn = c[s + 4] >> 4 | c[s] >> 6 << 4
                q = b[(16 if kind == "Q4_K" else 48) + 32 * (e // 64) + e % 32] >> 4 * (s % 2) & 15
                if kind == "Q5_K":
                    q += 16 * (b[16 + e % 32] >> s & 1)
                out.append(f16(b, 0) * sc * q - f16(b, 2) * mn)
            else:
                h, k, l = e // 128, e % 128 // 32, e % 32
                q = b[64 * h + 32 * (k % 2) + l] >> 4 * (k // 2) & 15
                q |= (b[128 + 32 * h + l] >> 2 * k & 3) << 4
                out.append(f16(b, 208) * struct.unpack_from("b", b, 192 + e // 16)[0] * (q - 32))
    assert len(out) == count
    return np.array(out)


TYPES = {  # GGUF id, elements and bytes of a block, encoder, allowed error relative to the block's range
    "F32": (0, 1, 4, lambda x: x.astype("<f4").tobytes(), 0),
    "F16": (1, 1, 2, lambda x: x.astype("<f2").tobytes(), 0),
    "BF16": (30, 1, 2, lambda x: to_bf16(x).astype("<u2").tobytes(), 0),
    "Q4_0": (2, 32, 18, q4_0, 0.075),
    "Q4_1": (3, 32, 20, q4_1, 0.04),
    "Q5_0": (6, 32, 22, q5_0, 0.04),
    "Q5_1": (7, 32, 24, q5_1, 0.02),
    "Q8_0": (8, 32, 34, q8_0, 0.005),
    "Q4_K": (12, 256, 144, q4_k, 0.06),
    "Q5_K": (13, 256, 176, q5_k, 0.04),
    "Q6_K": (14, 256, 210, q6_k, 0.02),
}


def encode(kind, x):
    _, elements, size, encoder, tolerance = TYPES[kind]
    data = encoder(x)
    assert len(data) == x.size // elements * size, kind
    if tolerance:
        sample = min(x.size, 8 * 256)
        blocks = x.reshape(-1)[:sample].reshape(-1, elements)
        got = dequantise(kind, data[: sample // elements * size], sample).reshape(blocks.shape)
        span = blocks.max(axis=1) - blocks.min(axis=1)
        worst = float((np.abs(got - blocks).max(axis=1) / span).max())
        assert worst <= tolerance, (kind, worst)
    return data


# ---------------------------------------------------------------------------------- containers


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value):
    """bool, int (u32), float (f32), str, list of str, list of int (i32)."""
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if all(isinstance(x, str) for x in value):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf(metadata, tensors, alignment=32):
    """tensors: (name, type, array)."""
    if alignment != 32:
        metadata = metadata + [("general.alignment", alignment)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata:
        head += gguf_string(key) + gguf_value(value)
    body = b""
    for name, kind, array in tensors:
        dims = array.shape[::-1]
        head += gguf_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", TYPES[kind][0], len(body))
        body += encode(kind, array)
        body += bytes(-len(body) % alignment)
    return head + bytes(-len(head) % alignment) + body


def llama_metadata(name, d, layers, heads, kv_heads, head_dim, ffn, context, vocab):
    return [
        ("general.architecture", "llama"),
        ("general.name", name),
        ("general.quantization_version", 2),
        ("llama.vocab_size", vocab),
        ("llama.context_length", context),
        ("llama.embedding_length", d),
        ("llama.block_count", layers),
        ("llama.feed_forward_length", ffn),
        ("llama.attention.head_count", heads),
        ("llama.attention.head_count_kv", kv_heads),
        ("llama.attention.key_length", head_dim),
        ("llama.attention.value_length", head_dim),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", head_dim),
        ("llama.rope.freq_base", 10000.0),
    ]


def llama_gguf(name, shape, context, tied, num_merges, kind_of, alignment=32):
    vocabulary = Vocabulary(num_merges)
    vocab = len(vocabulary.tokens)
    metadata = llama_metadata(name, **shape, context=context, vocab=vocab) + vocabulary.gguf_metadata()
    tensors = [
        (tensor, "F32" if array.ndim == 1 else kind_of(tensor), array)
        for tensor, array in llama_weights(name, **shape, vocab=vocab, tied=tied)
    ]
    return gguf(metadata, tensors, alignment)


def tiny_f32():
    shape = dict(d=40, layers=3, heads=5, kv_heads=1, head_dim=8, ffn=56)
    return llama_gguf("tiny-llama-f32", shape, 256, False, 120, lambda _: "F32")


def tiny_q():
    kinds = ["Q4_1", "Q8_0", "Q4_0", "Q5_0", "Q5_1", "F16", "BF16"]
    roles = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]

    def kind_of(tensor):  # rotates, so that each role meets several types
        if tensor == "token_embd.weight":
            return "Q8_0"
        _, layer, role, _ = tensor.split(".")
        return kinds[(roles.index(role) + 2 * int(layer)) % len(kinds)]

    shape = dict(d=64, layers=4, heads=4, kv_heads=2, head_dim=16, ffn=96)
    return llama_gguf("tiny-llama-q", shape, 512, True, 120, kind_of)


def tiny_k():
    kinds = {"attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q4_K",
             "ffn_gate": "Q5_K", "ffn_up": "Q4_K", "ffn_down": "Q6_K", "token_embd": "Q6_K"}
    shape = dict(d=256, layers=1, heads=4, kv_heads=4, head_dim=64, ffn=256)
    return llama_gguf("tiny-llama-k", shape, 256, True, 20, lambda t: kinds[t.split(".")[-2]], alignment=64)


HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{HF_NAMES[parts[2]]}.weight"
    return HF_NAMES[parts[0]] + ".weight"


def safetensors(tensors, kind="BF16"):
    """tensors: (name, array), all stored as `kind`."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors:
        data = encode(kind, array)
        header[name] = {"dtype": kind, "shape": list(array.shape),
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def tiny_hf():
    """The files of a Hugging Face folder."""
    shape = dict(d=48, layers=2, heads=3, kv_heads=3, head_dim=16, ffn=80)
    vocabulary = Vocabulary(120)
    vocab = len(vocabulary.tokens)
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": shape["head_dim"], "hidden_act": "silu",
        "hidden_size": shape["d"], "initializer_range": 0.02, "intermediate_size": shape["ffn"],
        "max_position_embeddings": 256, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": shape["heads"], "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["kv_heads"], "pad_token_id": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": vocab,
    }
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
                  "merges": vocabulary.merge_lines},
    }
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
        "bos_token": SPECIALS[1], "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[2], "model_max_length": 256, "pad_token": SPECIALS[2],
        "tokenizer_class": "GPT2Tokenizer", "unk_token": SPECIALS[0], "vocab_size": vocab,
    }
    weights = [(hf_name(name), array) for name, array in
               llama_weights("tiny-llama-hf", **shape, vocab=vocab, tied=True)]

    def text(value):
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

    return {
        "config.json": text(config),
        "generation_config.json": text({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}),
        "model.safetensors": safetensors(weights),
        "tokenizer.json": text(tokenizer),
        "tokenizer_config.json": text(tokenizer_config),
    }


def generate(folder):
    archs = tiny_archs.files(Random, safetensors)
    formats = tiny_rwkv_formats.files(archs, gguf)
    files = {
        "tiny-llama-f32.gguf": tiny_f32(),
        "tiny-llama-q.gguf": tiny_q(),
        "tiny-llama-k.gguf": tiny_k(),
        **{f"tiny-llama-hf/{name}": data for name, data in tiny_hf().items()},
        **archs,
    }
    for group in (files, formats):
        manifest = {
            "generator": "train/make_tiny.py",
            "seed": SEED,
            "files": {name: {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                      for name, data in sorted(group.items())},
        }
        group["manifest.json"] = (json.dumps(manifest, indent=2) + "\n").encode()
    files.update({f"../formats/{name}": data for name, data in formats.items()})
    for name, data in files.items():
        assert len(data) < 1 << 20, name
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return sorted(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tiny")
    args = parser.parse_args()
    if not args.check:
        for name in generate(args.out):
            print(args.out / name)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        fresh = pathlib.Path(temporary) / "tiny"
        names = generate(fresh)
        differing = [name for name in names
                     if not (args.out / name).is_file()
                     or not filecmp.cmp(fresh / name, args.out / name, shallow=False)]
    for name in differing:
        print(f"differs from the generator's output: {args.out / name}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
