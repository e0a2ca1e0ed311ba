"""The baseline for training: a Llama whose queries see the last W tokens and nothing else. Served as `llama` with
window_tokens = W and no sinks, it reaches L (W - 1) tokens back and not one further.

Letters: L layers, d width, H query heads, Hk key/value heads.
"""

import torch
import torch.nn.functional as F

from trainable import Trainable, decoder_layer, kept, normal, window_attention


def new(generator, d=192, L=4, H=6, dk=32, F=512, W=64, **options):
    """(config, weights)"""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": d,
              "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": dk,
              "intermediate_size": F, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
              "max_position_embeddings": W, "tie_word_embeddings": True, "tokenizer": "bytes", **options}
    w = {"model.embed_tokens.weight": normal(generator, 256, d, std=d ** -0.5), "model.norm.weight": torch.ones(d)}
    for i in range(L):
        w.update(decoder_layer(generator, f"model.layers.{i}.", d, H, dk, F))
    return config, w


class Model(Trainable):
    def __init__(self, config, weights, dtype=torch.float32):
        super().__init__(config, weights, dtype)
        self.L, self.H = config["num_hidden_layers"], config["num_attention_heads"]
        self.Hk = config.get("num_key_value_heads", self.H)
        self.dk = config.get("head_dim", config["hidden_size"] // self.H)
        self.W = config["max_position_embeddings"]
        self.theta = config.get("rope_theta", 10000.0)

    def initial_state(self, B):
        state = {"position": 0}
        for i in range(self.L):
            for f in "kv":
                state[f"{f}_{i}"] = torch.zeros(B, self.W - 1, self.Hk, self.dk, dtype=self.dtype)
        return state

    def beside_attention(self, p, x, a):
        """What a descendant adds: x the residual, a its norm."""
        return 0.0

    def forward(self, tokens, state, dilution=None):
        B, T = tokens.shape
        out = {"position": state["position"] + T}
        seen = min(state["position"], self.W - 1)
        x = F.embedding(tokens, self.w["model.embed_tokens.weight"])
        for i in range(self.L):
            p = f"model.layers.{i}."
            a = self.rms(x, p + "input_layernorm.weight")
            q, k, v = (self.linear(a, p + f"self_attn.{f}_proj.weight").view(B, T, -1, self.dk) for f in "qkv")
            y = window_attention(q, k, v, state[f"k_{i}"], state[f"v_{i}"], seen, self.W, self.theta, "half")
            out[f"k_{i}"], out[f"v_{i}"] = kept(k, state[f"k_{i}"], T), kept(v, state[f"v_{i}"], T)
            x = x + self.linear(y.flatten(2), p + "self_attn.o_proj.weight") + self.beside_attention(p, x, a)
            x = x + self.swiglu(self.rms(x, p + "post_attention_layernorm.weight"), p)
        return self.logits(x), out
