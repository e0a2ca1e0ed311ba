#!/usr/bin/python3
"""Checks the reference: numbers worked out by hand, gradients against autograd, the closed form of a
commit and the dual form of a token-wise read, and whole texts by masks instead of rings.

  train/titans/check.py
"""

import itertools
import math
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from titans.reference import Memory, Titans, l2  # noqa: E402
from layers import rms, rope, silu, swiglu  # noqa: E402

T64 = dict(dtype=torch.float64)


def tensor(values):
    return torch.tensor(values, **T64)


def bare(D, init, clip=0.0, residual=False):
    """A model that only has memories, H = 1."""
    config = dict(variant="lmm", vocab_size=1, hidden_size=2, num_hidden_layers=1, memory_heads=1, memory_head_dim=2,
                  memory_depth=D, memory_chunk_tokens=2, gradient_clip=clip, memory_residual=residual, decay_to="zero")
    return Titans(config, {f"model.layers.0.memory.init.{l}": m[None] for l, m in enumerate(init)})


def worked_examples():
    M = tensor([[.1, .2], [.3, -.1]])
    k, v = tensor([[[1, 0]], [[.6, .8]]]), tensor([[[.5, -1]], [[1, 2]]])
    rates = tensor([[[.5], [.9], [.1]], [[.4], [.5], [.2]]])
    for clip, weights, momentum in ((0.0, [[.5, -.1656], [.44, .5552]], [[.268, .1704], [.224, .6272]]),
                                    (1.0, [[.358268783, -.246626085], [.323627647, .229357412]],
                                     [[.159777677, -.011152766], [.107627647, .301357412]])):
        model = bare(1, [M], clip)
        state = model.initial_state()
        for t in range(2):
            model.queue(state, 0, k[t], v[t], rates[t])
            state["position"] += 1
        assert torch.allclose(state[0, "memory_0"][0], tensor(weights), atol=1e-9)
        assert torch.allclose(state[0, "momentum_0"][0], tensor(momentum), atol=1e-9)
    W1, W2 = tensor([[.5, -.3, .2], [.1, .4, -.6]]), tensor([[.2, -.1], [.3, .5], [-.4, .1]])
    for residual, read in ((False, [.087983947, -.095599332]), (True, [.843347785, .454179663])):
        model = bare(2, [W1, W2], 1.0, residual)
        weights, S = [W1[None], W2[None]], [torch.zeros(1, 2, 3, **T64), torch.zeros(1, 3, 2, **T64)]
        weights, _ = model.step(0, weights, weights, S, tensor([[.6, .8]]), tensor([[.5, -1]]), tensor([[.5], [0], [.1]]))
        assert torch.allclose(model.memories[0].read(weights, tensor([[.8, .6]]))[0], tensor(read), atol=1e-8)


def gradients():
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, **T64)

    for D, kind, residual, norm in itertools.product((1, 2, 3), ("silu", "gelu_tanh", "gelu_erf"), (False, True),
                                                     ("none", "rms", "layer")):
        widths = [5] + [7] * (D - 1) + [5]
        weights = [normal(2, a, b).requires_grad_() for a, b in zip(widths, widths[1:])]
        memory = Memory(kind, residual, norm, normal(2, 5), 1e-6)
        k, v = normal(2, 5), normal(2, 5)
        loss = (memory.read(weights, k) - v).square().sum() / 2
        expected = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for (a, delta), u in zip(memory.gradient(weights, k, v), expected):
                assert (a[:, :, None] * delta[:, None, :] - u).abs().max() < 1e-11, (D, kind, residual, norm)


def closed_commit(model, i, weights, momentum, k, v, rates):
    """A whole chunk at once, rows [b, H, ...], rates [b, 3, H]: coefficients by a reverse recursion."""
    b, H = k.shape[0], model.H
    rows = [model.memories[i].gradient(weights, k[j], v[j]) for j in range(b)]
    out_w, out_s = [m.clone() for m in weights], [m.clone() for m in momentum]
    for h in range(H):
        theta, eta, alpha = (rates[:, n, h] for n in range(3))
        if model.clip:
            norms = torch.stack([sum(a[h].square().sum() * g[h].square().sum() for a, g in row) for row in rows]).sqrt()
            theta = theta * (model.clip / norms).clamp(max=1)
        e, a, G = [None] * b, [None] * b, 1.0
        e[-1] = a[-1] = tensor(1.0)
        for j in range(b - 2, -1, -1):
            e[j] = eta[j + 1] * e[j + 1]
            G = G * (1 - alpha[j + 1])
            a[j] = G + eta[j + 1] * a[j + 1]
        carry, p, beta = eta[0] * e[0], eta[0] * a[0], (1 - alpha[0]) * G
        for l, (W, S) in enumerate(zip(weights, momentum)):
            T = model.init_weights(i)[l][h] if model.decay_to_init else torch.zeros_like(W[h])
            A = torch.stack([row[l][0][h] for row in rows])
            Delta = torch.stack([row[l][1][h] for row in rows])
            out_w[l][h] = W[h] + (1 - beta) * (T - W[h]) + p * S[h] - (A * (theta * torch.stack(a))[:, None]).T @ Delta
            out_s[l][h] = carry * S[h] - (A * (theta * torch.stack(e))[:, None]).T @ Delta
    return out_w, out_s


def random_model(**options):
    config = dict(vocab_size=40, hidden_size=12, num_hidden_layers=2, intermediate_size=16, memory_heads=2,
                  memory_head_dim=5, memory_depth=2, memory_hidden_dim=6, memory_chunk_tokens=4,
                  num_attention_heads=2, persistent_tokens=3, window_tokens=6)
    config.update(options)
    generator = torch.Generator().manual_seed(7)

    def normal(*shape, std=1.0, mean=0.0):
        return mean + std * torch.randn(*shape, generator=generator, **T64)

    d, F, H, e, h, K = 12, 16, 2, 5, 6, 4
    w = {"model.embed_tokens.weight": normal(40, d), "lm_head.weight": normal(40, d, std=.5),
         "model.norm.weight": normal(d, mean=1, std=.1)}
    for i in range(2):
        p = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm", "attention_layernorm", "memory.input_norm",
                     "mix.attention_norm", "mix.memory_norm"):
            w[p + name + ".weight"] = normal(d, mean=1, std=.1)
        for name, rows, columns in [("mlp.gate_proj", F, d), ("mlp.up_proj", F, d), ("mlp.down_proj", d, F),
                                    ("mix.o_proj", d, d), ("memory.o_proj", d, H * e), ("memory.o2_proj", d, H * e),
                                    ("memory.output_gate", H * e, d), ("memory.output_gate2", H * e, d),
                                    ("memory.gate", 3 * H, d)]:
            w[p + name + ".weight"] = normal(rows, columns, std=1.5 / columns ** .5)
        w[p + "memory.gate.bias"] = tensor([0, 0, 0, 0, -2, -2])
        for s in ("q", "k", "v", "q2"):
            w[p + f"memory.{s}_proj.weight"] = normal(H * e, d, std=d ** -.5)
            w[p + f"memory.{s}_conv.weight"] = normal(H * e, K, std=.5)
        for s in ("q", "k", "v", "o"):
            w[p + f"self_attn.{s}_proj.weight"] = normal(d, d, std=1.3 / d ** .5)
        w[p + "self_attn.persistent"] = normal(3, d)
        w[p + "memory.output_norm.weight"], w[p + "memory.output_norm2.weight"] = normal(e, mean=1), normal(e, mean=1)
        w[p + "memory.init.0"], w[p + "memory.init.1"] = normal(H, e, h, std=.4), normal(H, h, e, std=.4)
    return Titans(config, w)


def whole_text(model, tokens):
    """The same functions with all rows at hand: convolutions by padding, attention by masks, commits in
    closed form (read_mode chunk)."""
    T, H, e, b, d = len(tokens), model.H, model.e, model.b, model.d
    x = model.w["model.embed_tokens.weight"][torch.tensor(tokens)]
    at = torch.arange(T)
    for i in range(model.L):
        w = {n[len(f"model.layers.{i}."):]: t for n, t in model.w.items() if n.startswith(f"model.layers.{i}.")}
        nh, hd = model.heads, d // model.heads

        def conv(stream, x):
            z = torch.cat([torch.zeros(model.K - 1, H * e, **T64), x @ w[f"memory.{stream}_proj.weight"].T])
            taps = w[f"memory.{stream}_conv.weight"]
            return silu(sum(taps[:, s] * z[s:s + T] for s in range(model.K))).view(T, H, e)

        def rates_of(x):
            s = torch.sigmoid(x @ w["memory.gate.weight"].T + w["memory.gate.bias"]).view(T, 3, H)
            g = (s - model.kappa).clamp(min=0) / (1 - model.kappa)
            return torch.stack([g[:, 0] * model.theta_max, s[:, 1] * model.eta_max, g[:, 2]], 1)

        def memories(k, v, rates):
            """The weights every token reads."""
            W, S, seen = model.init_weights(i), [torch.zeros_like(m) for m in model.init_weights(i)], []
            for t in range(T):
                seen.append(W)
                if t % b == b - 1:
                    chunk = slice(t - b + 1, t + 1)
                    W, S = closed_commit(model, i, W, S, k[chunk], v[chunk], rates[chunk])
            return seen

        def read(seen, q, which, x):
            y = torch.stack([model.memories[i].read(seen[t], q[t]) for t in range(T)])
            y = rms(y, w[f"memory.output_norm{which}.weight"], model.eps).reshape(T, -1)
            return (y * silu(x @ w[f"memory.output_gate{which}.weight"].T)) @ w[f"memory.o{which}_proj.weight"].T

        def lmm(x):
            seen = memories(l2(conv("k", x)), conv("v", x), rates_of(x))
            return read(seen, l2(conv("q", x)), "", x)

        def attention(x, sources, q_at):
            """sources: (rows, their rotation, mask [T, rows])"""
            heads = lambda a: a.view(a.shape[0], nh, hd)
            q = heads(x @ w["self_attn.q_proj.weight"].T)
            P = w["self_attn.persistent"]
            scores = [torch.einsum("thk,jhk->htj", q, heads(P @ w["self_attn.k_proj.weight"].T))]
            values = [heads(P @ w["self_attn.v_proj.weight"].T)]
            qr = rope(q, q_at, model.theta, model.pairing)
            for rows, position, mask in sources:
                k = rope(heads(rows @ w["self_attn.k_proj.weight"].T), position, model.theta, model.pairing)
                scores.append(torch.einsum("thk,jhk->htj", qr, k).masked_fill(~mask, -math.inf))
                values.append(heads(rows @ w["self_attn.v_proj.weight"].T))
            weights = (torch.cat(scores, 2) / hd ** .5).softmax(-1)
            y = torch.einsum("htj,jhk->thk", weights, torch.cat(values)).reshape(T, d)
            return y @ w["self_attn.o_proj.weight"].T

        def swa(x):
            back = at[:, None] - at[None, :]
            return attention(x, [(x, at, (back >= 0) & (back < model.W))], at)

        def mix(y, m):
            y = rms(y, w["mix.attention_norm.weight"], model.eps)
            m = rms(m, w["mix.memory_norm.weight"], model.eps)
            return (silu(y) * silu(m)) @ w["mix.o_proj.weight"].T

        xn = rms(x, w["input_layernorm.weight"], model.eps)
        if model.variant == "lmm":
            x = x + lmm(xn)
        elif model.variant == "mal":
            x = x + lmm(xn)
            x = x + swa(rms(x, w["attention_layernorm.weight"], model.eps))
        elif model.variant == "mag":
            x = x + mix(swa(xn), lmm(xn))
        else:  # segment by segment the weights are constant, but they depend on the segment before
            C, j = model.C, at % model.C
            mask = (at[:, None] // C == at[None, :] // C) & (at[:, None] >= at[None, :])
            seen = [model.init_weights(i)] * T
            for _ in range(1 + T // C):  # every round makes one more segment right
                h = read(seen, l2(conv("q", xn)), "", xn)
                y = attention(xn, [(h, j, mask), (xn, C + j, mask)], C + j)
                yn = rms(x + y, w["memory.input_norm.weight"], model.eps)
                seen = memories(l2(conv("k", yn)), conv("v", yn), rates_of(yn))
            x = x + mix(y, read(seen, l2(conv("q2", yn)), "2", yn))
        u = rms(x, w["post_attention_layernorm.weight"], model.eps)
        x = x + swiglu(u, *(w[f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
    return rms(x, model.w["model.norm.weight"], model.eps) @ model.w["lm_head.weight"].T


def whole_texts():
    tokens = torch.randint(40, (27,), generator=torch.Generator().manual_seed(2)).tolist()
    for variant, options in (("lmm", {}), ("mag", {}), ("mal", {"decay_to": "zero", "gradient_clip": 0.0}),
                             ("mac", {"segment_tokens": 4})):
        model = random_model(variant=variant, **options)
        state = model.initial_state()
        logits = model.forward(state, tokens)
        error = (logits - whole_text(model, tokens)).abs().max()
        assert error < 1e-10, (variant, error)


def token_mode():
    """The dual form: what every token reads inside a chunk, from the anchor's weights alone."""
    model = random_model(variant="lmm", read_mode="token")
    state, i, b = model.initial_state(), 0, 4
    generator = torch.Generator().manual_seed(4)
    k, v, q = (torch.randn(8, 2, 5, generator=generator, **T64) for _ in range(3))
    rates = torch.rand(8, 3, 2, generator=generator, **T64) * .8
    for t in range(8):
        if t % b == 0:
            W = [state[i, f"memory_{l}"].clone() for l in range(2)]
            S = [state[i, f"momentum_{l}"].clone() for l in range(2)]
            E, A = torch.zeros(2, b, **T64), torch.zeros(2, b, **T64)
            carry, p, beta = torch.ones(2, **T64), torch.zeros(2, **T64), torch.ones(2, **T64)
            factors = []
        factors.append(model.memories[i].gradient(W, k[t], v[t]))
        norm = sum(a.square().sum(-1) * g.square().sum(-1) for a, g in factors[-1]).sqrt()
        theta, eta, alpha = rates[t]
        E = eta[:, None] * E
        E[:, t % b] = theta * (1 / norm).clamp(max=1)
        A = (1 - alpha)[:, None] * A + E
        carry = eta * carry
        p, beta = (1 - alpha) * p + carry, (1 - alpha) * beta
        model.write(state, i, k[t], v[t], rates[t])
        state["position"] += 1
        running = [state[i, f"running_{l}"] for l in range(2)]
        x = q[t]
        for l, T in enumerate(model.init_weights(i)):
            part = lambda M: torch.einsum("hi,hio->ho", x, M)
            low = sum((A[:, j] * (x * factors[j][l][0]).sum(-1))[:, None] * factors[j][l][1] for j in range(t % b + 1))
            z = beta[:, None] * part(W[l]) + (1 - beta)[:, None] * part(T) + p[:, None] * part(S[l]) - low
            x = silu(z) if l == 0 else z
        assert (x + q[t] - model.memories[i].read(running, q[t])).abs().max() < 1e-11


def properties():
    M0 = torch.zeros(1, 3, 3, **T64)
    model = Titans(dict(variant="lmm", vocab_size=1, hidden_size=3, num_hidden_layers=1, memory_heads=1, memory_head_dim=3,
                        memory_depth=1, memory_chunk_tokens=1, gradient_clip=0, memory_residual=False),
                   {"model.layers.0.memory.init.0": M0})
    k, v = l2(tensor([[.3, -2, 1]])), tensor([[1., 2, 3]])
    weights, _ = model.step(0, [M0], [M0 + .5], [M0], k, v, tensor([[1.], [0], [0]]))  # gradient at zero weights
    assert torch.allclose(model.memories[0].read([weights[0] - .5], k), v, atol=1e-5), "the delta rule"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for test in (worked_examples, gradients, whole_texts, token_mode, properties):
        test()
        print("ok", test.__name__)
