#!/usr/bin/python3
"""Converts an original RWKV checkpoint (a .pth file of RWKV-LM, versions 4, 5.1, 5.2, 6 and 7) to a
folder that the server reads: config.json, model.safetensors and, if named, the tokenizer.

  train/convert_rwkv.py MODEL.pth FOLDER [--type keep|f32|f16|bf16] [--tokenizer FILE]

--tokenizer takes rwkv_vocab_v20230424.txt (World models; the PyPI package `rwkv` carries it) or the
tokenizer.json of GPT-NeoX (Pile models; rwkv.cpp's 20B_tokenizer.json). Needs python3-torch and
numpy. The file is unpickled with nothing but tensors allowed. Layouts: docs/checkpoint_format.md.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import sys

import needs

needs.modules("torch")

import torch  # noqa: E402

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WANTED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

VERSION_4_TO_6 = {
    "emb.weight": "rwkv.embeddings.weight", "head.weight": "head.weight",
    "blocks.0.ln0": "rwkv.blocks.0.pre_ln", "ln_out": "rwkv.ln_out",
}
VERSION_7 = {
    "emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight",
    "blocks.0.ln0": "model.layers.0.pre_norm", "ln_out": "model.norm",
}
NAMES_4_TO_6 = {"att": "attention", "ffn": "feed_forward", "time_mix_k": "time_mix_key",
                "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance",
                "time_mix_g": "time_mix_gate"}
NAMES_7 = {"ln1": "attn_norm", "ln2": "ffn_norm", "att": "attn", "ln_x": "g_norm", "receptance": "r_proj",
           "key": "k_proj", "value": "v_proj", "output": "o_proj"}


class Refused(Exception):
    pass


def detect(tensors):
    """The version, from the names that only it has."""
    def has(part):
        return f"blocks.0.{part}" in tensors

    for name in tensors:
        if re.search(r"\.ffn\.s(_emb|[012]\b)", name):
            raise Refused(f"{name}: RWKV-7a (DeepEmbed) is not supported")
        if "qkv." in name:
            raise Refused(f"{name}: RWKV-7b is not supported")
    if "emb.weight" not in tensors or not has("ln1.weight"):
        raise Refused("no emb.weight and blocks.0.ln1.weight: this is no checkpoint of RWKV-LM")
    if has("att.r_k"):
        return "7"
    if has("att.time_maa_x"):
        return "6"
    if has("att.ln_x.weight"):
        return "5.2" if has("att.time_faaaa") else "5.1"
    return "4"


def new_name(version, name):
    """(name in the folder, whether the matrix is stored the other way round), or None to leave it out."""
    parts = name.split(".")
    if name.endswith("att.time_state"):
        print(f"{name}: a tuned initial state, which is left out", file=sys.stderr)
        return None
    ends = VERSION_7 if version == "7" else VERSION_4_TO_6
    for old in (name, name.rpartition(".")[0]):
        if old in ends:
            return ends[old] + name[len(old):], False
    if parts[0] != "blocks":
        raise Refused(f"{name}: not part of RWKV-{version}")
    layer, rest = parts[1], parts[2:]
    if version != "7":
        return ".".join(["rwkv.blocks", layer] + [NAMES_4_TO_6.get(part, part) for part in rest]), False
    prefix = f"model.layers.{layer}."
    factor = re.fullmatch(r"([wavg])([012])", rest[-1])
    if rest[0] == "att" and factor:
        letter, index = factor.groups()
        if letter == "v" and layer == "0":
            return None  # nothing uses it
        end = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[index]
        return f"{prefix}attn.{letter}_lora.lora.{end}", index != "0"
    if rest[0] == "ffn":
        return prefix + ".".join(rest), False
    return prefix + ".".join(NAMES_7.get(part, part) for part in rest), False


def convert(tensors, wanted=None):
    """(config, {name: tensor})"""
    version = detect(tensors)
    out = {}
    for name, x in tensors.items():
        if x.dtype not in TYPES:
            raise Refused(f"{name} has type {x.dtype}, expected f32, f16 or bf16")
        renamed = new_name(version, name)
        if renamed is None:
            continue
        to, transpose = renamed
        last = name.split(".")[-1]
        if transpose:
            x = x.t()
        elif version == "7" and re.fullmatch(r"[wav]0|k_[ka]", last) or name.endswith("ffn.x_k"):
            x = x.reshape(-1)
        elif version == "4" and last in ("time_decay", "time_first"):
            x = x.reshape(-1)
        out[to] = (x.to(wanted) if wanted else x).contiguous()

    first = "blocks.0.att."
    vocab, width = tensors["emb.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    config = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
              "intermediate_size": tensors["blocks.0.ffn.key.weight"].shape[0], "tie_word_embeddings": False}
    if version == "7":
        head_size = tensors[first + "r_k"].shape[1]
        config.update(model_type="rwkv7", head_dim=head_size, num_heads=width // head_size, hidden_act="sqrelu",
                      norm_eps=1e-5, norm_first=True, norm_bias=True, attn=None)
        for key, factor in (("decay", "w1"), ("a", "a1"), ("v", "v1"), ("gate", "g1")):
            config[key + "_low_rank_dim"] = tensors[f"blocks.{layers - 1}.att.{factor}"].shape[1]
    else:
        config.update(model_type={"4": "rwkv", "6": "rwkv6"}.get(version, "rwkv5"), attention_hidden_size=width,
                      layer_norm_epsilon=1e-5)
        if version != "4":
            heads = tensors[first + ("time_first" if version == "5.1" else "time_faaaa")].shape[0]
            config.update(head_size=width // heads, head_size_divisor=8, num_attention_heads=heads)
    return config, out


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        size = x.numel() * x.element_size()
        header[name] = {"dtype": TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            # numpy has no bf16.
            f.write((x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().tobytes())


def write_folder(folder, config, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(folder / "model.safetensors", tensors)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL.pth")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--type", choices=["keep", *WANTED], default="keep")
    parser.add_argument("--tokenizer", type=pathlib.Path)
    args = parser.parse_args(arguments)
    try:
        tensors = torch.load(args.model, map_location="cpu", weights_only=True)
        if not isinstance(tensors, dict) or not all(isinstance(x, torch.Tensor) for x in tensors.values()):
            raise Refused(f"{args.model}: expected a dictionary of tensors")
        config, tensors = convert(tensors, WANTED.get(args.type))
    except Refused as refusal:
        sys.exit(str(refusal))
    write_folder(args.folder, config, tensors)
    if args.tokenizer:
        name = "tokenizer.json" if args.tokenizer.suffix == ".json" else "rwkv_vocab_v20230424.txt"
        shutil.copyfile(args.tokenizer, args.folder / name)
    print(f"{args.folder}: {config['model_type']}, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
