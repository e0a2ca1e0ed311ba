#!/usr/bin/python3
"""Recall of a PyTorch model on long contexts: state carried from window to window, no gradients, many sequences
at a time. Steers training; the figures that are published come from the server.

Greedy decoding gives the whole answer exactly if every digit, with the right ones before it, comes out first; so one
pass suffices.

  train/evaluate.py CHECKPOINT [--task passkey] [--lengths 1024,8192] [--samples 32]
"""

import argparse
import dataclasses
import os
import sys
import time

import needs

needs.modules("numpy", "torch")

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import models  # noqa: E402
import tasks  # noqa: E402
from checkpoint import read_folder  # noqa: E402
from tasks import fillers  # noqa: E402
from trainable import set_threads  # noqa: E402

SEED = 0x5EED_E7A1  # never a training seed: those are small
TAIL = 96  # tokens, question and answer included, that are read in the last window whatever happens


@dataclasses.dataclass
class Recall:
    exact: float  # share of samples with every token of the answer right
    tokens: float  # share of answer tokens right
    samples: int
    seconds: float


@torch.no_grad()
def recall(model, task, length, samples, seed=SEED, batch=16, window=1024):
    """Depths are spread evenly over the samples."""
    window = max(1, window // model.align) * model.align
    rng = np.random.default_rng([seed, length])
    depths = (np.arange(samples) + 0.5) / samples
    right, begin = [], time.time()
    for first in range(0, samples, batch):
        rows = [task.batch(rng, 1, length, depth) for depth in depths[first:first + batch]]
        tokens = torch.from_numpy(np.concatenate([b.tokens for b in rows]))
        answer = torch.from_numpy(np.concatenate([b.answer for b in rows]))
        state, at = model.initial_state(len(rows)), 0
        while length - at > window + TAIL:
            _, state = model.forward(tokens[:, at:at + window], state)
            at += window
        logits, _ = model.forward(tokens[:, at:length], state)
        assert not answer[:, :at].any() or task.answer_tokens is None
        hit = (logits.argmax(-1) == tokens[:, at + 1:]) | ~answer[:, at:]
        right += [(h.all().item(), h[a].float().mean().item()) for h, a in zip(hit, answer[:, at:])]
    exact, share = (float(np.mean(column)) for column in zip(*right))
    return Recall(exact, share, samples, time.time() - begin)


def table(model, task_name, lengths, samples, trained=True, unseen=True, **options):
    """Yields (fillers, length, Recall)."""
    sets = [("trained", fillers.TRAINED)] * trained + [("unseen", fillers.UNSEEN)] * unseen
    for length in lengths:
        for label, names in sets:
            yield label, length, recall(model, tasks.make(task_name, fillers=names), length, samples, **options)


@torch.no_grad()
def gates_on_filler(model, name, length=4096):
    """What the gates do where there is nothing to remember: retention is about one over what is open."""
    rng = np.random.default_rng(SEED)
    tokens = torch.frombuffer(bytearray(fillers.fill(name, rng, length)), dtype=torch.uint8).long()
    model.forward(tokens.view(4, -1), model.initial_state(4))
    return model.statistics()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--task", default="passkey", choices=tasks.NAMES)
    parser.add_argument("--lengths", default="512,2048,8192")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--fillers", help="comma-separated names instead of the two groups")
    parser.add_argument("--gates", action="store_true", help="what the gates do on each filler, instead of recall")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    set_threads(args.threads)
    model = models.of(*read_folder(args.checkpoint))
    if args.gates:
        for name in fillers.TRAINED + fillers.UNSEEN:
            print(f"{name:>16} " + " ".join(f"{k} {v:.2e}" for k, v in gates_on_filler(model, name).items()), flush=True)
        return
    lengths = [int(n) for n in args.lengths.split(",")]
    if args.fillers:
        rows = ((name, n, recall(model, tasks.make(args.task, fillers=(name,)), n, args.samples, batch=args.batch))
                for n in lengths for name in args.fillers.split(","))
    else:
        rows = table(model, args.task, lengths, args.samples, batch=args.batch)
    print(f"{'filler':>16} {'tokens':>9} {'exact':>7} {'digits':>7} {'n':>5} {'seconds':>8}")
    for label, length, r in rows:
        print(f"{label:>16} {length:>9} {r.exact:7.3f} {r.tokens:7.3f} {r.samples:5} {r.seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
