#!/usr/bin/python3
"""Writes README.md, the model card, into a checkpoint folder from what training left there: training.json (the options),
metrics.csv, evals.csv, config.json. Nothing in it is typed by hand but --note.

  train/card.py train/checkpoints/infini-passkey --note "..." [--hardware "2 cores of ..."]
"""

import argparse
import csv
import hashlib
import json
import os
import shlex
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tasks import fillers, text  # noqa: E402

DATA = {
    "passkey": "A five-digit key in filler, asked at the end (`train/tasks/passkey.py`), keys, places and lengths drawn at random.",
    "needle": "Key-value pairs in filler, one of them asked (`train/tasks/needle.py`), names and values drawn at random.",
    "lm": "Bytes of the King James Bible (public domain; Debian package bible-kjv-text), all books but "
          + ", ".join(text.HELD_OUT) + ".",
}
NOT_SHOWN = ("resume", "quiet", "minutes", "before", "took")
SHOWN = ("arch", "task", "seed", "steps", "tokens", "length", "lr", "dilution", "carry", "gate_cost")


def rows(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return list(csv.DictReader(f))


def command(options, defaults):
    """The command that trains it again."""
    words = ["train/train.py"]
    for name, value in options.items():
        if value == defaults.get(name) or value in (None, False, []) or name in NOT_SHOWN:
            continue
        flag = "--" + name.replace("_", "-")
        for v in value if isinstance(value, list) else [value]:
            words += [flag] if v is True else [flag, str(v)]
    return " ".join(shlex.quote(w) for w in words)


def chain(options):
    """Options of the runs that lead to a checkpoint, the first run first."""
    return (chain(options["before"]) if options.get("before") else []) + [options]


def card(folder, note, hardware):
    import train

    with open(os.path.join(folder, "training.json")) as f:
        options = json.load(f)
    defaults = vars(train.arguments(["--arch", options["arch"], "--out", "x"]))
    del defaults["arch"], defaults["out"]
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        weights = f.read()
    metrics, evals = (rows(os.path.join(folder, name)) for name in ("metrics.csv", "evals.csv"))
    last, runs = metrics[-1], chain(options)
    step, tokens, seconds = (sum(run["took"][name] for run in runs[:-1]) + float(last[name]) for name in ("step", "tokens", "seconds"))
    lines = [f"# {os.path.basename(os.path.abspath(folder))}", ""]
    lines += [note, ""] if note else []
    lines += [f"`{config['model_type']}`, {len(weights):,} bytes of weights ({config['torch_dtype']}), SHA-256 of `model.safetensors` "
              f"`{hashlib.sha256(weights).hexdigest()}`. Tokenizer: bytes. Licence: as the repository.", "",
              "## Data", "", DATA[options["task"]]]
    if options["task"] != "lm":
        trained_on = dict.fromkeys(name for run in runs for name in run["fillers"].split(","))
        lines += [f"Fillers trained on: {', '.join(trained_on)}. Never trained on: {', '.join(fillers.UNSEEN)}."]
    lines += ["", "## Training", "", *[f"{len(runs)} runs, one after the other; the table is of the last." for _ in runs[1:2]], "```", *(command(run, defaults) for run in runs), "```", "",
              "| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN), "| " + " | ".join(str(options[k]) for k in SHOWN) + " |", "",
              f"{step:.0f} steps, {tokens:,.0f} tokens, {seconds:.0f} s in training steps"
              + (f" on {hardware}" if hardware else "") + f" ({seconds / 60:.0f} min), longest sequence "
              f"{max(run['length'] for run in runs)} tokens. Last {train.LOG_EVERY} steps: answer loss {float(last['answer_loss']):.4f}, exact "
              f"{float(last['exact']):.3f}, at dilution {last['dilution']} and carry {last['carry']}.", ""]
    if evals:
        lines += ["## Recall of the PyTorch model while training", "",
                  "Depths spread evenly; `unseen` fillers were never trained on. The served figures are in docs/.", "",
                  "| step | fillers | tokens | exact | digits | samples |", "|---|---|---|---|---|---|"]
        final = [e for e in evals if e["step"] == evals[-1]["step"]]
        lines += [f"| {e['step']} | {e['fillers']} | {int(e['length']):,} | {float(e['exact']):.3f} | {float(e['token_accuracy']):.3f} | "
                  f"{e['samples']} |" for e in final]
        lines += [""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--note", default="")
    parser.add_argument("--hardware", default="")
    args = parser.parse_args()
    with open(os.path.join(args.folder, "README.md"), "w") as f:
        f.write(card(args.folder, args.note, args.hardware))


if __name__ == "__main__":
    main()
