#!/usr/bin/python3
"""Checks the reference: numbers worked out by hand, another form of the equations, and properties.

  train/infini/check.py
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from infini.reference import Infini, sigma  # noqa: E402
from layers import rms, rope, swiglu  # noqa: E402

T64 = dict(dtype=torch.float64)


def worked_example():
    """Two rows a segment, dk = dv = 2, g = 1/2, no eps, rotation by r radians."""
    q = torch.tensor([[1, 0], [0, 1], [1, -1], [-1, .5], [.5, -1]], **T64)[:, None]
    k = torch.tensor([[1, -1], [.5, .5], [1, -1], [-.5, 1], [0, 0]], **T64)[:, None]
    v = torch.tensor([[1, 2], [3, -1], [2, 0], [0, 1], [1, 1]], **T64)[:, None]
    expected = {  # outputs; memory and normaliser after segment 1
        "linear": ([[.5, 1], [1.290942, -.186413], [1.962046, .306931], [1.457503, .336106], [1.330910, .738589]],
                   [[10.5, 3.106531], [5.603638, 1.235759]]),
        "linear_delta": ([[.5, 1], [1.290942, -.186413], [1.962046, .306931], [1.457503, .336106], [.870258, .648960]],
                         [[5.235739, 1.880065], [.226371, 1.014081]]),
    }
    for update, (outputs, memory) in expected.items():
        model = Infini(dict(vocab_size=1, num_hidden_layers=1, num_attention_heads=1, head_dim=2, hidden_size=2,
                            segment_tokens=2, memory_update=update, memory_eps=1e-30), {})
        state = model.initial_state()
        for t in range(5):
            out = model.mix(state, 0, q[t:t + 1], k[t:t + 1], v[t:t + 1], torch.zeros(1, **T64), t % 2)
            state["position"] += 1
            assert torch.allclose(out.flatten(), torch.tensor(outputs[t], **T64), atol=2e-6), (update, t, out)
        assert torch.allclose(state[0, "memory"][0], torch.tensor(memory, **T64), atol=2e-6)
        assert torch.allclose(state[0, "normalizer"][0], torch.tensor([6.106531, 4.235759], **T64), atol=2e-6)
        if update == "linear":
            assert torch.allclose(state[0, "pending_memory"][0], torch.ones(2, 2, **T64))


def random_model(seed=0, **options):
    config = dict(vocab_size=50, hidden_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=6, value_head_dim=5, intermediate_size=30, segment_tokens=8, memory_update="linear")
    config.update(options)
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape):
        return torch.randn(*shape, generator=generator, **T64) * 1.5 / shape[-1] ** 0.5

    d, H, Hk, F = 20, config["num_attention_heads"], config["num_key_value_heads"], 30
    tensors = {"model.embed_tokens.weight": torch.randn(50, d, generator=generator, **T64),
               "lm_head.weight": matrix(50, d), "model.norm.weight": torch.ones(d, **T64)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        tensors.update({p + "input_layernorm.weight": torch.ones(d, **T64),
                        p + "post_attention_layernorm.weight": torch.ones(d, **T64),
                        p + "self_attn.q_proj.weight": matrix(H * 6, d),
                        p + "self_attn.k_proj.weight": matrix(Hk * 6, d),
                        p + "self_attn.v_proj.weight": matrix(Hk * 5, d),
                        p + "self_attn.o_proj.weight": matrix(d, H * 5),
                        p + "self_attn.memory_gate": torch.randn(H, generator=generator, **T64),
                        p + "mlp.gate_proj.weight": matrix(F, d), p + "mlp.up_proj.weight": matrix(F, d),
                        p + "mlp.down_proj.weight": matrix(d, F)})
    return Infini(config, tensors)


def whole_text(model, tokens):
    """The paper's order: the whole input through one layer, segment after segment."""
    w, N = model.w, model.N
    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(model.L):
        p = f"model.layers.{i}."
        a = rms(x, w[p + "input_layernorm.weight"], model.eps)
        q = (a @ w[p + "self_attn.q_proj.weight"].T).view(-1, model.H, model.dk)
        k = (a @ w[p + "self_attn.k_proj.weight"].T).view(-1, model.Hk, model.dk)
        v = (a @ w[p + "self_attn.v_proj.weight"].T).view(-1, model.Hk, model.dv)
        mixed = torch.zeros(len(tokens), model.H, model.dv, **T64)
        for h in range(model.H):
            hk = h * model.Hk // model.H
            g = torch.sigmoid(w[p + "self_attn.memory_gate"][h])
            M, z = torch.zeros(model.dk, model.dv, **T64), torch.zeros(model.dk, **T64)
            for a0 in range(0, len(tokens), N):
                Q, K, V = q[a0:a0 + N, h], k[a0:a0 + N, hk], v[a0:a0 + N, hk]
                A_mem = sigma(Q) @ M / (sigma(Q) @ z + model.memory_eps)[:, None]
                at = torch.arange(a0, a0 + len(Q))  # only differences matter
                s = rope(Q[:, None], at, model.theta, model.pairing)[:, 0] @ rope(K[:, None], at, model.theta, model.pairing)[:, 0].T
                s = s / model.dk ** 0.5 + torch.full((len(Q), len(Q)), -torch.inf, **T64).triu(1)
                A_dot = s.softmax(-1) @ V
                mixed[a0:a0 + N, h] = A_dot if model.local_first and a0 == 0 else g * A_mem + (1 - g) * A_dot
                U = V - sigma(K) @ M / (sigma(K) @ z + model.memory_eps)[:, None] if model.delta else V
                M, z = M + sigma(K).T @ U, z + sigma(K).sum(0)
        x = x + mixed.reshape(len(tokens), -1) @ w[p + "self_attn.o_proj.weight"].T
        b = rms(x, w[p + "post_attention_layernorm.weight"], model.eps)
        x = x + swiglu(b, *(w[p + f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down")))
    return rms(x, w["model.norm.weight"], model.eps) @ w["lm_head.weight"].T


def forms_and_splits():
    tokens = torch.randint(50, (61,), generator=torch.Generator().manual_seed(1)).tolist()
    for options in ({}, {"memory_update": "linear_delta"}, {"first_segment": "local", "rope_pairing": "interleaved"}):
        model = random_model(**options)
        whole = whole_text(model, tokens)
        for cuts in ([0, 61], list(range(62)), [0, 3, 8, 9, 24, 40, 61]):
            state = model.initial_state()
            parts = [model.forward(state, tokens[a:b]) for a, b in zip(cuts, cuts[1:])]
            assert (torch.cat(parts) - whole).abs().max() < 1e-12, options
        other = list(tokens)
        other[30] = (other[30] + 1) % 50
        changed = (model.forward(model.initial_state(), other) - whole).abs().amax(1)
        assert changed[:30].max() < 1e-12 and changed[30:].min() > 0, "causality"


def properties():
    tokens = torch.randint(50, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    closed = random_model()
    for name in closed.w:
        if name.endswith("memory_gate"):
            closed.w[name].fill_(-1e9)
    logits = closed.forward(closed.initial_state(), tokens)
    for a in range(0, 40, 8):  # every segment on its own
        assert torch.equal(logits[a:a + 8], closed.forward(closed.initial_state(), tokens[a:a + 8]))
    for update in ("linear", "linear_delta"):  # one layer: the order inside a past segment is forgotten
        model = random_model(num_hidden_layers=1, memory_update=update)
        reference = model.forward(model.initial_state(), tokens)
        shuffled = model.forward(model.initial_state(), tokens[7::-1] + tokens[8:])
        assert (reference - shuffled)[8:].abs().max() < 1e-12
        swapped = model.forward(model.initial_state(), tokens[8:16] + tokens[:8] + tokens[16:])
        difference = (reference - swapped)[16:].abs().max()
        assert difference < 1e-12 if update == "linear" else difference > 1e-6
    x = torch.linspace(-80, 80, 4001, dtype=torch.float32)
    exact = torch.where(x > 0, x.double() + 1, x.double().exp())
    assert ((sigma(x).double() - exact) / exact).abs().max() < 1e-6
    # All rows of all segments equal: linear reads v for ever, delta v/2 after the second segment.
    k, v = torch.tensor([[[.3, -.7]]], **T64), torch.tensor([[[2., -1.]]], **T64)
    for update, factor in (("linear", 1.0), ("linear_delta", .5)):
        model = Infini(dict(vocab_size=1, num_hidden_layers=1, num_attention_heads=1, head_dim=2, hidden_size=2,
                            segment_tokens=2, memory_update=update, memory_eps=1e-30), {})
        state = model.initial_state()
        for t in range(12):
            model.mix(state, 0, k, k, v, torch.zeros(1, **T64), t % 2)
            state["position"] += 1
        read = sigma(k[0, 0]) @ state[0, "memory"][0] / (sigma(k[0, 0]) @ state[0, "normalizer"][0])
        assert torch.allclose(read, factor * v.flatten()), (update, read)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for test in (worked_example, forms_and_splits, properties):
        test()
        print("ok", test.__name__)
