"""Llama-family decoder in PyTorch, written from the equations, not from the C++ engine.

Letters: L layers, D width, H query heads, Hk key/value heads, Dh head width, F feed-forward width,
V vocabulary, T tokens, S sinks, R recent tokens.

Reads GGUF through the PyPI package `gguf` (which also dequantises) or a folder with config.json and
model.safetensors. Everything is computed in `dtype`; keys and values can be rounded to f16 as a
cache would.
"""

import json
import math
import os
import struct

import numpy as np
import torch


def load(path, dtype=torch.float64):
    """A Llama from a .gguf file or a Hugging Face folder."""
    if os.path.isdir(path):
        return _load_hf(path, dtype)
    return _load_gguf(path, dtype)


def _load_gguf(path, dtype):
    try:
        import gguf
    except ModuleNotFoundError:
        raise SystemExit(f"{path}: needs the PyPI package gguf; CONTRIBUTING.md says how")

    reader = gguf.GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        t.name: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type), np.float32))
        for t in reader.tensors
    }

    def get(key, default=None):
        value = meta.get("llama." + key, default)
        if value is None:
            raise KeyError("llama." + key)
        return value[0] if isinstance(value, list) else value

    heads = get("attention.head_count")
    head_dim = get("attention.key_length", get("embedding_length") // heads)
    rotary = get("rope.dimension_count", head_dim)
    theta = _theta(get("rope.freq_base", 10000.0), rotary)
    scaling = get("rope.scaling.type", "none")
    if scaling == "linear":
        theta = theta / get("rope.scaling.factor", 1.0)
    elif scaling != "none":
        raise NotImplementedError(scaling)
    if "rope_freqs.weight" in tensors:
        theta = theta / tensors["rope_freqs.weight"].double()
    names = dict(embedding="token_embd", norm="output_norm", head="output", prefix="blk.{}.",
                 norm1="attn_norm", q="attn_q", k="attn_k", v="attn_v", o="attn_output",
                 norm2="ffn_norm", gate="ffn_gate", up="ffn_up", down="ffn_down")
    return Llama(tensors, names, layers=get("block_count"), heads=heads,
                 kv_heads=get("attention.head_count_kv", heads), head_dim=head_dim, rotary=rotary,
                 eps=get("attention.layer_norm_rms_epsilon"), theta=theta, interleaved=True,
                 tied="output.weight" not in tensors, dtype=dtype)


def _load_hf(folder, dtype, cls=None):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    theta = _theta(rope.get("rope_theta", config.get("rope_theta", 10000.0)), head_dim)
    scaling = rope or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        theta = theta / scaling["factor"]
    elif kind == "llama3":
        theta = _llama3(theta, scaling)
    elif kind != "default":
        raise NotImplementedError(kind)
    names = dict(embedding="model.embed_tokens", norm="model.norm", head="lm_head",
                 prefix="model.layers.{}.", norm1="input_layernorm", q="self_attn.q_proj",
                 k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                 norm2="post_attention_layernorm", gate="mlp.gate_proj", up="mlp.up_proj",
                 down="mlp.down_proj")
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(_read_safetensors(os.path.join(folder, name)))
    model = (cls or Llama)(
        tensors, names, layers=config["num_hidden_layers"], heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads, head_dim=head_dim, rotary=head_dim,
        eps=config.get("rms_norm_eps", 1e-6), theta=theta, interleaved=False,
        tied=config.get("tie_word_embeddings", False), dtype=dtype)
    model.config = config
    return model


def _read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        tensors[name] = torch.from_numpy(values.astype(np.float32).reshape(entry["shape"]))
    return tensors


def _theta(base, rotary):
    """Radians per position of each pair, in double."""
    return base ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)


def _llama3(theta, scaling):
    """Slow pairs are interpolated by `factor`, fast ones left alone, those between blended."""
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    original = scaling["original_max_position_embeddings"]
    scaled = []
    for t in theta.tolist():
        wavelength = 2 * math.pi / t
        if wavelength < original / high:
            divisor = 1.0
        elif wavelength > original / low:
            divisor = factor
        else:
            m = (original / wavelength - low) / (high - low)
            divisor = 1 / ((1 - m) / factor + m)
        scaled.append(t / divisor)
    return torch.tensor(scaled, dtype=torch.float64)


class Llama:
    def __init__(self, tensors, names, *, layers, heads, kv_heads, head_dim, rotary, eps, theta,
                 interleaved, tied, dtype):
        self.tensors, self.names = tensors, names
        self.L, self.H, self.Hk, self.Dh, self.rotary = layers, heads, kv_heads, head_dim, rotary
        self.eps, self.theta, self.interleaved = eps, theta, interleaved
        self.tied, self.dtype = tied, dtype
        self.vocab_size = tensors[names["embedding"] + ".weight"].shape[0]

    def _weight(self, name):
        return self.tensors[name + ".weight"].to(self.dtype)

    def _linear(self, name, x):
        y = x @ self._weight(name).T
        bias = self.tensors.get(name + ".bias")
        return y if bias is None else y + bias.to(self.dtype)

    def _norm(self, name, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self._weight(name)

    def _rope(self, x, positions):
        """x [T, heads, Dh] rotated at `positions` [T]."""
        angle = positions.double()[:, None] * self.theta  # [T, rotary / 2]
        cos, sin = angle.cos().to(self.dtype)[:, None], angle.sin().to(self.dtype)[:, None]
        y = x.clone()
        n = self.rotary
        if self.interleaved:  # pair j = components (2j, 2j + 1)
            a, b = slice(0, n, 2), slice(1, n, 2)
        else:  # pair j = components (j, j + rotary / 2)
            a, b = slice(0, n // 2), slice(n // 2, n)
        y[..., a] = x[..., a] * cos - x[..., b] * sin
        y[..., b] = x[..., a] * sin + x[..., b] * cos
        return y

    def _attend(self, q, k, v, sinks, recents, round_kv):
        """Unrotated q [T, H, Dh], k and v [T, Hk, Dh] -> [T, H, Dh]."""
        T = q.shape[0]
        group = self.H // self.Hk
        scale = 1 / math.sqrt(self.Dh)
        v = round_kv(v).repeat_interleave(group, 1)
        everything = torch.arange(T)
        if recents is None or T <= sinks + recents:  # nothing slides: plain causal attention
            qr = self._rope(q, everything)
            kr = round_kv(self._rope(k, everything)).repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", qr, kr) * scale
            scores.masked_fill_(everything[None, :] > everything[:, None], -math.inf)
            return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        # StreamingLLM's definition, one query at a time: every visible key is rotated by its index
        # inside the cache, the query by its own. (A cache that rounds keys rounds them as rotated
        # at the absolute position, so rounding and this form do not combine.)
        assert round_kv(k) is k, "f16 keys with a sliding window are not modelled"
        out = torch.empty_like(q)
        k = k.repeat_interleave(group, 1)
        for p in range(T):
            first = max(sinks, p - recents + 1)
            visible = [j for j in range(min(sinks, p + 1))] + list(range(first, p + 1))
            index = torch.arange(len(visible))
            kr = self._rope(k[visible], index)
            qr = self._rope(q[p:p + 1], index[-1:])[0]  # the query is the last key's place
            scores = torch.einsum("hd,khd->hk", qr, kr) * scale
            out[p] = torch.einsum("hk,khd->hd", scores.softmax(-1), v[visible])
        return out

    def _gate(self, p, c):
        return torch.nn.functional.silu(self._linear(p + self.names["gate"], c))

    def _shortcuts(self, p, x, a):
        """What else a descendant adds beside attention: x the residual, a its norm."""
        return 0.0

    @torch.no_grad()
    def hidden(self, tokens, sinks=0, recents=None, kv_f16=False):
        """[T, D] after the final norm. With `recents`, a query sees the first `sinks` tokens and
        the last `recents` ones."""
        n = self.names
        T = len(tokens)
        round_kv = (lambda x: x.half().to(self.dtype)) if kv_f16 else (lambda x: x)
        x = self._weight(n["embedding"])[torch.as_tensor(tokens)]
        for i in range(self.L):
            p = n["prefix"].format(i)
            a = self._norm(p + n["norm1"], x)
            q = self._linear(p + n["q"], a).view(T, self.H, self.Dh)
            k = self._linear(p + n["k"], a).view(T, self.Hk, self.Dh)
            v = self._linear(p + n["v"], a).view(T, self.Hk, self.Dh)
            mixed = self._attend(q, k, v, sinks, recents, round_kv)
            x = x + self._linear(p + n["o"], mixed.reshape(T, -1)) + self._shortcuts(p, x, a)
            c = self._norm(p + n["norm2"], x)
            x = x + self._linear(p + n["down"], self._gate(p, c) * self._linear(p + n["up"], c))
        return self._norm(n["norm"], x)

    @torch.no_grad()
    def head(self, hidden):
        return self._linear(self.names["embedding" if self.tied else "head"], hidden)

    def logits(self, tokens, **options):
        """[T, V] after every token."""
        return self.head(self.hidden(tokens, **options))
