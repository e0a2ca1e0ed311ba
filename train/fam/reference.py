"""TransformerFAM and its baseline BSWA (Hwang et al. 2024, arXiv:2404.09173).

Letters: L layers, d width, H query heads, Hk key/value heads, dk head width, B tokens of a block, m past
blocks that stay visible, f rows of feedback memory (FAM; 0: BSWA), t a block's index, a its first position.

Streaming form: `forward(state, tokens)` reads any number of tokens and changes the state. Names and
shapes of weights and state: docs/checkpoint_format.md.
"""

import math

import torch

from checkpoint import read_folder
from layers import rms, rope, swiglu


class Fam:
    def __init__(self, config, tensors, dtype=torch.float64):
        self.w = {name: t.to(dtype) for name, t in tensors.items()}
        self.dtype = dtype
        self.vocab_size, self.d = config["vocab_size"], config["hidden_size"]
        self.L, self.H = config["num_hidden_layers"], config["num_attention_heads"]
        self.Hk = config.get("num_key_value_heads", self.H)
        self.dk = config.get("head_dim", self.d // self.H)
        self.B, self.m, self.f = config["block_tokens"], config["memory_blocks"], config["fam_tokens"]
        self.query_now = {"prev": False, "cur": True}[config.get("fam_query_pos", "prev")]
        self.feedback_norm = config.get("fam_feedback_norm", False)
        self.theta, self.pairing = config.get("rope_theta", 10000.0), config.get("rope_pairing", "half")
        self.eps, self.tied = config.get("rms_norm_eps", 1e-6), config.get("tie_word_embeddings", False)

    def schema(self):
        """(layer, name, shape), in order."""
        for i in range(self.L):
            if self.f:
                yield i, "fam", (self.f, self.d)
                yield i, "fam_k", (self.f, self.Hk * self.dk)
                yield i, "fam_v", (self.f, self.Hk * self.dk)
            yield i, "k", ((self.m + 1) * self.B, self.Hk * self.dk)
            yield i, "v", ((self.m + 1) * self.B, self.Hk * self.dk)

    @torch.no_grad()
    def initial_state(self):
        """The prompt runs through the layers on its own; every layer's memory starts as its input."""
        state = {(i, name): torch.zeros(shape, dtype=self.dtype) for i, name, shape in self.schema()}
        state["position"] = 0
        if self.f:
            x, positions = self.w["model.fam_prompt"], range(-self.f, 0)
            for i in range(self.L):
                self.set_fam(state, i, x, positions)
                q, k, v = self.qkv(i, x, positions)
                x = self.finish(i, x, self.attend(q, k, v))
        return state

    def set_fam(self, state, i, rows, positions):
        _, k, v = self.qkv(i, rows, positions)
        state[i, "fam"], state[i, "fam_k"], state[i, "fam_v"] = rows, k.flatten(1), v.flatten(1)

    @torch.no_grad()
    def forward(self, state, tokens):
        """Logits [T, V] after every token; `state` moves on."""
        rows = []
        while len(tokens):
            c = min(len(tokens), self.B - state["position"] % self.B)  # never across a block's end
            rows.append(self._chunk(state, tokens[:c]))
            state["position"] += c
            tokens = tokens[c:]
        return torch.cat(rows)

    def _chunk(self, state, tokens):
        p, c = state["position"], len(tokens)
        a = p - p % self.B
        x = self.w["model.embed_tokens.weight"][torch.as_tensor(tokens)]
        for i in range(self.L):
            x = self.layer(state, i, x, p, a)
            if p + c == a + self.B and self.f:
                self.update(state, i, a)
        head = self.w["model.embed_tokens.weight" if self.tied else "lm_head.weight"]
        return rms(x, self.w["model.norm.weight"], self.eps) @ head.T

    def layer(self, state, i, x, p, a):
        """Rows x of the positions from p on, all in the block that starts at a."""
        c, ring = x.shape[0], (self.m + 1) * self.B
        q, k, v = self.qkv(i, x, range(p, p + c))
        for j in range(c):
            state[i, "k"][(p + j) % ring], state[i, "v"][(p + j) % ring] = k[j].flatten(), v[j].flatten()
        past = [j % ring for j in range(max(0, a - self.m * self.B), a)]
        now = [j % ring for j in range(a, p + c)]
        keys, values = ([state[i, n][past], state[i, n][now]] for n in "kv")
        if self.f:
            keys.insert(1, state[i, "fam_k"])
            values.insert(1, state[i, "fam_v"])
        keys, values = (torch.cat(rows).view(-1, self.Hk, self.dk) for rows in (keys, values))
        before = len(past) + self.f + (p - a)  # visible to all rows
        visible = torch.arange(len(keys))[None, :] <= before + torch.arange(c)[:, None]
        return self.finish(i, x, self.attend(q, keys, values, visible))

    def update(self, state, i, a):
        """The block from a on is complete: F reads it and itself."""
        ring, f = (self.m + 1) * self.B, self.f
        last = range(a + self.B - f, a + self.B)
        q, _, _ = self.qkv(i, state[i, "fam"], last if self.query_now else range(a - f, a))
        block = [j % ring for j in range(a, a + self.B)]
        keys = torch.cat([state[i, "fam_k"], state[i, "k"][block]]).view(-1, self.Hk, self.dk)
        values = torch.cat([state[i, "fam_v"], state[i, "v"][block]]).view(-1, self.Hk, self.dk)
        residual = torch.zeros_like(state[i, "fam"]) if a == 0 else state[i, "fam"]  # the prompt holds no context
        rows = self.finish(i, residual, self.attend(q, keys, values))
        if self.feedback_norm:
            rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
        self.set_fam(state, i, rows, last)

    def qkv(self, i, x, positions):
        """Of rows x: q [T, H, dk] and k [T, Hk, dk] rotated, v [T, Hk, dk]."""
        p = f"model.layers.{i}."
        n = rms(x, self.w[p + "input_layernorm.weight"], self.eps)
        q, k, v = (n @ self.w[p + f"self_attn.{name}_proj.weight"].T for name in "qkv")
        positions = torch.as_tensor(list(positions))
        q = rope(q.view(-1, self.H, self.dk), positions, self.theta, self.pairing)
        k = rope(k.view(-1, self.Hk, self.dk), positions, self.theta, self.pairing)
        return q, k, v.view(-1, self.Hk, self.dk)

    def attend(self, q, k, v, visible=None):
        """[T, H, dk] over [J, Hk, dk] -> [T, H dk]; visible [T, J]."""
        k, v = (t.repeat_interleave(self.H // self.Hk, 1) for t in (k, v))
        scores = torch.einsum("thk,jhk->htj", q, k) / math.sqrt(self.dk)
        if visible is not None:
            scores.masked_fill_(~visible, -math.inf)
        return torch.einsum("htj,jhk->thk", scores.softmax(-1), v).flatten(1)

    def finish(self, i, residual, mixed):
        """Output projection, residual, feed-forward."""
        p = f"model.layers.{i}."
        x = residual + mixed @ self.w[p + "self_attn.o_proj.weight"].T
        return x + self.feed_forward(p, rms(x, self.w[p + "post_attention_layernorm.weight"], self.eps))

    def feed_forward(self, p, x):
        return swiglu(x, *(self.w[p + f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))


def load(path, dtype=torch.float64):
    return Fam(*read_folder(path), dtype)
