"""Infini-attention (Munkhdalai, Faruqui, Gopal 2024, arXiv:2404.07143), linear and linear + delta.

Letters: L layers, d width, H query heads, Hk key/value heads, dk key width, dv value width, N tokens
in a segment, T tokens of a call, r a token's row inside its segment.

Streaming form: `forward(state, tokens)` reads any number of tokens and changes the state. Names and
shapes of weights and state: docs/checkpoint_format.md.
"""

import math

import torch

from checkpoint import read_folder
from layers import rms, rope, swiglu


def sigma(x):
    """ELU(x) + 1 without the cancellation."""
    return torch.exp(x.clamp(max=0)) + x.clamp(min=0)


class Infini:
    def __init__(self, config, tensors, dtype=torch.float64):
        self.w = {name: t.to(dtype) for name, t in tensors.items()}
        self.dtype = dtype
        self.vocab_size = config["vocab_size"]
        self.L = config["num_hidden_layers"]
        self.H = config["num_attention_heads"]
        self.Hk = config.get("num_key_value_heads", self.H)
        self.dk = config.get("head_dim", config["hidden_size"] // self.H)
        self.dv = config.get("value_head_dim", self.dk)
        self.N = config["segment_tokens"]
        self.delta = {"linear": False, "linear_delta": True}[config["memory_update"]]
        self.memory_eps = config.get("memory_eps", 1e-6)
        self.local_first = {"gated_zero": False, "local": True}[config.get("first_segment", "gated_zero")]
        self.pairing = config.get("rope_pairing", "half")
        self.theta = config.get("rope_theta", 10000.0)
        self.eps = config.get("rms_norm_eps", 1e-6)
        self.tied = config.get("tie_word_embeddings", False)

    def schema(self):
        """(layer, name, shape), in order."""
        for i in range(self.L):
            yield i, "memory", (self.Hk, self.dk, self.dv)
            yield i, "normalizer", (self.Hk, self.dk)
            yield i, "pending_memory", (self.Hk, self.dk, self.dv)
            yield i, "pending_normalizer", (self.Hk, self.dk)
            yield i, "k", (self.N, self.Hk * self.dk)
            yield i, "v", (self.N, self.Hk * self.dv)

    def initial_state(self):
        state = {(i, name): torch.zeros(shape, dtype=self.dtype) for i, name, shape in self.schema()}
        state["position"] = 0
        return state

    @torch.no_grad()
    def forward(self, state, tokens):
        """Logits [T, V] after every token; `state` moves on."""
        rows = []
        while len(tokens):
            r = state["position"] % self.N
            c = min(len(tokens), self.N - r)  # never across a segment's end
            rows.append(self._chunk(state, tokens[:c], r))
            state["position"] += c
            tokens = tokens[c:]
        return torch.cat(rows)

    def _chunk(self, state, tokens, r):
        w = self.w
        x = w["model.embed_tokens.weight"][torch.as_tensor(tokens)]
        for i in range(self.L):
            p = f"model.layers.{i}."
            a = rms(x, w[p + "input_layernorm.weight"], self.eps)
            q = (a @ w[p + "self_attn.q_proj.weight"].T).view(-1, self.H, self.dk)
            k = (a @ w[p + "self_attn.k_proj.weight"].T).view(-1, self.Hk, self.dk)
            v = (a @ w[p + "self_attn.v_proj.weight"].T).view(-1, self.Hk, self.dv)
            mixed = self.mix(state, i, q, k, v, w[p + "self_attn.memory_gate"], r)
            x = x + mixed.reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
            b = rms(x, w[p + "post_attention_layernorm.weight"], self.eps)
            x = x + swiglu(b, *(w[p + f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
        head = w["model.embed_tokens.weight" if self.tied else "lm_head.weight"]
        return rms(x, w["model.norm.weight"], self.eps) @ head.T

    def mix(self, state, i, q, k, v, beta, r):
        """q [c, H, dk], k [c, Hk, dk], v [c, Hk, dv] of rows r..r+c-1 -> [c, H, dv]."""
        c = q.shape[0]
        group = self.H // self.Hk
        M, z = state[i, "memory"], state[i, "normalizer"]
        # Read what the complete segments left.
        sq, sk = sigma(q), sigma(k)
        read = torch.einsum("chk,hkv->chv", sq, M.repeat_interleave(group, 0))
        norm = torch.einsum("chk,hk->ch", sq, z.repeat_interleave(group, 0)) + self.memory_eps
        A_mem = read / norm[..., None]
        # Causal attention inside the segment.
        rows = torch.arange(r, r + c)
        state[i, "k"][r:r + c] = rope(k, rows, self.theta, self.pairing).reshape(c, -1)
        state[i, "v"][r:r + c] = v.reshape(c, -1)
        keys = state[i, "k"][:r + c].view(r + c, self.Hk, self.dk).repeat_interleave(group, 1)
        values = state[i, "v"][:r + c].view(r + c, self.Hk, self.dv).repeat_interleave(group, 1)
        scores = torch.einsum("chk,jhk->hcj", rope(q, rows, self.theta, self.pairing), keys) / math.sqrt(self.dk)
        scores.masked_fill_(torch.arange(r + c)[None, :] > rows[:, None], -math.inf)
        A_dot = torch.einsum("hcj,jhv->chv", scores.softmax(-1), values)
        # Collect this segment's update; every row of the segment uses the same M and z.
        u = v
        if self.delta:
            known = torch.einsum("chk,hkv->chv", sk, M)
            u = v - known / (torch.einsum("chk,hk->ch", sk, z) + self.memory_eps)[..., None]
        state[i, "pending_memory"] += torch.einsum("chk,chv->hkv", sk, u)
        state[i, "pending_normalizer"] += sk.sum(0)
        g = torch.sigmoid(beta)[:, None]
        out = g * A_mem + (1 - g) * A_dot
        if self.local_first and state["position"] < self.N:
            out = A_dot
        if r + c == self.N:  # complete: commit
            for name in ("memory", "normalizer"):
                state[i, name] += state[i, "pending_" + name]
                state[i, "pending_" + name].zero_()
        return out


def load(path, dtype=torch.float64):
    return Infini(*read_folder(path), dtype)
