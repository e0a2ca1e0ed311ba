#!/usr/bin/env python3
"""Holds the engine to the PyTorch reference on a trained checkpoint: logits after every token of a pass-key text.

  train/compare_engine.py --dump build-release/bench/dump_logits train/checkpoints/infini-passkey [--tokens 600]
"""

import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from check_train import reference_of  # noqa: E402
from checkpoint import read_folder  # noqa: E402
from tasks import fillers, passkey  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dump", required=True, help="the program bench/dump_logits")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative to the largest logit")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokens = passkey.Task(fillers.UNSEEN).batch(np.random.default_rng(1), 1, args.tokens).tokens[0, :-1]
    want = reference_of(args.checkpoint)(tokens.tolist()).float().numpy()
    with tempfile.TemporaryDirectory() as folder:
        ids, out = os.path.join(folder, "ids"), os.path.join(folder, "logits")
        with open(ids, "w") as f:
            f.write(" ".join(map(str, tokens)))
        options = ["--ids", ids, "--out", out, "--contract", "f32", "--kv", "f32", "--chunk", "37"]
        config, _ = read_folder(args.checkpoint)
        if config["model_type"] in ("llama", "pangu_pi"):
            options += ["--window", str(config["max_position_embeddings"]), "--sinks", "0"]
        subprocess.run([args.dump, args.checkpoint, *options], check=True)
        got = np.fromfile(out, np.float32).reshape(want.shape)
    error = np.abs(got - want).max() / max(1, np.abs(want).max())
    print(f"{args.checkpoint}: {args.tokens} tokens, largest difference {error:.1e} of the largest logit")
    sys.exit(error > args.tolerance)


if __name__ == "__main__":
    main()
