"""RWKV-4, 5.1, 5.2 and 6 for training: matrices over whole stretches, the recurrence token by token for all sequences
and heads at once. (Their decays have no lower bound, so the chunked form of RWKV-7's does not carry over.)

Letters as in reference.py; B sequences, T tokens. Weights carry the names of the Hugging Face files, which `hf_names`
maps to those of the reference.
"""

import torch
import torch.nn.functional as F

from rwkv.reference import hf_names
from trainable import Trainable, matrix, normal, repeated_gate


def new(generator, version="6", C=128, S=32, L=4, F=None, R=16, Rd=16, **options):
    """(config, weights)"""
    F = F or 4 * C
    S = C if version == "4" else S
    H = C // S
    config = {"model_type": {"4": "rwkv", "5.1": "rwkv5", "5.2": "rwkv5", "6": "rwkv6"}[version], "vocab_size": 256,
              "hidden_size": C, "attention_hidden_size": C, "num_hidden_layers": L, "intermediate_size": F,
              "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "tokenizer": "bytes"}
    if version != "4":
        config.update(head_size=S, head_size_divisor=8, num_attention_heads=H)
    config.update(options)
    w = {}

    def norm(name):
        w[name + ".weight"], w[name + ".bias"] = torch.ones(C), torch.zeros(C)

    w["rwkv.embeddings.weight"], w["head.weight"] = normal(generator, 256, C, std=0.5), matrix(generator, 256, C, 0.5)
    norm("rwkv.ln_out")
    ramp, inside = torch.linspace(0, 1, C), torch.linspace(0, 1, S).repeat(H)
    for i in range(L):
        p, a, f = (f"rwkv.blocks.{i}." + part for part in ("", "attention.", "feed_forward."))
        if i == 0:
            norm(p + "pre_ln")
        norm(p + "ln1"), norm(p + "ln2")
        gate = version in ("5.2", "6")
        for name in ["receptance", "key", "value"] + ["gate"] * gate:
            w[a + name + ".weight"] = matrix(generator, C, C)
        w[a + "output.weight"] = matrix(generator, C, C, 0.5)
        now = (ramp ** (1 - i / L)).view(1, 1, C)  # weight of the current token
        if version == "6":
            for letter in "xwkvrg":
                w[a + "time_maa_" + letter] = 1 - now
            w[a + "time_maa_w1"], w[a + "time_maa_w2"] = normal(generator, C, 5 * R, std=1e-2), normal(generator, 5, R, C, std=1e-2)
            w[a + "time_decay"] = (2 - 9 * inside).view(1, 1, C)
            w[a + "time_decay_w1"] = normal(generator, C, Rd, std=C ** -0.5)
            w[a + "time_decay_w2"] = normal(generator, Rd, C, std=0.3 * Rd ** -0.5)
            w[a + "time_faaaa"] = normal(generator, H, S, std=0.3)
            for letter in "kr":
                w[f + "time_maa_" + letter] = 1 - now
        else:
            for word in ["key", "value", "receptance"] + ["gate"] * gate:
                w[a + "time_mix_" + word] = now.clone()
            for word in ("key", "receptance"):
                w[f + "time_mix_" + word] = now.clone()
            shape = {"4": (C,), "5.1": (H,), "5.2": (H, S)}[version]
            w[a + "time_decay"] = (2 - 9 * torch.linspace(0, 1, shape[-1])).expand(shape).clone()
            w[a + ("time_faaaa" if version == "5.2" else "time_first")] = normal(generator, *shape, std=0.3)
        if version != "4":
            norm(a + "ln_x")
        w[f + "key.weight"], w[f + "receptance.weight"] = matrix(generator, F, C), matrix(generator, C, C)
        w[f + "value.weight"] = matrix(generator, C, F, 0.5)
    return config, w


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.L, self.eps = config["num_hidden_layers"], config.get("layer_norm_epsilon", 1e-5)
        self.version = {"rwkv": "4", "rwkv5": "5.1", "rwkv6": "6"}[config["model_type"]]
        if self.version == "5.1" and "rwkv.blocks.0.attention.time_faaaa" in self.w:
            self.version = "5.2"
        names = hf_names(self.version, self.L, "rwkv.blocks.0.attention.gate.weight" in self.w)
        assert not any(transposed for _, _, transposed in names)
        self.n = {a: self.w[b] for a, b, _ in names if b in self.w}  # the reference's names
        self.C = self.n["emb.weight"].shape[1]
        if self.version != "4":
            of = {"5.1": "time_decay", "5.2": "time_faaaa", "6": "time_faaaa"}[self.version]
            self.H = self.n["blocks.0.att." + of].shape[0]
            self.S = self.C // self.H
        self.head_eps = self.eps * config.get("head_size_divisor", 8) ** 2

    def is_gate(self, name):
        return name.endswith("time_decay")

    def decays(self, name):
        return self.w[name].dim() == 2 and name.endswith(
            ("key.weight", "value.weight", "receptance.weight", "gate.weight", "output.weight", "head.weight"))

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            for name in ("att_shift", "ffn_shift"):
                state[f"{name}_{i}"] = torch.zeros(B, self.C, dtype=self.dtype)
            if self.version == "4":
                for name, start in (("numerator", 0.0), ("denominator", 0.0), ("exponent", -1e30)):
                    state[f"{name}_{i}"] = torch.full((B, self.C), start, dtype=self.dtype)
            else:
                state[f"wkv_{i}"] = torch.zeros(B, self.H, self.S, self.S, dtype=self.dtype)  # [head][value][key]
        return state

    def norm(self, x, name):
        return F.layer_norm(x, (self.C,), self.n[name + ".weight"], self.n[name + ".bias"], self.eps)

    def matrix(self, x, name):
        return F.linear(x, self.n[name])

    def vector(self, name):
        return self.n[name].flatten()

    def forward(self, tokens, state, dilution=None):
        out = {"position": state["position"] + tokens.shape[1]}
        x = self.norm(F.embedding(tokens, self.n["emb.weight"]), "blocks.0.ln0")
        mix = {"4": self.time_mix_4, "6": self.time_mix_6}.get(self.version, self.time_mix_5)
        for i in range(self.L):
            for part, norm, run in (("att", "ln1", mix), ("ffn", "ln2", self.channel_mix)):
                z = self.norm(x, f"blocks.{i}.{norm}")
                previous = torch.cat([state[f"{part}_shift_{i}"][:, None], z[:, :-1]], 1)
                out[f"{part}_shift_{i}"] = z[:, -1]
                x = x + run(i, z, previous, state, out, dilution)
        return self.matrix(self.norm(x, "ln_out"), "head.weight"), out

    def channel_mix(self, i, z, previous, state, out, dilution):
        p = f"blocks.{i}.ffn."
        if self.version == "6":  # weighs the previous token
            xk, xr = (z + (previous - z) * self.vector(p + "time_maa_" + f) for f in "kr")
        else:  # weighs the current one
            xk, xr = (z * m + previous * (1 - m) for m in (self.vector(p + "time_mix_" + f) for f in "kr"))
        k = self.matrix(xk, p + "key.weight").relu().square()
        return torch.sigmoid(self.matrix(xr, p + "receptance.weight")) * self.matrix(k, p + "value.weight")

    def time_mix_4(self, i, z, previous, state, out, dilution):
        p = f"blocks.{i}.att."
        xr, xk, xv = (z * m + previous * (1 - m) for m in (self.vector(p + "time_mix_" + f) for f in "rkv"))
        r = torch.sigmoid(self.matrix(xr, p + "receptance.weight"))
        k, v = self.matrix(xk, p + "key.weight"), self.matrix(xv, p + "value.weight")
        u, d = self.vector(p + "time_first"), -torch.exp(self.vector(p + "time_decay"))
        aa, bb, pp = (state[f"{name}_{i}"] for name in ("numerator", "denominator", "exponent"))
        rows = []
        for k_t, v_t in zip(k.unbind(1), v.unbind(1)):
            q = torch.maximum(pp, u + k_t)
            e1, e2 = torch.exp(pp - q), torch.exp(u + k_t - q)
            rows.append((e1 * aa + e2 * v_t) / (e1 * bb + e2))
            q = torch.maximum(pp + d, k_t)
            e1, e2 = torch.exp(pp + d - q), torch.exp(k_t - q)
            aa, bb, pp = e1 * aa + e2 * v_t, e1 * bb + e2, q
        out[f"numerator_{i}"], out[f"denominator_{i}"], out[f"exponent_{i}"] = aa, bb, pp
        return self.matrix(r * torch.stack(rows, 1), p + "output.weight")

    def recurrence(self, i, r, k, v, d, u, state, out, dilution):
        """r, k, v [B, T, C]; d [..., H, S or 1] per token or for all; u likewise. -> [B, T, C] after the head norm."""
        r, k, v = (t.view(*t.shape[:2], self.H, self.S) for t in (r, k, v))
        d = d.expand_as(k)
        if dilution is not None:
            d = 1 - repeated_gate(1 - d, dilution[..., None, None])
        S, rows = state[f"wkv_{i}"], []
        for r_t, k_t, v_t, d_t in zip(*(t.unbind(1) for t in (r, k, v, d))):
            kv = v_t[..., :, None] * k_t[..., None, :]
            rows.append(((S + u[:, None] * kv) @ r_t[..., None])[..., 0])
            S = S * d_t[..., None, :] + kv
        out[f"wkv_{i}"] = S
        y = F.layer_norm(torch.stack(rows, 1), (self.S,), eps=self.head_eps).flatten(2)
        return y * self.n[f"blocks.{i}.att.ln_x.weight"] + self.n[f"blocks.{i}.att.ln_x.bias"]

    def time_mix_5(self, i, z, previous, state, out, dilution):
        p = f"blocks.{i}.att."

        def shifted(f):
            m = self.vector(p + "time_mix_" + f)
            return z * m + previous * (1 - m)

        r, k, v = (self.matrix(shifted(name[0]), p + name + ".weight") for name in ("receptance", "key", "value"))
        d = torch.exp(-torch.exp(self.n[p + "time_decay"].view(self.H, -1)))
        u = torch.exp(self.n[p + "time_first"].view(self.H, -1)) if self.version == "5.1" else self.n[p + "time_faaaa"].view(self.H, -1)
        y = self.recurrence(i, r, k, v, d, u, state, out, dilution)
        if p + "gate.weight" in self.n:
            y = y * F.silu(self.matrix(shifted("g"), p + "gate.weight"))
        return self.matrix(y, p + "output.weight")

    def time_mix_6(self, i, z, previous, state, out, dilution):
        p = f"blocks.{i}.att."
        delta = previous - z
        low = torch.tanh((z + delta * self.vector(p + "time_maa_x")) @ self.n[p + "time_maa_w1"]).chunk(5, -1)
        x = {f: z + delta * (self.vector(p + "time_maa_" + f) + t @ up) for f, t, up in zip("wkvrg", low, self.n[p + "time_maa_w2"])}
        r, k, v = (self.matrix(x[name[0]], p + name + ".weight") for name in ("receptance", "key", "value"))
        omega = self.vector(p + "time_decay") + torch.tanh(x["w"] @ self.n[p + "time_decay_w1"]) @ self.n[p + "time_decay_w2"]
        d = torch.exp(-torch.exp(omega)).view(*z.shape[:2], self.H, self.S)
        y = self.recurrence(i, r, k, v, d, self.n[p + "time_faaaa"].view(self.H, self.S), state, out, dilution)
        return self.matrix(y * F.silu(self.matrix(x["g"], p + "gate.weight")), p + "output.weight")
