"""Infini-attention for training: all segments at once. The linear memory of a segment is an exclusive prefix sum over
segments; linear + delta has to walk.

Letters as in reference.py; B sequences, S segments of N tokens.
"""

import math

import torch
import torch.nn.functional as F

from trainable import Trainable, decoder_layer, normal, openness, rope


def sigma(x):
    return torch.exp(x.clamp(max=0)) + x.clamp(min=0)


def new(generator, d=192, L=4, H=6, dk=32, F=512, N=64, delta=False, **options):
    """(config, weights)"""
    config = {"model_type": "infini", "mneme_config_version": 1, "vocab_size": 256, "hidden_size": d,
              "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": dk,
              "intermediate_size": F, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_pairing": "half",
              "tie_word_embeddings": True, "segment_tokens": N, "tokenizer": "bytes",
              "memory_update": "linear_delta" if delta else "linear", "memory_eps": 1e-6,
              "first_segment": "gated_zero", **options}
    w = {"model.embed_tokens.weight": normal(generator, 256, d, std=d ** -0.5), "model.norm.weight": torch.ones(d)}
    for i in range(L):
        p = f"model.layers.{i}."
        w.update(decoder_layer(generator, p, d, H, dk, F))
        w[p + "self_attn.memory_gate"] = torch.zeros(H)
    return config, w


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.L, self.H = config["num_hidden_layers"], config["num_attention_heads"]
        self.Hk = config.get("num_key_value_heads", self.H)
        self.dk = config.get("head_dim", config["hidden_size"] // self.H)
        self.dv = config.get("value_head_dim", self.dk)
        self.N = self.align = config["segment_tokens"]
        self.delta = config["memory_update"] == "linear_delta"
        self.memory_eps = config.get("memory_eps", 1e-6)
        self.local_first = config.get("first_segment", "gated_zero") == "local"
        self.pairing, self.theta = config.get("rope_pairing", "half"), config.get("rope_theta", 10000.0)

    def practise(self, length):
        """Segments of a third of the longest sequence, a power of two from 64: three segments or more from the start."""
        self.N = self.align = min(self.config["segment_tokens"], max(64, 1 << (length // 3).bit_length() - 1))

    def is_gate(self, name):
        return name.endswith("memory_gate")

    def statistics(self):
        return {f"gate_{i}": torch.sigmoid(self.w[f"model.layers.{i}.self_attn.memory_gate"]).mean().item()
                for i in range(self.L)}

    def cost(self, filler):
        """Of the second half of each layer's memories: what filler adds to them has no gate but the key itself."""
        return sum(openness(x, filler, 1e-7) for x in self.written) / self.L

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            state[f"memory_{i}"] = torch.zeros(B, self.Hk, self.dk, self.dv, dtype=self.dtype)
            state[f"normalizer_{i}"] = torch.zeros(B, self.Hk, self.dk, dtype=self.dtype)
        return state

    def forward(self, tokens, state, dilution=None):
        B, T = tokens.shape
        S, whole = -(-T // self.N), T // self.N
        x = F.embedding(F.pad(tokens, (0, S * self.N - T)), self.w["model.embed_tokens.weight"])
        self.written = []
        if dilution is not None:
            dilution = F.pad(dilution, (0, S * self.N - T), value=1.0).view(B, S, 1, self.N, 1)
        out = {"position": state["position"] + whole * self.N}
        for i in range(self.L):
            p = f"model.layers.{i}."
            a = self.rms(x, p + "input_layernorm.weight")
            q = self.linear(a, p + "self_attn.q_proj.weight").view(B, S, self.N, self.H, self.dk)
            k = self.linear(a, p + "self_attn.k_proj.weight").view(B, S, self.N, self.Hk, self.dk)
            v = self.linear(a, p + "self_attn.v_proj.weight").view(B, S, self.N, self.Hk, self.dv)
            mixed, out[f"memory_{i}"], out[f"normalizer_{i}"] = self.mix(i, q, k, v, state, dilution, whole)
            self.written.append(sigma(k[..., self.Hk // 2:, :]).flatten(1, 2)[:, :T])
            x = x + self.linear(mixed.reshape(B, S * self.N, -1), p + "self_attn.o_proj.weight")
            x = x + self.swiglu(self.rms(x, p + "post_attention_layernorm.weight"), p)
        return self.logits(x[:, :T]), out

    def mix(self, i, q, k, v, state, dilution, whole):
        B, S, N, H, _ = q.shape
        group = H // self.Hk

        def heads(x):  # [B, S, N, h, D] -> [B, S, h, N, D]
            return x.permute(0, 1, 3, 2, 4)

        sq, sk, values = heads(sigma(q)), heads(sigma(k)), heads(v)
        M0, z0 = state[f"memory_{i}"], state[f"normalizer_{i}"]
        into = sk if dilution is None else sk * dilution  # what is written: a diluted token comes so many times
        z = torch.cat([z0[:, None], z0[:, None] + into.sum(3).cumsum(1)], 1)  # before every segment, and at the end
        if self.delta:
            M = [M0]
            for s in range(S):
                known = sk[:, s] @ M[-1] / (sk[:, s] @ z[:, s, :, :, None] + self.memory_eps)
                M.append(M[-1] + into[:, s].transpose(-1, -2) @ (values[:, s] - known))
            M = torch.stack(M, 1)
        else:
            update = into.transpose(-1, -2) @ values  # [B, S, Hk, dk, dv]
            M = torch.cat([M0[:, None], M0[:, None] + update.cumsum(1)], 1)
        read = M[:, :-1].repeat_interleave(group, 2) if group > 1 else M[:, :-1]
        norm = z[:, :-1].repeat_interleave(group, 2) if group > 1 else z[:, :-1]
        A_mem = sq @ read / (sq @ norm[..., None] + self.memory_eps)
        keys = heads(rope(k, 0, self.theta, self.pairing))
        if group > 1:
            keys, values = keys.repeat_interleave(group, 2), values.repeat_interleave(group, 2)
        scores = heads(rope(q, 0, self.theta, self.pairing) / math.sqrt(self.dk)) @ keys.transpose(-1, -2)
        scores = scores.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -math.inf)
        A_dot = scores.softmax(-1) @ values
        g = torch.sigmoid(self.w[f"model.layers.{i}.self_attn.memory_gate"])[:, None, None]
        mixed = g * A_mem + (1 - g) * A_dot
        if self.local_first and state["position"] == 0:
            mixed = torch.cat([A_dot[:, :1], mixed[:, 1:]], 1)
        return heads(mixed), M[:, whole], z[:, whole]
