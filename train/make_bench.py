#!/usr/bin/python3
"""Writes one checkpoint of every architecture at one small size, for arch_bench and memory_bench.

    python3 train/make_bench.py OUT          about 120 MB, not committed
    build-release/bench/arch_bench OUT

All are 4 layers of width 256 over bytes, 3 to 6 million parameters in bfloat16, so weights and state
stay in the last cache and the table compares architectures, not memory. Random weights: the speed is
that of a trained checkpoint, the text is not. Needs numpy only.
"""

import argparse
import pathlib

import needs

needs.modules("numpy")

import tiny_archs  # noqa: E402
from make_tiny import Random, safetensors  # noqa: E402

WIDTH, LAYERS, FFN, HEADS, HEAD = 256, 4, 688, 4, 64
WINDOW = 256  # keys an attention layer sees, wherever there is a choice

HOST = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
            head_dim=HEAD, intermediate_size=FFN, rope_pairing="half", tie_word_embeddings=False)
MEMORY = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=FFN, memory_heads=HEADS,
              memory_head_dim=HEAD, memory_depth=2, memory_hidden_dim=HEAD, memory_chunk_tokens=16)
ATTENTION = dict(num_attention_heads=HEADS, persistent_tokens=8)
RWKV = dict(C=WIDTH, S=HEAD, L=LAYERS, F=4 * WIDTH)


def llama(random, name, **options):
    """The Llama-family block without any option: the window Transformer beside the others."""
    config, weights = tiny_archs.pangu_pi(random, name, siaf_n=1, aug_count=0, **options)
    weights.tensors = [(t, a) for t, a in weights.tensors if ".siaf." not in t]
    kept = {k: v for k, v in config.items() if not k.startswith(("siaf_", "aug_"))}
    return {**kept, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}, weights


CHECKPOINTS = {
    "llama": (llama, dict(HOST, max_position_embeddings=WINDOW)),
    "pangu_pi": (tiny_archs.pangu_pi, dict(HOST, siaf_n=2, aug_count=1, aug_ratio=32,
                                           max_position_embeddings=WINDOW)),
    "infini-linear": (tiny_archs.infini, dict(HOST, value_head_dim=HEAD, segment_tokens=WINDOW,
                                              memory_update="linear", first_segment="gated_zero")),
    "infini-delta": (tiny_archs.infini, dict(HOST, value_head_dim=HEAD, segment_tokens=WINDOW,
                                             memory_update="linear_delta", first_segment="gated_zero")),
    "bswa": (tiny_archs.fam, dict(HOST, block_tokens=WINDOW // 2, memory_blocks=1, fam_tokens=0)),
    "fam": (tiny_archs.fam, dict(HOST, block_tokens=WINDOW // 2, memory_blocks=1, fam_tokens=16,
                                 fam_query_pos="prev", fam_feedback_norm=False)),
    "titans-lmm": (tiny_archs.titans, dict(MEMORY, variant="lmm", read_mode="chunk")),
    "titans-lmm-token": (tiny_archs.titans, dict(MEMORY, variant="lmm", read_mode="token")),
    "titans-mac": (tiny_archs.titans, dict(MEMORY, **ATTENTION, variant="mac", segment_tokens=16)),
    "titans-mag": (tiny_archs.titans, dict(MEMORY, **ATTENTION, variant="mag", window_tokens=WINDOW)),
    "titans-mal": (tiny_archs.titans, dict(MEMORY, **ATTENTION, variant="mal", window_tokens=WINDOW)),
    "rwkv4": (tiny_archs.rwkv_4_to_6, dict(RWKV, version="4", S=WIDTH)),
    "rwkv5.1": (tiny_archs.rwkv_4_to_6, dict(RWKV, version="5.1")),
    "rwkv5.2": (tiny_archs.rwkv_4_to_6, dict(RWKV, version="5.2")),
    "rwkv6": (tiny_archs.rwkv_4_to_6, dict(RWKV, version="6", R=32, Rd=32)),
    "rwkv7": (tiny_archs.rwkv7, dict(RWKV, ranks=dict(w=32, a=32, v=16, g=64))),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to write, made if absent")
    args = parser.parse_args()
    for name, (builder, options) in CHECKPOINTS.items():
        config, weights = builder(Random, name, **options)
        for path, data in tiny_archs.folder(name, config, weights, safetensors, "BF16").items():
            path = args.out / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        print(args.out / name)


if __name__ == "__main__":
    main()
