#!/usr/bin/python3
"""Checks the options' identities on the tiny checkpoints. Nothing public exists to compare with.

  train/pangu_pi/check.py
"""

import os
import sys

import torch

TRAIN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, TRAIN)
from llama import reference as llama  # noqa: E402
from pangu_pi import reference  # noqa: E402

TINY = os.path.join(os.path.dirname(TRAIN), "tests", "golden", "tiny")
TOKENS = torch.randint(256, (30,), generator=torch.Generator().manual_seed(1)).tolist()


def absent_options():
    path = os.path.join(TINY, "tiny-llama-hf")
    assert torch.equal(reference.load(path).logits(TOKENS), llama.load(path).logits(TOKENS))


def identities():
    path = os.path.join(TINY, "tiny-pangu-a")
    model = reference.load(path)
    for name, tensor in model.tensors.items():  # scale 1, bias 0, nothing up: twice the plain gate
        if ".siaf." in name:
            tensor.fill_(float(name.endswith("scale")))
        if name.endswith(".up.weight"):
            tensor.zero_()
    plain = llama.load(path)
    for name, tensor in plain.tensors.items():
        if "down_proj" in name:
            tensor.mul_(2)
    assert (model.logits(TOKENS) - plain.logits(TOKENS)).abs().max() < 1e-11
    options = reference.load(path).logits(TOKENS)
    assert (options - llama.load(path).logits(TOKENS)).abs().max() > 0.1, "the options do something"


def square_shortcut():
    """One shortcut of full width whose second matrix is the identity: act(Theta z)."""
    model = reference.load(os.path.join(TINY, "tiny-llama-hf"))
    model.config.update(aug_count=1, aug_ratio=1, aug_act="tanh")
    theta, a = torch.randn(48, 48), torch.randn(3, 48, dtype=torch.float64)
    model.tensors["x.self_attn.aug.0.down.weight"], model.tensors["x.self_attn.aug.0.up.weight"] = theta, torch.eye(48)
    assert torch.allclose(model._shortcuts("x.", a, a), torch.tanh(a @ theta.double().T))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for test in (absent_options, identities, square_shortcut):
        test()
        print("ok", test.__name__)
