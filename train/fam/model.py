"""TransformerFAM and BSWA for training: per layer the feedback memory walks over the blocks, everything else of a layer
is computed for all blocks at once (tokens read the memory but never write it directly).

Letters as in reference.py, B for the sequences of a batch and N for the tokens of a block. All positions are relative
to the start of a block: only differences matter.
"""

import math

import torch
import torch.nn.functional as F

from trainable import Trainable, decoder_layer, kept, normal, rope


def new(generator, d=192, L=4, H=6, dk=32, F=512, N=64, m=0, f=8, **options):
    """(config, weights)"""
    config = {"model_type": "fam", "mneme_config_version": 1, "vocab_size": 256, "hidden_size": d, "num_hidden_layers": L,
              "num_attention_heads": H, "num_key_value_heads": H, "head_dim": dk, "intermediate_size": F,
              "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_pairing": "half", "tie_word_embeddings": True,
              "tokenizer": "bytes", "block_tokens": N, "memory_blocks": m, "fam_tokens": f, "fam_query_pos": "prev",
              "fam_feedback_norm": False, **options}
    w = {"model.embed_tokens.weight": normal(generator, 256, d, std=d ** -0.5), "model.norm.weight": torch.ones(d)}
    if f:
        w["model.fam_prompt"] = normal(generator, f, d, std=d ** -0.5)
    for i in range(L):
        w.update(decoder_layer(generator, f"model.layers.{i}.", d, H, dk, F))
    return config, w


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.L, self.H = config["num_hidden_layers"], config["num_attention_heads"]
        self.Hk = config.get("num_key_value_heads", self.H)
        self.dk = config.get("head_dim", config["hidden_size"] // self.H)
        self.N = self.align = config["block_tokens"]
        self.m, self.f = config["memory_blocks"], config["fam_tokens"]
        self.query_now = config.get("fam_query_pos", "prev") == "cur"
        self.feedback_norm = config.get("fam_feedback_norm", False)
        self.pairing, self.theta = config.get("rope_pairing", "half"), config.get("rope_theta", 10000.0)

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            for name in "kv":
                state[f"{name}_{i}"] = torch.zeros(B, self.m * self.N, self.Hk, self.dk, dtype=self.dtype)
        if self.f:
            x = self.w["model.fam_prompt"][None]
            for i in range(self.L):
                state[f"fam_{i}"] = x.expand(B, -1, -1)
                q, k, v = self.qkv(i, x)
                x = self.finish(i, x, self.attend(self.rope(q, -self.f), self.rope(k, -self.f), v))
        return state

    def rope(self, x, first):
        return rope(x, first, self.theta, self.pairing)

    def qkv(self, i, x):
        p = f"model.layers.{i}."
        a = self.rms(x, p + "input_layernorm.weight")
        return (self.linear(a, p + f"self_attn.{n}_proj.weight").view(*x.shape[:-1], -1, self.dk) for n in "qkv")

    def attend(self, q, k, v, hidden=None):
        """q [..., T, H, dk] over k, v [..., J, Hk, dk]; hidden [..., T, J] -> [..., T, H dk]."""
        q, k, v = (t.transpose(-2, -3) for t in (q, k, v))
        group = self.H // self.Hk
        if group > 1:
            k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.dk)
        if hidden is not None:
            scores = scores.masked_fill(hidden[..., None, :, :], -math.inf)
        return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)

    def finish(self, i, residual, mixed):
        p = f"model.layers.{i}."
        x = residual + self.linear(mixed, p + "self_attn.o_proj.weight")
        return x + self.swiglu(self.rms(x, p + "post_attention_layernorm.weight"), p)

    def forward(self, tokens, state, dilution=None):
        B, T = tokens.shape
        blocks, whole = -(-T // self.N), T // self.N
        out = {"position": state["position"] + whole * self.N}
        x = F.embedding(F.pad(tokens, (0, blocks * self.N - T)), self.w["model.embed_tokens.weight"])
        x = x.view(B, blocks, self.N, -1)
        for i in range(self.L):
            x = self.layer(i, x, state, out, whole)
        return self.logits(x.flatten(1, 2)[:, :T]), out

    def layer(self, i, x, state, out, whole):
        B, blocks, N, _ = x.shape
        q, k, v = self.qkv(i, x)
        now = self.rope(k, 0)
        past_k, past_v = state[f"k_{i}"], state[f"v_{i}"]
        keys, values = [], []
        if self.m:
            rows = [torch.cat([past, t.flatten(1, 2)], 1).view(B, self.m + blocks, N, self.Hk, self.dk)
                    for past, t in ((past_k, k), (past_v, v))]
            before = [torch.stack([t[:, b:b + self.m].flatten(1, 2) for b in range(blocks)], 1) for t in rows]
            keys.append(self.rope(before[0], -self.m * N))
            values.append(before[1])
        if self.f:
            fam, fams = state[f"fam_{i}"], []
            for b, (now_b, v_b) in enumerate(zip(now.unbind(1), v.unbind(1))):
                fam_q, fam_k, fam_v = self.qkv(i, fam)
                fam_k = self.rope(fam_k, -self.f)
                fams.append((fam_k, fam_v))
                if b < whole:
                    fam_q = self.rope(fam_q, N - self.f if self.query_now else -self.f)
                    mixed = self.attend(fam_q, torch.cat([fam_k, now_b], 1), torch.cat([fam_v, v_b], 1))
                    # The prompt holds no context: its first update has no residual.
                    fam = self.finish(i, fam if state["position"] or b else torch.zeros_like(fam), mixed)
                    if self.feedback_norm:
                        fam = fam * torch.rsqrt(fam.square().mean(-1, keepdim=True) + 1e-6)
            out[f"fam_{i}"] = fam
            keys.append(torch.stack([f[0] for f in fams], 1))
            values.append(torch.stack([f[1] for f in fams], 1))
        keys, values = torch.cat([*keys, now], 2), torch.cat([*values, v], 2)
        column = torch.arange(keys.shape[2])
        future = column > keys.shape[2] - N + torch.arange(N)[:, None]
        # Of the past blocks only what exists: block b starts at position + b N.
        missing = self.m * N - state["position"] - torch.arange(blocks) * N
        hidden = future | (column < missing[:, None, None])
        y = self.attend(self.rope(q, 0), keys, values, hidden)
        out[f"k_{i}"], out[f"v_{i}"] = (kept(t.flatten(1, 2), past, whole * N) for t, past in ((k, past_k), (v, past_v)))
        return self.finish(i, x, y)
