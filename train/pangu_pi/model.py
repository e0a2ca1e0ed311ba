"""PanGu-pi for training: the window baseline with series activation and augmented shortcuts."""

import torch

from pangu_pi.reference import ACTIVATIONS
from trainable import matrix, normal
from window import model as window


def new(generator, siaf_n=2, aug_count=1, aug_ratio=4, d=192, L=4, F=512, **options):
    """(config, weights)"""
    config, w = window.new(generator, d=d, L=L, F=F, **options)
    config.update(model_type="pangu_pi", architectures=["PanguPiForCausalLM"], siaf_n=siaf_n, siaf_mode="scaled", siaf_act="silu",
                  aug_count=aug_count, aug_ratio=aug_ratio, aug_input="normed", aug_act="gelu_erf")
    for i in range(L):
        p = f"model.layers.{i}."
        w[p + "mlp.siaf.scale"] = 1.0 / siaf_n + normal(generator, siaf_n, F, std=0.05)
        w[p + "mlp.siaf.bias"] = normal(generator, siaf_n, F, std=0.05)
        for j in range(aug_count):
            w[p + f"self_attn.aug.{j}.down.weight"] = matrix(generator, d // aug_ratio, d)
            w[p + f"self_attn.aug.{j}.up.weight"] = matrix(generator, d, d // aug_ratio, 0.5)
    return config, w


class Model(window.Model):
    def linear_with_bias(self, x, name):
        y = self.linear(x, name + ".weight")
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def swiglu(self, x, p):
        n, kinds = self.config.get("siaf_n", 1), self.config.get("siaf_act", "silu")
        kinds = [kinds] * n if isinstance(kinds, str) else kinds
        if self.config.get("siaf_mode", "scaled") == "projected":
            inputs = [self.linear(x, p + f"mlp.gate_proj.{j}.weight") for j in range(n)]
        else:
            h = self.linear(x, p + "mlp.gate_proj.weight")
            inputs = [h] * n
            if p + "mlp.siaf.scale" in self.w:
                scale, bias = self.w[p + "mlp.siaf.scale"], self.w[p + "mlp.siaf.bias"]
                inputs = [scale[j] * h + bias[j] for j in range(n)]
        gate = sum(ACTIVATIONS[kind](z) for kind, z in zip(kinds, inputs))
        return self.linear(gate * self.linear(x, p + "mlp.up_proj.weight"), p + "mlp.down_proj.weight")

    def beside_attention(self, p, x, a):
        z = {"normed": a, "raw": x}[self.config.get("aug_input", "normed")]
        act = ACTIVATIONS[self.config.get("aug_act", "gelu_erf")]
        total = 0.0
        for j in range(self.config.get("aug_count", 0)):
            q = p + f"self_attn.aug.{j}."
            total = total + self.linear_with_bias(act(self.linear_with_bias(z, q + "down")), q + "up")
        return total
