#!/usr/bin/python3
"""Trains a small model and exports it as a checkpoint folder that the engine loads. See train/README.md.

  train/train.py --arch infini --task passkey --out train/checkpoints/infini-passkey
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import sys
import time

import needs

needs.modules("numpy", "torch")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import evaluate  # noqa: E402
import models  # noqa: E402
import tasks  # noqa: E402
from checkpoint import read_folder, write_folder  # noqa: E402
from tasks import fillers as all_fillers  # noqa: E402
from trainable import detached, selected, set_threads  # noqa: E402

LOG_EVERY = 20  # steps per row of metrics.csv
POOL = 16  # sequences of filler whose states other sequences start from
PROGRESS = ("length", "dilution", "carry", "answer_loss", "since", "level")  # of the curriculum; the rest of it are options
TORCH_DTYPE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and every default."""

    def _get_help_string(self, action):
        text = action.help or ""
        plain = action.default is None or action.default in (False, [], argparse.SUPPRESS) or action.required
        return text if plain else (text + " (default: %(default)s)").lstrip()


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    p.add_argument("--arch", choices=models.PRESETS, required=True, help="what is trained")
    p.add_argument("--task", choices=tasks.NAMES, default="passkey", help="what on: train/tasks")
    p.add_argument("--out", required=True, help="checkpoint folder; also gets metrics.csv, evals.csv, training.pt")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                   help="a size or config key of the architecture; with --init, a config key that no weight's shape depends on")
    p.add_argument("--init", help="checkpoint folder to continue from, with a fresh optimiser")
    p.add_argument("--resume", action="store_true", help="go on where --out stopped")
    p.add_argument("--seed", type=int, default=1, help="of weights and data")
    p.add_argument("--steps", type=int, default=2000, help="of the whole run; the learning rate follows them")
    p.add_argument("--stop-after", type=int, help="stop (resumably) after this step")
    p.add_argument("--minutes", type=float, help="stop (resumably) after so much time")
    p.add_argument("--tokens", type=int, default=4096, help="per step, in all sequences together")
    p.add_argument("--length", type=int, default=512, help="longest sequence, tokens")
    p.add_argument("--length-from", type=int, default=128, help="where the curriculum starts")
    p.add_argument("--level-steps", type=int, default=15, help="at least so many at each level of the curriculum")
    p.add_argument("--level-loss", type=float, default=0.5, help="of the answers, below which the next level begins")
    p.add_argument("--window", type=int, help="tokens per backward pass; default: the whole sequence")
    p.add_argument("--fillers", default=",".join(all_fillers.TRAINED),
                   help="one that is named twice comes twice as often; there is also: " + ", ".join(all_fillers.PRACTICE))
    p.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    p.add_argument("--gate-lr", type=float, default=10.0, help="times --lr")
    p.add_argument("--warmup", type=int, default=50, help="steps in which the learning rate rises")
    p.add_argument("--final-lr", type=float, default=0.05, help="share of --lr at the end of the cosine")
    p.add_argument("--weight-decay", type=float, default=0.01, help="of matrices")
    p.add_argument("--clip", type=float, default=1.0, help="norm to which a gradient is shortened")
    p.add_argument("--skip-above", type=float, help="gradient norm above which a step is skipped, as a non-finite one always is")
    p.add_argument("--rehearsal-weight", type=float, default=0.5, help="of the loss of the key's second mention")
    p.add_argument("--text-weight", type=float, default=0.1, help="of the loss of every byte")
    p.add_argument("--gate-cost", type=float, default=0.0, help="price of write and forget gates that are open on filler")
    p.add_argument("--dilution", type=float, default=1.0, help="largest factor R on filler")
    p.add_argument("--dilution-share", type=float, default=0.5, help="share of samples that are diluted")
    p.add_argument("--boundary-share", type=float, default=0.0,
                   help="share of steps whose sequences end just after a multiple of the state's unit (a segment)")
    p.add_argument("--boundary-tokens", type=int, default=24, help="such a sequence ends less than so many tokens after it")
    p.add_argument("--cut-share", type=float, default=0.0, help="share of steps in which such a multiple lies in the key (passkey only)")
    p.add_argument("--near-share", type=float, default=0.0, help="share of steps whose sequences are at most two such units long")
    p.add_argument("--carry", type=float, default=0.0, help="probability of starting from another sequence's state")
    p.add_argument("--carry-age", type=int, default=2560, help="tokens of filler that such a state has read, on average, at most")
    p.add_argument("--eval-every", type=int, default=500, help="steps")
    p.add_argument("--eval-lengths", default="512,2048,8192", help="tokens")
    p.add_argument("--eval-samples", type=int, default=32, help="of each length")
    p.add_argument("--export", choices=("F32", "F16", "BF16"), default="F32", help="type of the weights in model.safetensors")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch")
    p.add_argument("--quiet", action="store_true", help="prints nothing while it trains")
    args = p.parse_args(argv)
    if args.cut_share and args.task != "passkey":
        p.error("--cut-share is for --task passkey")
    return args


def parsed(pair):
    key, value = pair.split("=", 1)
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@dataclasses.dataclass
class Curriculum:
    """Lookup first, distance second: sequences grow when the answers come out, then dilution and carried states."""

    length: int
    longest: int
    largest_dilution: float
    largest_carry: float
    least_steps: int = 15  # at a level
    passes: float = 0.5  # answers' loss with which a level ends
    dilution: float = 1.0
    carry: float = 0.0
    answer_loss: float = 3.0  # running mean
    since: int = 0  # steps at this level
    level: int = 0

    def update(self, answer_loss):
        self.answer_loss += 0.1 * (answer_loss - self.answer_loss)
        self.since += 1
        if self.answer_loss > self.passes or self.since < self.least_steps:
            return
        self.since = 0
        self.level += 1
        if self.length < self.longest:
            self.length = min(self.longest, self.length + max(32, self.length // 4))
        elif self.answer_loss < 0.3:
            self.carry = min(self.largest_carry, max(0.2, self.carry + 0.1))
        # Dilution grows along with length, so that the lookup is never learned in a form that it breaks.
        if self.answer_loss < 0.3 or self.length < self.longest:
            self.dilution = min(self.largest_dilution, self.dilution * 2)


def groups(model, args):
    """Matrices decay, gates learn faster, the rest does neither."""
    named = {"gate": [], "decay": [], "rest": []}
    for name, t in model.w.items():
        if model.frozen(name):
            t.requires_grad_(False)
            continue
        named["gate" if model.is_gate(name) else "decay" if model.decays(name) else "rest"].append(t)
    return [{"params": named["decay"], "scale": 1.0, "weight_decay": args.weight_decay},
            {"params": named["rest"], "scale": 1.0, "weight_decay": 0.0},
            {"params": named["gate"], "scale": args.gate_lr, "weight_decay": 0.0}]


def learning_rate(step, args):
    warm = min(1.0, (step + 1) / max(1, args.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))
    return args.lr * warm * (args.final_lr + (1 - args.final_lr) * cosine)


def training_of(folder):
    """The options that made a checkpoint, and what they took; None if it was not made here."""
    options, metrics = (os.path.join(folder, name) for name in ("training.json", "metrics.csv"))
    if not os.path.exists(options) or not os.path.exists(metrics):
        return None
    with open(options) as f, open(metrics) as rows:
        last = list(csv.DictReader(rows))[-1]
        return {**json.load(f), "took": {name: float(last[name]) for name in ("step", "tokens", "seconds")}}


class Trainer:
    def __init__(self, args):
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        if args.init:
            config, weights = read_folder(args.init)
            changes = dict(parsed(pair) for pair in args.set)
            assert changes.keys() <= config.keys(), f"--set with --init takes keys of {args.init}/config.json"
            self.model = models.of({**config, **changes}, weights)
        else:
            self.model = models.new(args.arch, self.rng, **dict(parsed(pair) for pair in args.set))
        options = {"fillers": tuple(args.fillers.split(","))}
        allowed = all_fillers.TRAINED + all_fillers.PRACTICE
        assert set(options["fillers"]) <= set(allowed), f"only {', '.join(allowed)} may be trained on"
        self.task = tasks.make(args.task, **options)
        self.optimizer = torch.optim.AdamW([g for g in groups(self.model, args) if g["params"]], lr=args.lr, betas=(0.9, 0.98))
        start = args.length if args.task == "lm" else min(args.length, max(args.length_from, self.task.shortest))
        self.curriculum = Curriculum(start, args.length, args.dilution, args.carry, args.level_steps, args.level_loss)
        self.step, self.seconds, self.tokens_read, self.skipped = 0, 0.0, 0, 0
        self.pool = None
        self.rows = []

    # ---- one step

    def batch(self):
        length = self.curriculum.length
        shortest = min(self.task.shortest, length)
        # Any length: question and needle meet every phase of a segment.
        T = length if self.rng.random() < 0.3 else int(self.rng.integers(max(shortest, length // 2), length + 1))
        # Where what is near is found in another way than what is far, short sequences must not end with the curriculum.
        if self.rng.random() < self.args.near_share:
            T = int(self.rng.integers(shortest, max(shortest, min(length, 2 * self.model.align)) + 1))
        if self.rng.random() < self.args.boundary_share:
            # A state boundary inside the question or the answer: rare by chance, and hard where attention ends with it.
            end = T - T % self.model.align + int(self.rng.integers(min(self.args.boundary_tokens, self.model.align)))
            T = end if shortest <= end <= length else T
        # Nothing is drawn without the option: earlier commands must go on giving the same weights.
        cut = {"cut": self.model.align} if self.args.cut_share and self.rng.random() < self.args.cut_share else {}
        return self.task.batch(self.rng, max(1, round(self.args.tokens / T)), T, **cut)

    def dilution(self, batch):
        largest = self.curriculum.dilution
        if largest <= 1 or self.args.task == "lm":
            return None
        B = batch.tokens.shape[0]
        R = np.exp(self.rng.random(B) * math.log(largest)) * (self.rng.random(B) < self.args.dilution_share)
        R = np.maximum(R, 1)[:, None]
        return torch.from_numpy(np.where(batch.filler, R, 1).astype(np.float32))

    def start_state(self, B):
        """Fresh, or after some filler that other sequences have read without gradient."""
        if self.rng.random() >= self.curriculum.carry:
            return self.model.initial_state(B)
        n = max(self.model.align, 256 // self.model.align * self.model.align)
        if self.pool is None or self.rng.random() < n / self.args.carry_age:
            self.pool = detached(self.model.initial_state(POOL))
        filler = torch.from_numpy(self.task.filler_only(self.rng, POOL, n).tokens[:, :n])
        with torch.no_grad():
            _, self.pool = self.model.forward(filler, self.pool)
        self.pool = detached(self.pool)
        return selected(self.pool, torch.from_numpy(self.rng.integers(POOL, size=B)))

    def losses(self, logits, batch, rows):
        """Of the positions `rows`: what is minimised, and the sums that are reported."""
        targets = torch.from_numpy(batch.tokens[:, rows.start + 1:rows.stop + 1])
        answer, rehearsal = (torch.from_numpy(x[:, rows]) for x in (batch.answer, batch.rehearsal))
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        total = each.sum() * (self.args.text_weight / batch.answer.size)
        total = total + (each * answer).sum() / max(1, batch.answer.sum())
        if batch.rehearsal.any():
            total = total + (each * rehearsal).sum() * (self.args.rehearsal_weight / batch.rehearsal.sum())
        with torch.no_grad():
            hit = (logits.argmax(-1) == targets) | ~answer
            return total, (each * answer).sum().item(), (hit & answer).sum().item(), hit.all(1).numpy()

    def train_step(self):
        args, model = self.args, self.model
        model.practise(self.curriculum.length)
        lr = learning_rate(self.step, args)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        batch = self.batch()
        B, T = batch.answer.shape
        dilution = self.dilution(batch)
        state = self.start_state(B)
        window = T if args.window is None else max(1, args.window // model.align) * model.align
        self.optimizer.zero_grad()
        loss_sum = answer_sum = hits = 0.0
        exact = np.ones(B, bool)
        for at in range(0, T, window):
            rows = slice(at, min(T, at + window))
            logits, state = model.forward(torch.from_numpy(batch.tokens[:, rows]), state,
                                          None if dilution is None else dilution[:, rows])
            loss, answer_loss, hit, all_hit = self.losses(logits, batch, rows)
            if args.gate_cost:
                closed = model.cost(torch.from_numpy(batch.filler[:, rows]))
                # In full from the fourth level on: before the lookup is learned it would close everything.
                price = args.gate_cost * min(1.0, self.curriculum.level / 4)
                loss = loss + price * closed * (rows.stop - rows.start) / T
            loss.backward()
            state = detached(state)
            loss_sum, answer_sum, hits, exact = loss_sum + loss.item(), answer_sum + answer_loss, hits + hit, exact & all_hit
        norm = torch.nn.utils.clip_grad_norm_([t for t in model.w.values() if t.requires_grad], args.clip).item()
        finite = math.isfinite(loss_sum) and math.isfinite(norm)
        if finite and (args.skip_above is None or norm <= args.skip_above):
            self.optimizer.step()
        else:
            self.skipped += 1
        if not finite:  # neither the weights nor what is carried may keep it
            self.pool = None
        answers = max(1, batch.answer.sum())
        if math.isfinite(answer_sum):
            self.curriculum.update(answer_sum / answers)
        self.step += 1
        self.tokens_read += B * T
        self.rows.append({"loss": loss_sum, "answer_loss": answer_sum / answers, "answer_accuracy": hits / answers,
                          "exact": exact.mean() if args.task != "lm" else 0.0, "gradient_norm": norm, "lr": lr, "tokens": B * T})

    # ---- reports

    def log(self, seconds):
        mean = {k: float(np.mean([r[k] for r in self.rows])) for k in self.rows[0]}
        c = self.curriculum
        row = {"step": self.step, "seconds": round(self.seconds, 1), "tokens": self.tokens_read, "length": c.length,
               "dilution": c.dilution, "carry": round(c.carry, 2), "lr": mean["lr"], "loss": mean["loss"],
               "answer_loss": mean["answer_loss"], "answer_accuracy": mean["answer_accuracy"], "exact": mean["exact"],
               "gradient_norm": mean["gradient_norm"], "skipped": self.skipped,
               "tokens_per_s": sum(r["tokens"] for r in self.rows) / seconds, **self.model.statistics()}
        self.append("metrics.csv", row)
        self.rows = []
        return row

    def append(self, name, row):
        path = os.path.join(self.args.out, name)
        fresh = not os.path.exists(path)
        with open(path, "a", newline="") as f:
            writer = csv.DictWriter(f, row, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def bar(self, last):
        args, c = self.args, self.curriculum
        done = self.step / args.steps
        left = (args.steps - self.step) * self.seconds / max(1, self.step)
        cells = int(20 * done)
        sys.stderr.write(f"\r{self.step:6}/{args.steps} [{'#' * cells}{'.' * (20 - cells)}] T {c.length} R {c.dilution:g} "
                         f"carry {c.carry:.1f} loss {last['loss']:.3f} answer {last['answer_loss']:.3f} "
                         f"exact {last['exact']:.2f} {last['tokens_per_s']:.0f} tok/s {left / 60:.0f} min left   ")
        sys.stderr.flush()

    def evaluate(self):
        args = self.args
        self.model.practise(sys.maxsize)
        for label, length, r in evaluate.table(self.model, args.task, [int(n) for n in args.eval_lengths.split(",")],
                                               args.eval_samples):
            row = {"step": self.step, "train_seconds": round(self.seconds), "fillers": label, "length": length,
                   "samples": r.samples, "exact": r.exact, "token_accuracy": r.tokens, "seconds": round(r.seconds, 1)}
            self.append("evals.csv", row)
            if not args.quiet:
                print(f"\n  step {self.step} {label:>8} {length:>8} tokens: exact {r.exact:.3f} digits {r.tokens:.3f} "
                      f"({r.samples} samples, {r.seconds:.0f} s)", end="", file=sys.stderr, flush=True)
        if not args.quiet:
            print(file=sys.stderr)

    # ---- files

    def save(self):
        path = os.path.join(self.args.out, "training.pt")
        torch.save({"weights": {k: v.detach() for k, v in self.model.w.items()}, "optimizer": self.optimizer.state_dict(),
                    "rng": self.rng.bit_generator.state, "curriculum": dataclasses.asdict(self.curriculum),
                    "step": self.step, "seconds": self.seconds, "tokens_read": self.tokens_read, "skipped": self.skipped,
                    "pool": self.pool, "rows": self.rows, "config": self.model.config}, path + ".new")
        os.replace(path + ".new", path)
        write_folder(self.args.out, {**self.model.config, "torch_dtype": TORCH_DTYPE[self.args.export]}, self.model.w, self.args.export)

    def load(self):
        kept = torch.load(os.path.join(self.args.out, "training.pt"))
        assert kept["config"] == self.model.config, "the folder holds another model"
        with torch.no_grad():
            for name, t in kept["weights"].items():
                self.model.w[name].copy_(t)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.rng.bit_generator.state = kept["rng"]
        for name in PROGRESS:
            setattr(self.curriculum, name, kept["curriculum"][name])
        for name in ("step", "seconds", "tokens_read", "skipped", "pool", "rows"):
            setattr(self, name, kept[name])
        for name in ("metrics.csv", "evals.csv"):
            self.forget_after(name, self.step)

    def forget_after(self, name, step):
        """Rows that a run wrote after it was last saved: they will be written again."""
        path = os.path.join(self.args.out, name)
        if os.path.exists(path):
            with open(path, newline="") as f:
                header, *lines = list(csv.reader(f))
            with open(path, "w", newline="") as f:
                csv.writer(f, lineterminator="\n").writerows([header, *(r for r in lines if int(r[0]) <= step)])

    def run(self):
        args = self.args
        os.makedirs(args.out, exist_ok=True)
        if args.resume:
            self.load()
        else:
            for name in ("metrics.csv", "evals.csv"):
                if os.path.exists(os.path.join(args.out, name)):
                    os.remove(os.path.join(args.out, name))
            with open(os.path.join(args.out, "training.json"), "w") as f:
                json.dump({**vars(args), **({"before": training_of(args.init)} if args.init else {})}, f, indent=2)
                f.write("\n")
        end = min(args.steps, args.stop_after or args.steps)
        begin = marked = time.time()
        before = self.seconds
        while self.step < end and (args.minutes is None or time.time() - begin < 60 * args.minutes):
            t = time.time()
            self.train_step()
            self.seconds += time.time() - t
            if self.step % LOG_EVERY == 0 or self.step == args.steps:
                row = self.log(time.time() - marked)
                if not args.quiet:
                    self.bar(row)
                if self.step % 200 == 0:
                    self.save()
                marked = time.time()
            if args.eval_every and (self.step % args.eval_every == 0 or self.step == args.steps):
                self.evaluate()
                marked = time.time()
        self.save()
        if not args.quiet:
            print(f"\n{self.step} steps, {self.tokens_read} tokens, {self.seconds - before:.0f} s, "
                  f"{self.model.parameters()} parameters -> {args.out}", file=sys.stderr)


def main(argv=None):
    args = arguments(argv)
    set_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
