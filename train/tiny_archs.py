"""The tiny checkpoints of the long-context architectures: random weights, scaled so that gates and
decays spread over their range and a mistake in any path moves the logits. For make_tiny.py, whose
rules on numbers hold here too. Names and shapes: docs/checkpoint_format.md.
"""

import json

import numpy as np


class Weights:
    def __init__(self, random, name):
        self.random, self.tensors = random(name), []

    def put(self, name, array):
        self.tensors.append((name, array.astype(np.float32)))

    def matrix(self, name, rows, columns, gain=1.0):
        self.put(name, self.random.normal((rows, columns), gain / np.sqrt(np.float64(columns))))

    def normal(self, name, shape, mean=0.0, std=1.0):
        self.put(name, mean + self.random.normal(shape, std))

    def norm(self, name, size, bias=False):
        self.normal(name + ".weight", (size,), 1.0, 0.1)
        if bias:
            self.normal(name + ".bias", (size,), 0.0, 0.1)


def folder(name, config, weights, safetensors, kind):
    config = {**config, "tokenizer": "bytes"}
    return {f"{name}/config.json": (json.dumps(config, indent=2) + "\n").encode(),
            f"{name}/model.safetensors": safetensors(weights.tensors, kind)}


def host_block(w, p, c, dv, gain=1.0):
    """A Llama-like layer: sharper queries and keys than a model has at its start. `gain` is lowered where
    a state feeds back into itself: random weights of full size make that chaotic, and f32 drifts away."""
    d, H, Hk, dk, F = (c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                                      "intermediate_size"))
    w.norm(p + "input_layernorm", d)
    w.matrix(p + "self_attn.q_proj.weight", H * dk, d, 1.5 * gain)
    w.matrix(p + "self_attn.k_proj.weight", Hk * dk, d, 1.5 * gain)
    w.matrix(p + "self_attn.v_proj.weight", Hk * dv, d)
    w.matrix(p + "self_attn.o_proj.weight", d, H * dv, 2.0 * gain)
    w.norm(p + "post_attention_layernorm", d)
    w.matrix(p + "mlp.gate_proj.weight", F, d, 1.5)
    w.matrix(p + "mlp.up_proj.weight", F, d)
    w.matrix(p + "mlp.down_proj.weight", d, F, 1.5 * gain)


def embedding_and_head(w, c):
    V, d, tied = c["vocab_size"], c["hidden_size"], c["tie_word_embeddings"]
    w.normal("model.embed_tokens.weight", (V, d), 0.0, 2.5 / np.sqrt(np.float64(d)) if tied else 1.0)
    if not tied:
        w.matrix("lm_head.weight", V, d, 2.5)
    w.norm("model.norm", d)


def infini(random, name, **options):
    c = {"model_type": "infini", "mneme_config_version": 1, "vocab_size": 256, "rms_norm_eps": 1e-6,
         "rope_theta": 10000.0, "memory_eps": 1e-6, **options}
    w = Weights(random, name)
    embedding_and_head(w, c)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        host_block(w, p, c, c["value_head_dim"])
        w.normal(p + "self_attn.memory_gate", (c["num_attention_heads"],), 0.5, 1.5)
    return c, w


def rwkv7(random, name, C, S, L, F, ranks):
    c = {"architectures": ["RWKV7ForCausalLM"], "model_type": "rwkv7", "vocab_size": 256, "hidden_size": C,
         "head_dim": S, "num_heads": None, "num_hidden_layers": L, "intermediate_size": F, "hidden_ratio": 4.0,
         "decay_low_rank_dim": ranks["w"], "a_low_rank_dim": ranks["a"], "v_low_rank_dim": ranks["v"],
         "gate_low_rank_dim": ranks["g"], "hidden_act": "sqrelu", "norm_eps": 1e-5, "norm_first": True,
         "norm_bias": True, "attn": None, "attn_mode": "chunk", "fuse_norm": False, "tie_word_embeddings": False,
         "use_cache": True, "torch_dtype": "float32"}
    w = Weights(random, name)
    w.normal("model.embeddings.weight", (256, C))
    w.matrix("lm_head.weight", 256, C, 2.5)
    w.norm("model.norm", C, True)
    for i in range(L):
        p = f"model.layers.{i}."
        if i == 0:
            w.norm(p + "pre_norm", C, True)
        w.norm(p + "attn_norm", C, True)
        w.norm(p + "ffn_norm", C, True)
        for f in "rwkvag":
            w.normal(p + "attn.x_" + f, (1, 1, C), 0.5, 0.25)
        for f in "rkvo":
            w.matrix(p + f"attn.{f}_proj.weight", C, C, 1.5 if f == "o" else 1.2)
        for f, mean, std in (("w", -1.0, 2.0), ("a", 0.0, 1.0), ("v", 0.0, 1.0), ("g", 0.0, 0.0)):
            if f == "v" and i == 0:
                continue
            R = ranks[f]
            w.matrix(p + f"attn.{f}_lora.lora.0.weight", R, C)
            w.matrix(p + f"attn.{f}_lora.lora.2.weight", C, R, 3.0 if f == "g" else 1.5)
            if f != "g":
                w.normal(p + f"attn.{f}_lora.lora.2.bias", (C,), mean, std)
        w.normal(p + "attn.k_k", (C,), 1.0, 0.3)
        w.normal(p + "attn.k_a", (C,), 1.0, 0.3)
        w.normal(p + "attn.r_k", (C // S, S), 0.0, 0.3)
        w.norm(p + "attn.g_norm", C, True)
        w.normal(p + "ffn.x_k", (C,), 0.5, 0.25)
        w.matrix(p + "ffn.key.weight", F, C, 1.2)
        w.matrix(p + "ffn.value.weight", C, F)
    return c, w


def rwkv_4_to_6(random, name, version, C, S, L, F, R=0, Rd=0):
    model_type = {"4": "rwkv", "5.1": "rwkv5", "5.2": "rwkv5", "6": "rwkv6"}[version]
    c = {"model_type": model_type, "vocab_size": 256, "hidden_size": C, "attention_hidden_size": C,
         "num_hidden_layers": L, "intermediate_size": F, "layer_norm_epsilon": 1e-5, "rescale_every": 6,
         "context_length": 1024, "tie_word_embeddings": False, "use_cache": True}
    if version != "4":
        c.update(head_size=S, head_size_divisor=8, num_attention_heads=C // S)
    w = Weights(random, name)
    w.normal("rwkv.embeddings.weight", (256, C))
    w.matrix("head.weight", 256, C, 2.5)
    w.norm("rwkv.ln_out", C, True)
    H = C // S
    for i in range(L):
        p = f"rwkv.blocks.{i}."
        if i == 0:
            w.norm(p + "pre_ln", C, True)
        w.norm(p + "ln1", C, True)
        w.norm(p + "ln2", C, True)
        a, f = p + "attention.", p + "feed_forward."
        gate = version in ("5.2", "6")
        for matrix in ["receptance", "key", "value", "output"] + ["gate"] * gate:
            w.matrix(a + matrix + ".weight", C, C, 1.5 if matrix == "output" else 1.2)
        if version == "6":
            for letter in "xwkvrg":
                w.normal(a + "time_maa_" + letter, (1, 1, C), 0.5, 0.25)
            w.normal(a + "time_maa_w1", (C, 5 * R), 0.0, 1.0 / np.sqrt(np.float64(C)))
            w.normal(a + "time_maa_w2", (5, R, C), 0.0, 0.5 / np.sqrt(np.float64(R)))
            w.normal(a + "time_decay", (1, 1, C), -2.5, 1.5)
            w.normal(a + "time_decay_w1", (C, Rd), 0.0, 1.0 / np.sqrt(np.float64(C)))
            w.normal(a + "time_decay_w2", (Rd, C), 0.0, 1.0 / np.sqrt(np.float64(Rd)))
            w.normal(a + "time_faaaa", (H, S), 0.5, 0.5)
            for letter in "kr":
                w.normal(f + "time_maa_" + letter, (1, 1, C), 0.5, 0.25)
        else:
            for word in ["key", "value", "receptance"] + ["gate"] * gate:
                w.normal(a + "time_mix_" + word, (1, 1, C), 0.5, 0.25)
            for word in ("key", "receptance"):
                w.normal(f + "time_mix_" + word, (1, 1, C), 0.5, 0.25)
            shape = {"4": (C,), "5.1": (H,), "5.2": (H, S)}[version]
            w.normal(a + "time_decay", shape, -2.5, 1.5)
            w.normal(a + ("time_faaaa" if version == "5.2" else "time_first"), shape, 0.0, 0.5)
        if version != "4":
            w.norm(a + "ln_x", C, True)
        w.matrix(f + "key.weight", F, C, 1.2)
        w.matrix(f + "receptance.weight", C, C)
        w.matrix(f + "value.weight", C, F)
    return c, w


def titans(random, name, **options):
    c = {"model_type": "titans", "mneme_config_version": 1, "vocab_size": 256, "rms_norm_eps": 1e-6,
         "theta_max": 1.0, "eta_max": 0.95, "gate_floor": 0.02, "gradient_clip": 1.0, "conv_taps": 4,
         "tie_word_embeddings": False, **options}
    w = Weights(random, name)
    embedding_and_head(w, c)
    d, F, H, e, K = (c[k] for k in ("hidden_size", "intermediate_size", "memory_heads", "memory_head_dim", "conv_taps"))
    D, variant = c["memory_depth"], c["variant"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w.norm(p + "input_layernorm", d)
        w.norm(p + "post_attention_layernorm", d)
        w.matrix(p + "mlp.gate_proj.weight", F, d, 1.5)
        w.matrix(p + "mlp.up_proj.weight", F, d)
        w.matrix(p + "mlp.down_proj.weight", d, F, 1.5)
        m = p + "memory."
        for stream in ["q", "k", "v"] + ["q2"] * (variant == "mac"):
            w.matrix(m + stream + "_proj.weight", H * e, d, 1.5)
            w.normal(m + stream + "_conv.weight", (H * e, K), 0.3, 0.4)
        w.matrix(m + "gate.weight", 3 * H, d, 1.5)
        bias = np.repeat(np.array([-1.0, 0.0, -2.5]), H)
        w.put(m + "gate.bias", bias + random(name + p).normal((3 * H,), 0.5))
        widths = [e] + [c["memory_hidden_dim"]] * (D - 1) + [e] if D > 1 else [e, e]
        for l, (rows, columns) in enumerate(zip(widths, widths[1:])):
            # A norm of a small f would be steep.
            gain = 2.0 if c.get("memory_norm", "none") != "none" else 0.7
            w.normal(m + f"init.{l}", (H, rows, columns), 0.0, gain / np.sqrt(np.float64(rows)))
        if c.get("memory_norm", "none") != "none":
            w.normal(m + "norm.weight", (H, e), 0.7, 0.2)
        for which in ["", "2"] if variant == "mac" else [""]:
            w.normal(m + f"output_norm{which}.weight", (e,), 1.0, 0.1)
            w.matrix(m + f"output_gate{which}.weight", H * e, d, 1.5)
            # h of MAC becomes keys without a norm: keep their size near that of the other keys.
            w.matrix(m + f"o{which}_proj.weight", d, H * e, 1.2 if variant == "mac" and not which else 2.0)
        if variant == "mac":
            w.norm(m + "input_norm", d)
        if variant != "lmm":
            for f in "qkvo":
                w.matrix(p + f"self_attn.{f}_proj.weight", d, d, 1.2)
            if c["persistent_tokens"]:
                w.normal(p + "self_attn.persistent", (c["persistent_tokens"], d))
        if variant == "mal":
            w.norm(p + "attention_layernorm", d)
        if variant in ("mac", "mag"):
            w.norm(p + "mix.attention_norm", d)
            w.norm(p + "mix.memory_norm", d)
            w.matrix(p + "mix.o_proj.weight", d, d, 2.0)
    return c, w


def fam(random, name, **options):
    c = {"model_type": "fam", "mneme_config_version": 1, "vocab_size": 256, "rms_norm_eps": 1e-6,
         "rope_theta": 10000.0, **options}
    w = Weights(random, name)
    embedding_and_head(w, c)
    if c["fam_tokens"]:
        w.normal("model.fam_prompt", (c["fam_tokens"], c["hidden_size"]))
    for i in range(c["num_hidden_layers"]):
        host_block(w, f"model.layers.{i}.", c, c["head_dim"], 0.7)
    return c, w


def pangu_pi(random, name, **options):
    c = {"model_type": "pangu_pi", "vocab_size": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
         "hidden_act": "silu", "max_position_embeddings": 256, "tie_word_embeddings": False, **options}
    w = Weights(random, name)
    embedding_and_head(w, c)
    d, F, n = c["hidden_size"], c["intermediate_size"], c["siaf_n"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        host_block(w, p, c, c["head_dim"])
        if c.get("siaf_mode") == "projected":
            w.tensors = [(t, a) for t, a in w.tensors if t != p + "mlp.gate_proj.weight"]
            for j in range(n):
                w.matrix(p + f"mlp.gate_proj.{j}.weight", F, d, 1.5)
        else:
            w.normal(p + "mlp.siaf.scale", (n, F), 0.7, 0.5)
            w.normal(p + "mlp.siaf.bias", (n, F), 0.0, 0.5)
        for j in range(c["aug_count"]):
            q, narrow = p + f"self_attn.aug.{j}.", d // c["aug_ratio"]
            w.matrix(q + "down.weight", narrow, d, 1.5)
            w.matrix(q + "up.weight", d, narrow, 1.5)
            if c.get("aug_bias"):
                w.normal(q + "down.bias", (narrow,), 0.0, 0.5)
                w.normal(q + "up.bias", (d,), 0.0, 0.5)
    return c, w


def files(random, safetensors):
    """{path: bytes}. Widths and lengths are multiples neither of a vector nor of each other."""
    out = {}

    def add(name, builder, kind="F32", **shape):
        config, weights = builder(random, name, **shape)
        out.update(folder(name, config, weights, safetensors, kind))

    add("tiny-infini-linear", infini, hidden_size=36, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=12, value_head_dim=12, intermediate_size=52, segment_tokens=11,
        memory_update="linear", first_segment="gated_zero", rope_pairing="half", tie_word_embeddings=False)
    add("tiny-infini-delta", infini, "BF16", hidden_size=44, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, value_head_dim=14, intermediate_size=60, segment_tokens=7,
        memory_update="linear_delta", first_segment="gated_zero", rope_pairing="interleaved",
        tie_word_embeddings=True)
    add("tiny-infini-local", infini, hidden_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=6, value_head_dim=5, intermediate_size=28, segment_tokens=19,
        memory_update="linear", first_segment="local", rope_pairing="half", tie_word_embeddings=True,
        memory_eps=0.5)
    add("tiny-rwkv7-a", rwkv7, C=36, S=12, L=3, F=100, ranks=dict(w=6, a=5, v=4, g=10))
    add("tiny-rwkv7-b", rwkv7, "BF16", C=60, S=20, L=2, F=140, ranks=dict(w=9, a=7, v=3, g=13))
    add("tiny-rwkv4-a", rwkv_4_to_6, version="4", C=36, S=36, L=3, F=100)
    add("tiny-rwkv4-b", rwkv_4_to_6, "BF16", version="4", C=58, S=58, L=2, F=76)
    add("tiny-rwkv51-a", rwkv_4_to_6, version="5.1", C=36, S=12, L=3, F=92)
    add("tiny-rwkv52-a", rwkv_4_to_6, version="5.2", C=36, S=12, L=3, F=92)
    add("tiny-rwkv52-b", rwkv_4_to_6, "BF16", version="5.2", C=60, S=20, L=2, F=68)
    add("tiny-rwkv6-a", rwkv_4_to_6, version="6", C=36, S=12, L=3, F=92, R=5, Rd=7)
    add("tiny-rwkv6-b", rwkv_4_to_6, "BF16", version="6", C=60, S=20, L=2, F=68, R=6, Rd=10)
    small = dict(hidden_size=36, num_hidden_layers=2, intermediate_size=44, memory_heads=2, memory_head_dim=10)
    other = dict(hidden_size=30, num_hidden_layers=3, intermediate_size=38, memory_heads=3, memory_head_dim=7)
    two = dict(memory_depth=2, memory_hidden_dim=14)
    attention = dict(num_attention_heads=3, persistent_tokens=3)
    plain = dict(num_attention_heads=3, persistent_tokens=0)
    add("tiny-titans-lmm-a", titans, variant="lmm", **small, **two, memory_chunk_tokens=7, read_mode="token")
    add("tiny-titans-lmm-b", titans, "BF16", variant="lmm", **other, memory_depth=1, memory_residual=False,
        memory_chunk_tokens=5, read_mode="chunk", decay_to="zero", conv_taps=3)
    add("tiny-titans-mag-a", titans, variant="mag", **small, **two, **attention, memory_chunk_tokens=6,
        window_tokens=9, read_mode="chunk")
    add("tiny-titans-mag-b", titans, "BF16", variant="mag", **other, memory_depth=3, memory_hidden_dim=11,
        memory_activation="gelu_tanh", memory_norm="rms", **plain, memory_chunk_tokens=5, window_tokens=14,
        read_mode="token", decay_to="init", gate_mix="sigmoid")
    add("tiny-titans-mal-a", titans, variant="mal", **small, **two, **attention, memory_chunk_tokens=6,
        window_tokens=9, read_mode="chunk", forget=False)
    add("tiny-titans-mal-b", titans, "BF16", variant="mal", **other, memory_depth=1, **attention,
        memory_chunk_tokens=11, window_tokens=6, read_mode="token", decay_to="zero", eta_max=0.0,
        gradient_clip=0.0, theta_max=0.5)
    add("tiny-titans-mac-a", titans, variant="mac", **small, **two, **attention, memory_chunk_tokens=6,
        segment_tokens=6)
    add("tiny-titans-mac-b", titans, "BF16", variant="mac", **other, memory_depth=2, memory_hidden_dim=9,
        memory_activation="gelu_erf", memory_norm="layer", **plain, memory_chunk_tokens=11, segment_tokens=11,
        gate_mix="sigmoid", gradient_clip=0.5)
    add("tiny-fam-a", fam, hidden_size=36, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=12, intermediate_size=52, block_tokens=11, memory_blocks=1, fam_tokens=3, fam_query_pos="prev",
        fam_feedback_norm=False, rope_pairing="half", tie_word_embeddings=False)
    add("tiny-fam-b", fam, "BF16", hidden_size=44, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=10, intermediate_size=60, block_tokens=7, memory_blocks=0, fam_tokens=5, fam_query_pos="cur",
        fam_feedback_norm=True, rope_pairing="interleaved", tie_word_embeddings=False)
    add("tiny-bswa-a", fam, hidden_size=36, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
        head_dim=14, intermediate_size=44, block_tokens=9, memory_blocks=2, fam_tokens=0, rope_pairing="half",
        tie_word_embeddings=True)
    add("tiny-pangu-a", pangu_pi, hidden_size=40, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1,
        head_dim=8, intermediate_size=52, siaf_n=2, aug_count=1, aug_ratio=4)
    add("tiny-pangu-b", pangu_pi, "BF16", hidden_size=36, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, head_dim=12, intermediate_size=44, siaf_n=3, siaf_mode="projected",
        siaf_act=["silu", "gelu_erf", "tanh"], aug_count=2, aug_ratio=3, aug_input="raw", aug_act="gelu_tanh",
        aug_bias=True)
    return out
