"""The tiny RWKV checkpoints in the file formats of other programs, for make_tiny.py: the same weights
under tests/golden/formats/ as GGUF (llama.cpp) and .bin (rwkv.cpp) have them.

Written from the documents of those formats and from what their converters do, not from the reader in
engine/arch. Each goes through the names of the original checkpoints (to_original), the inverse of
train/convert_rwkv.py.
"""

import json
import math
import struct

import numpy as np

BIN_CONFIG = {"tokenizer": "bytes", "head_size_divisor": 8}


def read_safetensors(data):
    """{name: f32 array}"""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + x for x in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(data[begin:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
        out[name] = array.reshape(entry["shape"])
    return out


def to_original(version, hf):
    """The names and shapes of the .pth files of RWKV-LM, in its order of keys within a layer."""
    out = {}
    if version == "7":
        ends = {"emb.weight": "model.embeddings.weight", "ln_out": "model.norm", "head.weight": "lm_head.weight",
                "blocks.0.ln0": "model.layers.0.pre_norm"}
    else:
        ends = {"emb.weight": "rwkv.embeddings.weight", "ln_out": "rwkv.ln_out", "head.weight": "head.weight",
                "blocks.0.ln0": "rwkv.blocks.0.pre_ln"}

    def norm(to, source):
        for end in (".weight", ".bias"):
            out[to + end] = hf[source + end]

    for to, source in ends.items():
        if to.endswith(".weight"):
            out[to] = hf[source]
        else:
            norm(to, source)
    layer = 0
    while any(name.startswith(p) for p in (f"model.layers.{layer}.", f"rwkv.blocks.{layer}.") for name in hf):
        b = f"blocks.{layer}."
        if version == "7":
            p = f"model.layers.{layer}."
            norm(b + "ln1", p + "attn_norm")
            norm(b + "ln2", p + "ffn_norm")
            for f in "rwkvag":
                out[b + "att.x_" + f] = hf[p + "attn.x_" + f].reshape(1, 1, -1)
            for f in "wavg":
                lora = p + f"attn.{f}_lora.lora."
                if lora + "0.weight" not in hf:
                    continue
                out[b + f"att.{f}1"] = hf[lora + "0.weight"].T
                out[b + f"att.{f}2"] = hf[lora + "2.weight"].T
                if f != "g":
                    out[b + f"att.{f}0"] = hf[lora + "2.bias"].reshape(1, 1, -1)
            for f in ("k_k", "k_a"):
                out[b + "att." + f] = hf[p + "attn." + f].reshape(1, 1, -1)
            out[b + "att.r_k"] = hf[p + "attn.r_k"]
            for f, g in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")):
                out[b + f"att.{f}.weight"] = hf[p + f"attn.{g}_proj.weight"]
            norm(b + "att.ln_x", p + "attn.g_norm")
            out[b + "ffn.x_k"] = hf[p + "ffn.x_k"].reshape(1, 1, -1)
            for f in ("key", "value"):
                out[b + f"ffn.{f}.weight"] = hf[p + f"ffn.{f}.weight"]
        else:
            p = f"rwkv.blocks.{layer}."
            for f in ("ln1", "ln2"):
                norm(b + f, p + f)
            short = {"time_mix_key": "time_mix_k", "time_mix_value": "time_mix_v",
                     "time_mix_receptance": "time_mix_r", "time_mix_gate": "time_mix_g"}
            for name, array in hf.items():
                for part, to in (("attention.", "att."), ("feed_forward.", "ffn.")):
                    if name.startswith(p + part):
                        rest = name[len(p + part) :]
                        out[b + to + short.get(rest, rest)] = array
        layer += 1
    return out


# ---------------------------------------------------------------------------------- rwkv.cpp


def elementwise(f, x):
    """In double, by the C library's function: correctly rounded f32 on every machine that has a good one."""
    return np.array([f(float(v)) for v in x.reshape(-1)], np.float64).astype(np.float32).reshape(x.shape)


def decay(x):
    return elementwise(lambda v: math.exp(-math.exp(v)), x)


def rwkv_cpp(version, original):
    """A whole .bin file of F32."""
    layers = len({name.split(".")[1] for name in original if name.startswith("blocks.")})
    vocab, width = original["emb.weight"].shape
    out = struct.pack("<6I", 0x67676D66, 101, vocab, width, layers, 0)
    tensors = {}
    for name, x in original.items():
        last = name.split(".")[-1]
        if version == "7":
            if ".att.x_" in name:
                fused = name[: name.index("x_")] + "x_rwkvag"
                tensors[fused] = np.concatenate([tensors[fused], x]) if fused in tensors else x
                continue
            if last in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
                x = x.T
        elif last.startswith("time_"):
            x = x.squeeze()
            if version == "4":
                x = elementwise(lambda v: -math.exp(v), x) if last == "time_decay" else x
            elif version == "5.1":
                if last in ("time_decay", "time_first"):
                    x = (decay(x) if last == "time_decay" else elementwise(math.exp, x)).reshape(-1, 1, 1)
            elif version == "5.2":
                if last in ("time_decay", "time_faaaa"):
                    x = (decay(x) if last == "time_decay" else x)[..., None]
            else:
                if last == "time_faaaa":
                    x = x[..., None]
                elif last == "time_decay":
                    x = x.reshape(original["blocks.0.att.time_faaaa"].shape[0], -1, 1)
                elif last in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
                    x = x.T
                elif last == "time_maa_w2":
                    x = x.transpose(0, 2, 1)
        tensors[name] = x
    for name, x in tensors.items():
        key = name.encode()
        out += struct.pack(f"<3I{x.ndim}I", x.ndim, len(key), 0, *x.shape[::-1])
        out += key + np.ascontiguousarray(x).astype("<f4").tobytes()
    return out


# ---------------------------------------------------------------------------------- llama.cpp


def metadata(name, version, original, rescale):
    arch = "rwkv" + version
    width = original["emb.weight"].shape[1]
    layers = len({key.split(".")[1] for key in original if key.startswith("blocks.")})
    heads = original["blocks.0.att.r_k" if version == "7" else "blocks.0.att.time_faaaa"].shape[0]
    out = [("general.architecture", arch), ("general.name", name), (f"{arch}.context_length", 1048576),
           (f"{arch}.embedding_length", width), (f"{arch}.block_count", layers),
           (f"{arch}.feed_forward_length", original["blocks.0.ffn.key.weight"].shape[0]),
           (f"{arch}.attention.layer_norm_epsilon", 1e-5), (f"{arch}.attention.head_count", 0),
           (f"{arch}.wkv.head_size", width // heads)]
    if version == "7":
        for key, factor in (("decay", "w1"), ("iclr", "a1"), ("value_residual_mix", "v1"), ("gate", "g1")):
            out.append((f"{arch}.attention.{key}_lora_rank", original[f"blocks.1.att.{factor}"].shape[1]))
    else:
        out += [(f"{arch}.time_mix_extra_dim", original["blocks.0.att.time_maa_w1"].shape[1] // 5),
                (f"{arch}.time_decay_extra_dim", original["blocks.0.att.time_decay_w1"].shape[1]),
                (f"{arch}.rescale_every_n_layers", rescale)]
    return out + [("tokenizer.ggml.model", "bytes")]


def gguf_tensors(version, original, kind, rescale, fused):
    """(name, type, array): matrices of products as `kind`, the rest F32."""
    out = []

    def put(name, x, matrix=False):
        out.append((name, kind if matrix else "F32", np.ascontiguousarray(x)))

    def norm(to, source):
        put(to + ".weight", original[source + ".weight"])
        put(to + ".bias", original[source + ".bias"])

    put("token_embd.weight", original["emb.weight"], True)
    norm("token_embd_norm", "blocks.0.ln0")
    layers = len({key.split(".")[1] for key in original if key.startswith("blocks.")})
    for i in range(layers):
        b, p = f"blocks.{i}.", f"blk.{i}."
        t = {key[len(b) :]: x for key, x in original.items() if key.startswith(b)}
        norm(p + "attn_norm", b + "ln1")
        norm(p + "attn_norm_2", b + "ln2")
        norm(p + "time_mix_ln", b + "att.ln_x")
        scale = np.float32(2.0 ** -(i // rescale)) if rescale else np.float32(1)
        for f in ("receptance", "key", "value", "output"):
            put(p + f"time_mix_{f}.weight", t[f"att.{f}.weight"] * (scale if f == "output" else 1), True)
        put(p + "channel_mix_key.weight", t["ffn.key.weight"], True)
        put(p + "channel_mix_value.weight", t["ffn.value.weight"] * scale, True)
        if version == "7":
            put(p + "time_mix_lerp_fused.weight", np.stack([t["att.x_" + f] for f in "rwkvag"]))
            for f in "wavg":
                source = "a" if f == "v" and i == 0 else f  # layer 0 has no v: the converter fills in
                for n in ("0", "1", "2") if f != "g" else ("1", "2"):
                    x = t[f"att.{source}{n}"]
                    put(p + f"time_mix_{f}{n}.weight", x.reshape(-1) if n == "0" else x.T)
            for f in ("k_k", "k_a", "r_k"):
                put(p + f"time_mix_{f}.weight", t["att." + f].reshape(-1))
            put(p + "channel_mix_lerp_k.weight", t["ffn.x_k"].reshape(-1))
        else:
            put(p + "time_mix_lerp_x.weight", t["att.time_maa_x"].reshape(-1))
            if fused:
                put(p + "time_mix_lerp_fused.weight",
                    np.stack([t["att.time_maa_" + f].reshape(1, 1, -1) for f in "wkvrg"]))
            else:
                for f in "wkvrg":
                    put(p + f"time_mix_lerp_{f}.weight", t["att.time_maa_" + f].reshape(1, 1, -1))
            put(p + "time_mix_w1.weight", t["att.time_maa_w1"].T)
            put(p + "time_mix_w2.weight", t["att.time_maa_w2"].transpose(0, 2, 1))
            put(p + "time_mix_first.weight", t["att.time_faaaa"])
            put(p + "time_mix_decay.weight", t["att.time_decay"].reshape(-1))
            for n in ("w1", "w2"):
                put(p + f"time_mix_decay_{n}.weight", t["att.time_decay_" + n].T)
            put(p + "time_mix_gate.weight", t["att.gate.weight"], True)
            put(p + "channel_mix_receptance.weight", t["ffn.receptance.weight"], True)
            for f in "kr":
                put(p + f"channel_mix_lerp_{f}.weight", t["ffn.time_maa_" + f].reshape(-1))
    norm("output_norm", "ln_out")
    put("output.weight", original["head.weight"], True)
    return out


def files(folders, gguf):
    """{path: bytes} from {path: bytes} of the tiny folders and make_tiny's GGUF writer."""
    out = {"config.json": (json.dumps(BIN_CONFIG, indent=2) + "\n").encode()}

    def original(name, version):
        return to_original(version, read_safetensors(folders[f"{name}/model.safetensors"]))

    for name, version, kind, rescale, fused in (
            ("tiny-rwkv7-a", "7", "F32", 0, True), ("tiny-rwkv7-b", "7", "BF16", 0, True),
            ("tiny-rwkv6-a", "6", "F32", 2, True), ("tiny-rwkv6-b", "6", "BF16", 0, False)):
        tensors = original(name, version)
        out[name + ".gguf"] = gguf(metadata(name, version, tensors, rescale),
                                   gguf_tensors(version, tensors, kind, rescale, fused))
    for name, version in (("tiny-rwkv4-a", "4"), ("tiny-rwkv51-a", "5.1"), ("tiny-rwkv52-a", "5.2"),
                          ("tiny-rwkv6-a", "6"), ("tiny-rwkv7-a", "7")):
        out[name + ".bin"] = rwkv_cpp(version, original(name, version))
    return out
