"""PanGu-pi (Wang et al. 2023, arXiv:2312.17276): a Llama with two options, each absent by default.

Series activation: the gate of the feed-forward is a sum of n activations, each with its own scale and
bias per channel (or its own matrix). Augmented shortcuts: T small MLPs beside attention.
Names and shapes: docs/checkpoint_format.md.
"""

import math

import torch

from llama.reference import Llama, _load_hf

ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu_erf": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) / 2,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


class PanguPi(Llama):
    def _gate(self, p, c):
        n, kinds = self.config.get("siaf_n", 1), self.config.get("siaf_act", "silu")
        kinds = [kinds] * n if isinstance(kinds, str) else kinds
        assert len(kinds) == n
        if self.config.get("siaf_mode", "scaled") == "projected":
            inputs = [self._linear(p + f"mlp.gate_proj.{j}", c) for j in range(n)]
        else:
            h = self._linear(p + self.names["gate"], c)
            scale, bias = ([1.0] * n, [0.0] * n) if p + "mlp.siaf.scale" not in self.tensors else (
                self.tensors[p + "mlp.siaf." + name].to(self.dtype) for name in ("scale", "bias"))
            inputs = [scale[j] * h + bias[j] for j in range(n)]
        return sum(ACTIVATIONS[kind](z) for kind, z in zip(kinds, inputs))

    def _shortcuts(self, p, x, a):
        z = {"normed": a, "raw": x}[self.config.get("aug_input", "normed")]
        act = ACTIVATIONS[self.config.get("aug_act", "gelu_erf")]
        total = torch.zeros_like(x)
        for j in range(self.config.get("aug_count", 0)):
            q = p + f"self_attn.aug.{j}."
            total = total + self._linear(q + "up", act(self._linear(q + "down", z)))
        return total


def load(path, dtype=torch.float64):
    return _load_hf(path, dtype, PanguPi)
