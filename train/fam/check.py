#!/usr/bin/python3
"""Checks the reference: numbers worked out by hand, splits, causality, reach of the window.

  train/fam/check.py
"""

import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from fam.reference import Fam  # noqa: E402
from layers import rms, rope, swiglu  # noqa: E402

T64 = dict(dtype=torch.float64)


class Relu(Fam):
    def feed_forward(self, p, x):
        return x.relu()


def worked_example():
    p, eye = "model.layers.0.", torch.eye(2, **T64)
    tensors = {p + f"self_attn.{n}_proj.weight": eye for n in "qkvo"}
    tensors.update({p + n + ".weight": torch.ones(2, **T64) for n in ("input_layernorm", "post_attention_layernorm")})
    tensors["model.fam_prompt"] = torch.tensor([[.5, -.5]], **T64)
    model = Relu(dict(vocab_size=1, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, block_tokens=2,
                      memory_blocks=1, fam_tokens=1), tensors)
    inputs = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 1], [2, 0]], **T64)
    outputs = [[3.762307, -.152467], [.350118, 3.442383], [2.443268, 3.199586], [-.910956, 2.785767], [4.376486, .436069]]
    fams = {1: ([2.140985, -.594735], [1.054735, .942090]), 3: ([4.476294, -.622563], [-1.359221, .390535])}
    state = model.initial_state()
    for t in range(5):
        a = t - t % 2
        out = model.layer(state, 0, inputs[t:t + 1], t, a)
        assert torch.allclose(out[0], torch.tensor(outputs[t], **T64), atol=2e-6), (t, out)
        if t % 2 == 1:
            model.update(state, 0, a)
            assert torch.allclose(state[0, "fam"][0], torch.tensor(fams[t][0], **T64), atol=2e-6)
            assert torch.allclose(state[0, "fam_k"][0], torch.tensor(fams[t][1], **T64), atol=2e-6)


def random_model(**options):
    config = dict(vocab_size=50, hidden_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=6, block_tokens=5, memory_blocks=1, fam_tokens=2)
    config.update(options)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape, std=1.0):
        return std * torch.randn(*shape, generator=generator, **T64)

    d, H, Hk, F = 20, 4, 2, 24
    w = {"model.embed_tokens.weight": normal(50, d), "lm_head.weight": normal(50, d, std=.5),
         "model.norm.weight": torch.ones(d, **T64), "model.fam_prompt": normal(2, d)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, rows, columns in [("self_attn.q_proj", H * 6, d), ("self_attn.k_proj", Hk * 6, d),
                                    ("self_attn.v_proj", Hk * 6, d), ("self_attn.o_proj", d, H * 6),
                                    ("mlp.gate_proj", F, d), ("mlp.up_proj", F, d), ("mlp.down_proj", d, F)]:
            w[p + name + ".weight"] = normal(rows, columns, std=1.4 / columns ** .5)
        w[p + "input_layernorm.weight"] = w[p + "post_attention_layernorm.weight"] = torch.ones(d, **T64)
    return Fam(config, w)


TOKENS = torch.randint(50, (43,), generator=torch.Generator().manual_seed(4)).tolist()


def splits_and_causality():
    for options in ({}, {"memory_blocks": 0}, {"memory_blocks": 2, "fam_query_pos": "cur", "fam_feedback_norm": True},
                    {"fam_tokens": 0}):
        model = random_model(**options)
        whole = model.forward(model.initial_state(), TOKENS)
        for cuts in (range(44), (0, 2, 9, 10, 27, 43)):
            state, cuts = model.initial_state(), list(cuts)
            parts = torch.cat([model.forward(state, TOKENS[a:b]) for a, b in zip(cuts, cuts[1:])])
            assert (parts - whole).abs().max() < 1e-11
        for j in (0, 3, 17):
            other = list(TOKENS)
            other[j] = (other[j] + 1) % 50
            changed = (model.forward(model.initial_state(), other) - whole).abs().amax(1)
            assert j == 0 or changed[:j].max() < 1e-12
            last = changed.nonzero().max().item()
            # The window reaches L m blocks on, no further; the feedback carries on for ever.
            assert last == (42 if model.f else (j // 5 + 3 * model.m) * 5 + 4), (options, j, last)


def plain_transformer():
    """Without feedback and with a window beyond the text: causal attention."""
    model = random_model(fam_tokens=0, memory_blocks=9)
    x = model.w["model.embed_tokens.weight"][torch.tensor(TOKENS)]
    at = torch.arange(43)
    for i in range(3):
        p = f"model.layers.{i}."
        n = rms(x, model.w[p + "input_layernorm.weight"], model.eps)
        q, k, v = ((n @ model.w[p + f"self_attn.{s}_proj.weight"].T).view(43, -1, 6) for s in "qkv")
        q, k = rope(q, at, 10000.0, "half"), rope(k, at, 10000.0, "half").repeat_interleave(2, 1)
        scores = torch.einsum("thk,jhk->htj", q, k) / 6 ** .5 + torch.full((43, 43), -torch.inf, **T64).triu(1)
        y = torch.einsum("htj,jhk->thk", scores.softmax(-1), v.repeat_interleave(2, 1)).flatten(1)
        x = x + y @ model.w[p + "self_attn.o_proj.weight"].T
        n = rms(x, model.w[p + "post_attention_layernorm.weight"], model.eps)
        x = x + swiglu(n, *(model.w[p + f"mlp.{s}_proj.weight"] for s in ("gate", "up", "down")))
    logits = rms(x, model.w["model.norm.weight"], model.eps) @ model.w["lm_head.weight"].T
    assert (logits - model.forward(model.initial_state(), TOKENS)).abs().max() < 1e-11


def initial_memory():
    model = random_model()
    state = model.initial_state()
    assert torch.equal(state[0, "fam"], model.w["model.fam_prompt"])
    model.forward(state, TOKENS[:4])
    assert torch.equal(state[1, "fam"], model.initial_state()[1, "fam"]), "a partial block updates nothing"
    model.forward(state, TOKENS[4:5])
    assert not torch.equal(state[1, "fam"], model.initial_state()[1, "fam"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for test in (worked_example, splits_and_causality, plain_transformer, initial_memory):
        test()
        print("ok", test.__name__)
