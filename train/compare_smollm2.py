#!/usr/bin/python3
"""Compares the engine with the PyTorch reference on the real SmolLM2-135M-Instruct GGUF.

  train/compare_smollm2.py MODEL.gguf build-release/bench/dump_logits [--text FILE]

1. Contract f32, f32 keys and values, 256 tokens of text: largest absolute difference of logits at
   most 5e-3, and the same most likely token wherever the reference's margin exceeds 1e-2.
2. Contract int8, f16 keys and values, 2,048 tokens: mean KL(reference || engine) at most 1e-2 nats,
   perplexity within 1 %.
3. Greedy answers under both contracts, for a person to read. (Where the reference's margin is a
   tenth of a logit, int8 may take the other way: it does for the capital of France.)

The reference dequantises with the PyPI package `gguf` and computes in f32. Token ids come from the
engine's own tokenizer. Needs python3-torch, `gguf`, 1 GB of disk below --work and some minutes.
Exits with 1 if a bound is broken.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import needs

needs.modules("numpy", "torch")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from llama import reference  # noqa: E402

QUESTIONS = ["What is the capital of France?", "Explain in two sentences why the sky is blue.",
             "Write a short poem about the sea."]


def dump(args, out, tokens, *flags):
    subprocess.run([args.dump_logits, args.model, "--text", args.text, "--limit", str(tokens),
                    "--ids-out", out + ".ids", "--out", out, *flags], check=True)
    ids = np.loadtxt(out + ".ids", dtype=np.int64)
    logits = np.memmap(out, "<f4", "r").reshape(len(ids), -1)
    if len(ids) != tokens:
        sys.exit(f"{args.text} has only {len(ids)} tokens, {tokens} are needed")
    return ids, logits


def compare_f32(args, model):
    ids, ours = dump(args, os.path.join(args.work, "f32.bin"), 256, "--contract", "f32", "--kv",
                     "f32", "--backend", args.backend)
    theirs = model.logits(ids).numpy()
    difference = np.abs(theirs - ours).max()
    top2 = np.sort(theirs, axis=1)[:, -2:]
    clear = top2[:, 1] - top2[:, 0] > 1e-2
    same = theirs.argmax(1) == ours.argmax(1)
    print(f"contract f32, kv f32, {len(ids)} tokens: max |difference| {difference:.3g} "
          f"(bound 5e-3); same top-1 at {int((same & clear).sum())} of {int(clear.sum())} tokens "
          f"whose margin exceeds 1e-2")
    return bool(difference <= 5e-3 and (same | ~clear).all())


def compare_int8(args, model):
    ids, ours = dump(args, os.path.join(args.work, "int8.bin"), 2048, "--contract", "int8", "--kv",
                     "f16", "--backend", args.backend)
    hidden = model.hidden(ids)
    kl, ours_nll, theirs_nll = [], [], []
    for begin in range(0, len(ids), 64):
        p = model.head(hidden[begin:begin + 64]).double().log_softmax(-1)
        q = torch.from_numpy(np.array(ours[begin:begin + 64])).double().log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1))
        following = torch.from_numpy(ids[begin + 1:begin + 65])[:, None]
        n = len(following)
        theirs_nll.append(-p[:n].gather(1, following)[:, 0])
        ours_nll.append(-q[:n].gather(1, following)[:, 0])
    kl, ours_nll, theirs_nll = (torch.cat(x) for x in (kl, ours_nll, theirs_nll))
    ours_ppl, theirs_ppl = ours_nll.mean().exp().item(), theirs_nll.mean().exp().item()
    change = ours_ppl / theirs_ppl - 1
    print(f"contract int8, kv f16, {len(ids)} tokens: mean KL {kl.mean():.3g} nats (bound 1e-2), "
          f"worst {kl.max():.3g}; perplexity {ours_ppl:.4f}, reference {theirs_ppl:.4f}, "
          f"{100 * change:+.3f} % (bound 1 %)")
    return bool(kl.mean() <= 1e-2 and abs(change) <= 0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("dump_logits", help="the built bench/dump_logits")
    parser.add_argument("--text", default="/usr/share/common-licenses/GPL-3",
                        help="any text of 2,048 tokens or more (default: %(default)s)")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--work", help="folder for logits (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or temporary
        model = reference.load(args.model, torch.float32)
        good = compare_f32(args, model)
        good = compare_int8(args, model) and good
    for question in QUESTIONS:
        for contract, kv in (("f32", "f32"), ("int8", "f16")):
            print(f"\n> {question}   [{contract}, kv {kv}]", flush=True)
            subprocess.run([args.dump_logits, args.model, "--chat", question, "--contract",
                            contract, "--kv", kv, "--backend", args.backend], check=True,
                           stderr=subprocess.DEVNULL)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
