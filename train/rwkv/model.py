"""RWKV-7 for training: chunks of tokens at once (the WY form of the delta rule with per-channel decay), so that only
one small matrix product per chunk is sequential.

Within a chunk, with P_t the product of its decays up to t, S_t = X_t diag(P_t) and u_t = S_{t-1} a_t:
  X_t = X_{t-1} + u_t (b_t / P_t)^T + v_t (k_t / P_t)^T,   a = -kappa, b = kappa * rate
so the u of a chunk solve a unit lower triangular system, and the state at its end is S G + N with G, N known beforehand.
A decay is at least 0.545: over 16 tokens 1 / P stays below 2e4, which f32 carries.

Letters as in reference.py; B sequences, n chunks of c tokens. Weights carry the Hugging Face names.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from trainable import Trainable, matrix, normal, openness, repeated_gate

CHUNK = 16


def new(generator, C=128, S=32, L=4, F=None, ranks=None, **options):
    """(config, weights)"""
    F = F or 4 * C
    ranks = ranks or dict(w=16, a=16, v=16, g=32)
    config = {"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "vocab_size": 256, "hidden_size": C,
              "head_dim": S, "num_hidden_layers": L, "intermediate_size": F, "hidden_act": "sqrelu", "norm_eps": 1e-5,
              "norm_first": True, "norm_bias": True, "tie_word_embeddings": False, "tokenizer": "bytes",
              **{f"{name}_low_rank_dim": ranks[f] for name, f in (("decay", "w"), ("a", "a"), ("v", "v"), ("gate", "g"))},
              **options}
    w = {}

    def norm(name):
        w[name + ".weight"], w[name + ".bias"] = torch.ones(C), torch.zeros(C)

    w["model.embeddings.weight"] = normal(generator, 256, C, std=0.5)
    w["lm_head.weight"] = matrix(generator, 256, C, 0.5)
    norm("model.norm")
    ramp = torch.linspace(0, 1, C)
    inside = torch.linspace(0, 1, S).repeat(C // S)  # each head has channels of every speed
    for i in range(L):
        p, a = f"model.layers.{i}.", f"model.layers.{i}.attn."
        if i == 0:
            norm(p + "pre_norm")
        norm(p + "attn_norm"), norm(p + "ffn_norm"), norm(a + "g_norm")
        depth = 1 - i / L
        for f, power in dict(r=0.2, w=0.9, k=0.7, v=0.7, a=0.9, g=0.2).items():
            w[a + "x_" + f] = (1 - ramp ** (power * depth)).view(1, 1, C)
        for f in "rkv":
            w[a + f"{f}_proj.weight"] = matrix(generator, C, C)
        w[a + "o_proj.weight"] = matrix(generator, C, C, 0.5)
        for f in "wavg":
            if f == "v" and i == 0:
                continue
            w[a + f"{f}_lora.lora.0.weight"] = matrix(generator, ranks[f], C, 0.5)
            w[a + f"{f}_lora.lora.2.weight"] = matrix(generator, C, ranks[f], 1.0 if f == "g" else 0.3)
        w[a + "w_lora.lora.2.bias"] = -10 + 9 * inside
        w[a + "a_lora.lora.2.bias"] = torch.full((C,), -1.0)
        if i:
            w[a + "v_lora.lora.2.bias"] = torch.full((C,), 1.0)
        w[a + "k_k"], w[a + "k_a"] = torch.full((C,), 0.85), torch.ones(C)
        w[a + "r_k"] = torch.zeros(C // S, S)
        w[p + "ffn.x_k"] = (1 - ramp ** (depth ** 4)).clone()
        w[p + "ffn.key.weight"] = matrix(generator, F, C)
        w[p + "ffn.value.weight"] = matrix(generator, C, F, 0.5)
    return config, w


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.C, self.L = config["hidden_size"], config["num_hidden_layers"]
        self.H, self.S = self.w["model.layers.0.attn.r_k"].shape
        self.eps = config.get("norm_eps", 1e-5)
        self.gates = {}

    def is_gate(self, name):
        return name.endswith(("w_lora.lora.2.bias", "a_lora.lora.2.bias"))

    def decays(self, name):
        return self.w[name].dim() == 2 and name.endswith(("proj.weight", "key.weight", "value.weight", "lm_head.weight"))

    def frozen(self, name):
        """k_a stays 1: then a closed rate gate closes the write as well, and a state can be held exactly."""
        return name.endswith("attn.k_a")

    def cost(self, filler):
        """Of the second half of each layer's heads. The others may be as busy as local context needs."""
        return sum(openness(x, filler, 1e-7) for x in self.opened) / len(self.opened)

    def statistics(self):
        return {name: value.item() for name, value in self.gates.items()}

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            for name in ("att_shift", "ffn_shift"):
                state[f"{name}_{i}"] = torch.zeros(B, self.C, dtype=self.dtype)
            state[f"wkv_{i}"] = torch.zeros(B, self.H, self.S, self.S, dtype=self.dtype)  # [head][value][key]
        return state

    def norm(self, x, name):
        return F.layer_norm(x, (self.C,), self.w[name + ".weight"], self.w[name + ".bias"], self.eps)

    def forward(self, tokens, state, dilution=None):
        T = tokens.shape[1]
        out = {"position": state["position"] + T}
        x = self.norm(F.embedding(tokens, self.w["model.embeddings.weight"]), "model.layers.0.pre_norm")
        v_first, self.opened = None, []
        for i in range(self.L):
            p = f"model.layers.{i}."
            z = self.norm(x, p + "attn_norm")
            delta = torch.cat([state[f"att_shift_{i}"][:, None], z[:, :-1]], 1) - z
            y, v_first, out[f"wkv_{i}"] = self.time_mix(i, p + "attn.", z, delta, v_first, state[f"wkv_{i}"], dilution)
            out[f"att_shift_{i}"] = z[:, -1]
            x = x + y
            z = self.norm(x, p + "ffn_norm")
            delta = torch.cat([state[f"ffn_shift_{i}"][:, None], z[:, :-1]], 1) - z
            out[f"ffn_shift_{i}"] = z[:, -1]
            k = self.linear(z + delta * self.w[p + "ffn.x_k"].flatten(), p + "ffn.key.weight").relu().square()
            x = x + self.linear(k, p + "ffn.value.weight")
        return self.linear(self.norm(x, "model.norm"), "lm_head.weight"), out

    def lora(self, x, name, act=None):
        low = self.linear(x, name + "_lora.lora.0.weight")
        return F.linear(low if act is None else act(low), self.w[name + "_lora.lora.2.weight"],
                        self.w.get(name + "_lora.lora.2.bias"))

    def time_mix(self, i, p, z, delta, v_first, wkv, dilution):
        B, T, C = z.shape
        x = {f: z + delta * self.w[p + "x_" + f].flatten() for f in "rwkvag"}
        r, k, v = (self.linear(x[f], p + f"{f}_proj.weight") for f in "rkv")
        forget = torch.sigmoid(self.lora(x["w"], p + "w", torch.tanh))
        rate = torch.sigmoid(self.lora(x["a"], p + "a"))
        g = self.lora(x["g"], p + "g", torch.sigmoid)
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.lora(x["v"], p + "v"))
        with torch.no_grad():
            self.gates[f"forget_{i}"], self.gates[f"rate_{i}"] = forget.amin(-1).mean(), rate.mean()
        self.opened.append((forget + rate)[..., self.H // 2 * self.S:])
        if dilution is not None:
            R = dilution[..., None]
            forget, rate = repeated_gate(forget, R), repeated_gate(rate, R)
        kappa = F.normalize((k * self.w[p + "k_k"].flatten()).view(B, T, self.H, self.S), dim=-1, eps=1e-12)
        k = k * (1 + (rate - 1) * self.w[p + "k_a"].flatten())
        r, k, v, rate, forget = (t.view(B, T, self.H, self.S) for t in (r, k, v, rate, forget))
        y, wkv = wkv7(wkv, r, -math.exp(-0.5) * forget, k, v, -kappa, kappa * rate)
        y = F.layer_norm(y, (self.S,), eps=self.S * self.eps).flatten(2)
        y = y * self.w[p + "g_norm.weight"] + self.w[p + "g_norm.bias"]
        bonus = (r * k * self.w[p + "r_k"]).sum(-1, keepdim=True) * v
        return self.linear((y + bonus.flatten(2)) * g, p + "o_proj.weight"), v_first, wkv


def wkv7(S, r, log_d, k, v, a, b):
    """S [B, H, value, key], the rest [B, T, H, S] -> y [B, T, H, S] and S after T tokens."""
    B, T, H, N = r.shape
    n = -(-T // CHUNK)

    def chunks(t):  # a padded row neither decays nor writes
        return F.pad(t, (0, 0, 0, 0, 0, n * CHUNK - T)).view(B, n, CHUNK, H, N).permute(0, 1, 3, 2, 4)

    r, log_d, k, v, a, b = (chunks(t) for t in (r, log_d, k, v, a, b))
    log_P = log_d.cumsum(3)
    P, inverse, rest = log_P.exp(), (-log_P).exp(), (log_P[..., -1:, :] - log_P).exp()
    left = torch.cat([a * (log_P - log_d).exp(), r * P], 3)
    scores = left @ torch.cat([b * inverse, k * inverse], 3).transpose(-1, -2)  # [.., 2c, 2c]
    before = torch.ones(CHUNK, CHUNK, dtype=r.dtype).tril(-1)
    until = torch.ones(CHUNK, CHUNK, dtype=r.dtype).tril()
    A_ab, A_ak = scores[..., :CHUNK, :CHUNK] * before, scores[..., :CHUNK, CHUNK:] * before
    A_rb, A_rk = scores[..., CHUNK:, :CHUNK] * until, scores[..., CHUNK:, CHUNK:] * until
    # (I - A)^-1 (known) for a strictly lower triangular A: (I + A)(I + A^2)(I + A^4)(I + A^8).
    solved = torch.cat([left[..., :CHUNK, :], A_ak @ v], -1)
    power, size = A_ab, 1
    while size < CHUNK:
        solved = solved + power @ solved
        size *= 2
        if size < CHUNK:
            power = power @ power
    u_of_S, u_fixed = solved.chunk(2, -1)
    read, fixed = (left[..., CHUNK:, :] + A_rb @ u_of_S, A_rb @ u_fixed + A_rk @ v)
    into = b * rest
    G = u_of_S.transpose(-1, -2) @ into + torch.diag_embed(P[..., -1, :])
    added = u_fixed.transpose(-1, -2) @ into + v.transpose(-1, -2) @ (k * rest)
    states = []
    for G_i, added_i in zip(G.unbind(1), added.unbind(1)):  # slices would each cost a gradient of full size
        states.append(S)
        S = S @ G_i + added_i
    y = read @ torch.stack(states, 1).transpose(-1, -2) + fixed
    return y.permute(0, 1, 3, 2, 4).reshape(B, n * CHUNK, H, N)[:, :T], S
