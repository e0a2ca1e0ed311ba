"""RWKV-4 (arXiv:2305.13048), 5.1, 5.2, 6 (arXiv:2404.05892) and 7 (arXiv:2503.14456), token by token.

Letters: L layers, C width, H heads, S head size, V vocabulary. x is one token's residual [C].

Weights carry the names of the original checkpoints (blocks.0.att.key.weight): matrices are
[out, in], low-rank factors are stored for multiplication from the right. `hf_names` maps the Hugging Face
layouts to them; docs/checkpoint_format.md describes those and the state.
"""

import math

import torch
import torch.nn.functional as F

from checkpoint import read_folder


def recognise(w):
    """"4", "5.1", "5.2", "6" or "7" from the tensors alone."""
    if "blocks.0.att.r_k" in w:
        return "7"
    if "blocks.0.att.time_maa_x" in w:
        return "6"
    if "blocks.0.att.ln_x.weight" not in w:
        return "4"
    return "5.2" if "blocks.0.att.time_faaaa" in w else "5.1"


class Rwkv:
    def __init__(self, w, eps=1e-5, head_norm_eps=64e-5, dtype=torch.float64):
        self.version = recognise(w)
        self.w = {name: t.to(dtype) for name, t in w.items()}
        self.dtype, self.eps, self.head_norm_eps = dtype, eps, head_norm_eps
        self.vocab_size, self.C = w["emb.weight"].shape
        self.L = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
        if self.version != "4":
            heads = {"5.1": "time_decay", "5.2": "time_faaaa", "6": "time_faaaa", "7": "r_k"}[self.version]
            self.H = w["blocks.0.att." + heads].shape[0]
            self.S = self.C // self.H

    def schema(self):
        """(layer, name, shape), in order."""
        for i in range(self.L):
            yield i, "att_shift", (self.C,)
            yield i, "ffn_shift", (self.C,)
            if self.version == "4":
                yield i, "numerator", (self.C,)
                yield i, "denominator", (self.C,)
                yield i, "exponent", (self.C,)
            else:
                yield i, "wkv", (self.H, self.S, self.S)  # [head][value][key]

    def initial_state(self):
        state = {(i, name): torch.zeros(shape, dtype=self.dtype) for i, name, shape in self.schema()}
        for i in range(self.L):
            if self.version == "4":
                state[i, "exponent"] -= 1e30
        state["position"] = 0
        return state

    @torch.no_grad()
    def forward(self, state, tokens):
        """Logits [T, V] after every token; `state` moves on."""
        time_mix = {"4": self.time_mix_4, "5.1": self.time_mix_5, "5.2": self.time_mix_5, "6": self.time_mix_6,
                    "7": self.time_mix_7}[self.version]
        channel_mix = self.channel_mix_7 if self.version == "7" else self.channel_mix
        rows = []
        for token in tokens:
            x = self.norm(self.w["emb.weight"][token], "blocks.0.ln0")
            self.v_first = None  # layer 0's value of this token
            for i in range(self.L):
                z = self.norm(x, f"blocks.{i}.ln1")
                x = x + time_mix(state, i, z, state[i, "att_shift"])
                state[i, "att_shift"] = z
                z = self.norm(x, f"blocks.{i}.ln2")
                x = x + channel_mix(i, z, state[i, "ffn_shift"])
                state[i, "ffn_shift"] = z
            rows.append(self.w["head.weight"] @ self.norm(x, "ln_out"))
            state["position"] += 1
        return torch.stack(rows)

    def norm(self, x, name):
        return F.layer_norm(x, (self.C,), self.w[name + ".weight"], self.w[name + ".bias"], self.eps)

    def head_norm(self, y, i):
        """y [H, S] normalised head by head -> [C]."""
        y = F.layer_norm(y, (self.S,), eps=self.head_norm_eps).flatten()
        return y * self.w[f"blocks.{i}.att.ln_x.weight"] + self.w[f"blocks.{i}.att.ln_x.bias"]

    def vector(self, name):
        return self.w[name].flatten()

    # ---- channel mix

    def channel_mix(self, i, z, prev):
        p = f"blocks.{i}.ffn."
        if self.version == "6":  # weighs the previous token
            xk, xr = (z + (prev - z) * self.vector(p + "time_maa_" + f) for f in "kr")
        else:  # weighs the current token
            xk, xr = (z * m + prev * (1 - m) for m in (self.vector(p + "time_mix_" + f) for f in "kr"))
        k = (self.w[p + "key.weight"] @ xk).relu() ** 2
        return torch.sigmoid(self.w[p + "receptance.weight"] @ xr) * (self.w[p + "value.weight"] @ k)

    def channel_mix_7(self, i, z, prev):
        p = f"blocks.{i}.ffn."
        x = z + (prev - z) * self.vector(p + "x_k")
        return self.w[p + "value.weight"] @ (self.w[p + "key.weight"] @ x).relu() ** 2

    # ---- time mix

    def time_mix_4(self, state, i, z, prev):
        p = f"blocks.{i}.att."
        xr, xk, xv = (z * m + prev * (1 - m) for m in (self.vector(p + "time_mix_" + f) for f in "rkv"))
        r = torch.sigmoid(self.w[p + "receptance.weight"] @ xr)
        k, v = self.w[p + "key.weight"] @ xk, self.w[p + "value.weight"] @ xv
        u, d = self.vector(p + "time_first"), -torch.exp(self.vector(p + "time_decay"))
        aa, bb, pp = (state[i, name] for name in ("numerator", "denominator", "exponent"))
        q = torch.maximum(pp, u + k)
        e1, e2 = torch.exp(pp - q), torch.exp(u + k - q)
        wkv = (e1 * aa + e2 * v) / (e1 * bb + e2)
        q = torch.maximum(pp + d, k)
        e1, e2 = torch.exp(pp + d - q), torch.exp(k - q)
        state[i, "numerator"], state[i, "denominator"], state[i, "exponent"] = e1 * aa + e2 * v, e1 * bb + e2, q
        return self.w[p + "output.weight"] @ (r * wkv)

    def wkv_5(self, state, i, r, k, v, d, u):
        """All [H, S]. The output sees the state before this token, and this token weighed by u."""
        S = state[i, "wkv"]
        kv = v[:, :, None] * k[:, None, :]  # [H, value, key]
        y = ((S + u[:, None, :] * kv) * r[:, None, :]).sum(-1)
        state[i, "wkv"] = S * d[:, None, :] + kv
        return y

    def time_mix_5(self, state, i, z, prev):
        p = f"blocks.{i}.att."

        def shifted(f):
            m = self.vector(p + "time_mix_" + f)
            return z * m + prev * (1 - m)

        r, k, v = (self.w[p + name + ".weight"] @ shifted(name[0]) for name in ("receptance", "key", "value"))
        d = torch.exp(-torch.exp(self.w[p + "time_decay"].view(self.H, -1)))  # [H, S], or [H, 1] in 5.1
        if self.version == "5.1":
            u = torch.exp(self.w[p + "time_first"].view(self.H, -1))
        else:
            u = self.w[p + "time_faaaa"].view(self.H, -1)
        heads = (t.view(self.H, self.S) for t in (r, k, v))
        y = self.head_norm(self.wkv_5(state, i, *heads, d, u), i)
        if p + "gate.weight" in self.w:
            y = y * F.silu(self.w[p + "gate.weight"] @ shifted("g"))
        return self.w[p + "output.weight"] @ y

    def time_mix_6(self, state, i, z, prev):
        p = f"blocks.{i}.att."
        delta = prev - z
        low = torch.tanh((z + delta * self.vector(p + "time_maa_x")) @ self.w[p + "time_maa_w1"]).view(5, -1)
        x = {}
        for f, t, up in zip("wkvrg", low, self.w[p + "time_maa_w2"]):
            x[f] = z + delta * (self.vector(p + "time_maa_" + f) + t @ up)
        r, k, v = (self.w[p + name + ".weight"] @ x[name[0]] for name in ("receptance", "key", "value"))
        omega = self.vector(p + "time_decay") + torch.tanh(x["w"] @ self.w[p + "time_decay_w1"]) @ self.w[p + "time_decay_w2"]
        d = torch.exp(-torch.exp(omega))
        heads = (t.view(self.H, self.S) for t in (r, k, v, d))
        y = self.head_norm(self.wkv_5(state, i, *heads, self.w[p + "time_faaaa"].view(self.H, self.S)), i)
        return self.w[p + "output.weight"] @ (y * F.silu(self.w[p + "gate.weight"] @ x["g"]))

    def time_mix_7(self, state, i, z, prev):
        p = f"blocks.{i}.att."
        w = self.w
        x = {f: z + (prev - z) * self.vector(p + "x_" + f) for f in "rwkvag"}
        r, k, v = (w[p + name + ".weight"] @ x[name[0]] for name in ("receptance", "key", "value"))
        omega = self.vector(p + "w0") + torch.tanh(x["w"] @ w[p + "w1"]) @ w[p + "w2"]
        d = torch.exp(-math.exp(-0.5) * torch.sigmoid(omega))
        a = torch.sigmoid(self.vector(p + "a0") + x["a"] @ w[p + "a1"] @ w[p + "a2"])
        g = torch.sigmoid(x["g"] @ w[p + "g1"]) @ w[p + "g2"]
        if i == 0:
            self.v_first = v
        else:
            v = v + (self.v_first - v) * torch.sigmoid(self.vector(p + "v0") + x["v"] @ w[p + "v1"] @ w[p + "v2"])
        kappa = F.normalize((k * self.vector(p + "k_k")).view(self.H, self.S), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * self.vector(p + "k_a"))
        r, k, v, a, d = (t.view(self.H, self.S) for t in (r, k, v, a, d))
        S = state[i, "wkv"]
        s = -(S * kappa[:, None, :]).sum(-1)  # [H, value]: what the old state holds under kappa
        S = S * d[:, None, :] + s[:, :, None] * (kappa * a)[:, None, :] + v[:, :, None] * k[:, None, :]
        state[i, "wkv"] = S
        y = self.head_norm((S * r[:, None, :]).sum(-1), i)
        bonus = (r * k * w[p + "r_k"].view(self.H, self.S)).sum(-1, keepdim=True) * v
        return w[p + "output.weight"] @ ((y + bonus.flatten()) * g)


# ---- Hugging Face layouts


def hf_names(version, L, gate=None):
    """[(original name, Hugging Face name, whether one is the transpose of the other)] for L layers.
    `gate`: whether time mix has one (None: as the version usually has)."""
    if gate is None:
        gate = version in ("5.2", "6")
    if version == "7":
        return _hf_names_7(L)
    names = [("emb.weight", "rwkv.embeddings.weight"), ("head.weight", "head.weight")]
    norms = [("ln_out", "rwkv.ln_out"), ("blocks.0.ln0", "rwkv.blocks.0.pre_ln")]
    for i in range(L):
        p, q = f"blocks.{i}.", f"rwkv.blocks.{i}."
        norms += [(p + "ln1", q + "ln1"), (p + "ln2", q + "ln2")]
        att, ffn = ["time_decay"], []
        long = dict(k="key", v="value", r="receptance", g="gate")
        matrices = ["receptance", "key", "value", "output"]
        if version == "6":
            att += ["time_faaaa", "time_decay_w1", "time_decay_w2", "time_maa_w1", "time_maa_w2"]
            att += ["time_maa_" + f for f in "xwkvrg"]
            ffn += ["time_maa_k", "time_maa_r"]
        else:
            att += ["time_faaaa" if version == "5.2" else "time_first"]
            shifts = "kvrg" if gate else "kvr"
            names += [(p + "att.time_mix_" + f, q + "attention.time_mix_" + long[f]) for f in shifts]
            names += [(p + "ffn.time_mix_" + f, q + "feed_forward.time_mix_" + long[f]) for f in "kr"]
        if gate:
            matrices.append("gate")
        if version != "4":
            norms += [(p + "att.ln_x", q + "attention.ln_x")]
        names += [(p + "att." + n, q + "attention." + n) for n in att + [m + ".weight" for m in matrices]]
        names += [(p + "ffn." + n, q + "feed_forward." + n)
                  for n in ffn + ["key.weight", "receptance.weight", "value.weight"]]
    names += [(a + end, b + end) for a, b in norms for end in (".weight", ".bias")]
    return [(a, b, False) for a, b in names]


def _hf_names_7(L):
    same = [("emb.weight", "model.embeddings.weight"), ("head.weight", "lm_head.weight")]
    norms = [("ln_out", "model.norm"), ("blocks.0.ln0", "model.layers.0.pre_norm")]
    transposed = []
    for i in range(L):
        p, q = f"blocks.{i}.", f"model.layers.{i}."
        norms += [(p + "ln1", q + "attn_norm"), (p + "ln2", q + "ffn_norm"), (p + "att.ln_x", q + "attn.g_norm")]
        same += [(p + "att.x_" + f, q + "attn.x_" + f) for f in "rwkvag"]
        same += [(p + "att." + n, q + "attn." + n) for n in ("k_k", "k_a", "r_k")]
        same += [(p + f"att.{n}.weight", q + f"attn.{n[0]}_proj.weight")
                 for n in ("receptance", "key", "value", "output")]
        same += [(p + "ffn." + n, q + "ffn." + n) for n in ("x_k", "key.weight", "value.weight")]
        for f in "wavg":
            if f == "v" and i == 0:
                continue
            transposed += [(p + f"att.{f}1", q + f"attn.{f}_lora.lora.0.weight"),
                           (p + f"att.{f}2", q + f"attn.{f}_lora.lora.2.weight")]
            if f != "g":
                same.append((p + f"att.{f}0", q + f"attn.{f}_lora.lora.2.bias"))
    same += [(a + end, b + end) for a, b in norms for end in (".weight", ".bias")]
    return [(a, b, False) for a, b in same] + [(a, b, True) for a, b in transposed]


def load(path, dtype=torch.float64):
    """A Hugging Face folder."""
    config, tensors = read_folder(path)
    L = config["num_hidden_layers"]
    version = {"rwkv": "4", "rwkv6": "6", "rwkv7": "7"}.get(config["model_type"])
    if version is None:
        version = "5.2" if "rwkv.blocks.0.attention.time_faaaa" in tensors else "5.1"
    w = {}
    gate = "rwkv.blocks.0.attention.gate.weight" in tensors
    for name, hf, transpose in hf_names(version, L, gate):
        w[name] = tensors.pop(hf).T.contiguous() if transpose else tensors.pop(hf)
    assert not tensors, sorted(tensors)
    if version == "7":
        eps = config.get("norm_eps", 1e-5)
        return Rwkv(w, eps, w["blocks.0.att.r_k"].shape[1] * eps, dtype)
    eps = config.get("layer_norm_epsilon", 1e-5)
    return Rwkv(w, eps, eps * config.get("head_size_divisor", 8) ** 2, dtype)
