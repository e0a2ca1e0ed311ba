#!/usr/bin/python3
"""Asks the PyTorch model what the server was asked, sample by sample: the answers must be the same up to the first wrong
digit, after which each goes its own way.

  train/served/compare.py CHECKPOINT OUT/samples.csv [--model NAME] [--longest 4K]
"""

import argparse
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import models  # noqa: E402
from checkpoint import read_folder  # noqa: E402
from served import plan, report  # noqa: E402

WINDOW = 1024
TAIL = 320  # question, answer and what totals differ by: read in the last window
BATCH = 20


def text_of(sample):
    shared = b"".join(plan.shared_text(sample.seed, sample.source, 0, sample.point))
    return shared + b"".join(sample.text()) + sample.question + sample.secret


@torch.no_grad()
def predictions(model, texts):
    """Greedy prediction of each of the last five bytes, the bytes before it given."""
    window, T = max(1, WINDOW // model.align) * model.align, max(map(len, texts))
    tokens = torch.zeros(len(texts), T, dtype=torch.long)
    for row, text in zip(tokens, texts):
        row[:len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    state, at = model.initial_state(len(texts)), 0
    while T - at > window + TAIL:
        _, state = model.forward(tokens[:, at:at + window], state)
        at += window
    logits, _ = model.forward(tokens[:, at:T], state)
    return [logits[i, len(text) - 6 - at:len(text) - 1 - at].argmax(-1).tolist() for i, text in enumerate(texts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("samples")
    parser.add_argument("--model", help="its name in the file; default: the folder's")
    parser.add_argument("--longest", default="4K")
    args = parser.parse_args()
    if not os.path.exists(args.samples):
        sys.exit(f"there is no {args.samples}")
    torch.set_num_threads(1)
    model = models.of(*read_folder(args.checkpoint))
    name = args.model or os.path.basename(os.path.abspath(args.checkpoint))
    rows = report.select(report.Rows(args.samples, report.SAMPLE_FIELDS).rows, model=name)
    if not rows:
        sys.exit(f"{args.samples} has no samples of {name}")
    different = 0
    for length in [n for n in report.distinct(rows, "length", int) if n <= plan.parse_length(args.longest)]:
        some, same, exact = report.select(rows, length=length), 0, 0
        for first in range(0, len(some), BATCH):
            part = some[first:first + BATCH]
            texts = [text_of(plan.Sample(*report.sample_key(row))) for row in part]
            for row, text, predicted in zip(part, texts, predictions(model, texts)):
                key = list(text[-5:])
                wrong = next((i for i in range(5) if predicted[i] != key[i]), 5)
                same += row["answer"].startswith(report.printable(key[:wrong] + predicted[wrong:wrong + 1]))
                exact += wrong == 5
        different += len(some) - same
        served = sum(int(r["exact"]) for r in some)
        print(f"{plan.length_name(length)}: {same} of {len(some)} answers equal; exact: {exact} by PyTorch, {served} by the server",
              flush=True)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
