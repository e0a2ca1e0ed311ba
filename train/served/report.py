"""Results: files that survive an interruption, and what they say. Standard library only."""

import csv
import math
import os
import threading

from served import plan

MEMORY_NOTE = (
    "A Memorizing Transformer of the same shape keeps keys and values of all 1,048,576 tokens in one layer and a local window in "
    "every layer; computed from the checkpoint's sizes, 16 bits a number. Infini-attention's paper gives 114x at 65 K tokens, "
    "counting the numbers of its memory alone; here the whole state counts, local window and f32 included.")
CHANCE = "Chance: 1 in 100,000 for all five digits, 10 % for a digit."


class Rows:
    """A CSV file to which finished work is appended, a row at a time. Thread-safe."""

    def __init__(self, path, fields):
        self.path, self.fields, self.lock, self.rows = path, fields, threading.Lock(), []
        if os.path.exists(path):
            with open(path, newline="") as f:
                text = f.read()
            whole = text[:text.rfind("\n") + 1]  # a line cut short by a crash is dropped
            if whole != text:
                with open(path, "w", newline="") as f:
                    f.write(whole)
            lines = list(csv.reader(whole.splitlines()))
            if any(len(line) != len(fields) for line in lines) or (lines and lines[0] != list(fields)):
                raise SystemExit(f"{path} has other columns: move it away")
            self.rows = [dict(zip(fields, line)) for line in lines[1:]]
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            with open(path, "w", newline="") as f:
                csv.writer(f, lineterminator="\n").writerow(fields)

    def append(self, **row):
        with self.lock:
            self.rows.append({k: str(row[k]) for k in self.fields})
            with open(self.path, "a", newline="") as f:
                csv.writer(f, lineterminator="\n").writerow([row[k] for k in self.fields])


KEY_FIELDS = ("group", "filler", "length", "depth", "number", "seed", "wording")  # plan.Sample.key
SAMPLE_FIELDS = ("model", "fingerprint", *KEY_FIELDS, "point", "needle_at", "tokens", "distance", "key", "answer", "exact",
                 "digits", "state_bytes", "seconds")
SPEED_FIELDS = ("model", "fingerprint", "position", "prefill_tokens_per_s", "decode_tokens_per_s", "state_bytes")


def printable(answer):
    return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in answer)


def sample_key(row):
    kinds = (str, str, int, float, int, int, str)
    return tuple(kind(row[field]) for kind, field in zip(kinds, KEY_FIELDS))


def wilson(right, n, z=1.959964):
    """95 % interval of a share (Wilson 1927): sound at 0 and 100 %, where the textbook one has no width."""
    if n == 0:
        return 0.0, 1.0
    p, zz = right / n, z * z
    centre, half = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = (centre - half) / (1 + zz / n), (centre + half) / (1 + zz / n)
    return (0.0 if right == 0 else max(0.0, low)), (1.0 if right == n else min(1.0, high))


class Count:
    def __init__(self, rows):
        self.n, self.right = len(rows), sum(int(r["exact"]) for r in rows)
        self.digits = sum(int(r["digits"]) for r in rows) / (5 * self.n) if self.n else 0.0
        self.exact = self.right / self.n if self.n else 0.0
        self.interval = wilson(self.right, self.n)

    def __str__(self):
        return f"{100 * self.exact:.1f} % [{100 * self.interval[0]:.1f}, {100 * self.interval[1]:.1f}]" if self.n else "-"


def select(rows, **where):
    return [r for r in rows if all(r[k] == str(v) for k, v in where.items())]


def distinct(rows, field, kind=str):
    return sorted({kind(r[field]) for r in rows})


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]) + "\n"


def by_length(rows, models):
    """Yields (model, length, group, Count)."""
    for model in models:
        for length in distinct(rows, "length", int):
            for group in plan.GROUPS:
                if cell := select(rows, model=model, length=length, group=group):
                    yield model, length, group, Count(cell)


def recall_table(rows, models):
    depths, out = distinct(rows, "depth", float), []
    for model, length, group, whole in by_length(rows, models):
        cell = select(rows, model=model, length=length, group=group)
        at = [Count([r for r in cell if float(r["depth"]) == d]) for d in depths]
        out.append([model, plan.length_name(length), group, *(f"{c.right}/{c.n}" if c.n else "-" for c in at), str(whole),
                    f"{100 * whole.digits:.1f} %", whole.n])
    return table(["checkpoint", "tokens", "fillers", *(f"needle at {100 * d:g} %" for d in depths), "exact [95 % interval]",
                  "digits", "samples"], out)


def filler_table(rows, models):
    out = []
    for model in models:
        for length in distinct(rows, "length", int):
            cells = []
            for group, names in plan.GROUPS.items():
                for name in names:
                    c = Count(select(rows, model=model, length=length, filler=name))
                    cells.append(f"{c.right}/{c.n}" if c.n else "-")
            if any(c != "-" for c in cells):
                out.append([model, plan.length_name(length), *cells])
    names = [f"{n} ({g})" for g, ns in plan.GROUPS.items() for n in ns]
    return table(["checkpoint", "tokens", *names], out)


def distance_bins(rows):
    """[(low, high, rows)] by octaves of the distance between key and answer."""
    bins = {}
    for r in rows:
        bins.setdefault(int(r["distance"]).bit_length() - 1, []).append(r)
    return [(1 << b, (2 << b) - 1, bins[b]) for b in sorted(bins)]


def distance_table(rows, models):
    out = []
    for model in models:
        for low, high, part in distance_bins(select(rows, model=model)):
            c = Count(part)
            out.append([model, f"{low:,} to {high:,}", str(c), f"{100 * c.digits:.1f} %", c.n])
    return table(["checkpoint", "tokens between key and answer", "exact [95 % interval]", "digits", "samples"], out)


def reach(config):
    """How many tokens back a window model can see through all its layers; None for one with a memory."""
    if config["model_type"] != "llama":
        return None
    return config["num_hidden_layers"] * (config["max_position_embeddings"] - 1)


def reach_table(rows, configs):
    """Window models within and beyond their reach: beyond it nothing of the key can be known."""
    out = []
    for model, config in configs.items():
        if (far := reach(config)) is not None:
            mine = select(rows, model=model)
            for label, part in ((f"up to {far:,}", [r for r in mine if int(r["distance"]) <= far]),
                                (f"over {far:,}", [r for r in mine if int(r["distance"]) > far])):
                c = Count(part)
                out.append([model, label, str(c), f"{100 * c.digits:.1f} %" if c.n else "-", c.n])
    header = ["window model", "tokens between key and answer", "exact [95 % interval]", "digits", "samples"]
    return table(header, out) if out else ""


def speed_table(rows, models):
    out = []
    for model in models:
        for r in sorted(select(rows, model=model), key=lambda r: int(r["position"])):
            fields = ("position", "state_bytes", "prefill_tokens_per_s", "decode_tokens_per_s")
            out.append([model, *(f"{int(r[f]):,}" for f in fields)])
    return table(["checkpoint", "tokens read before", "state bytes", "reading, tokens/s", "writing, tokens/s"], out)


def shape_of(config):
    """(layers, width of a layer's keys, tokens of local attention) of a checkpoint's config."""
    layers, d = config["num_hidden_layers"], config["hidden_size"]
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or config.get("memory_heads")
    size = config.get("head_dim") or config.get("memory_head_dim") or (d // heads if heads else d)
    if config["model_type"].startswith("rwkv"):
        return layers, d, 0
    local = next((config[k] for k in ("segment_tokens", "window_tokens", "block_tokens") if k in config), None)
    if local is None:
        local = config.get("max_position_embeddings", 0) if config["model_type"] in ("llama", "pangu_pi") else 0
    return layers, heads * size, local


def kv_bytes(config, tokens):
    """Keys and values of so many tokens in every layer, 16 bits a number."""
    layers, width, _ = shape_of(config)
    return 2 * 2 * width * layers * tokens


def cache_bytes(config, tokens, layers=1):
    """A Memorizing Transformer of the same shape (Wu et al. 2022): keys and values of every token in `layers` layers, and
    every layer's local window; 16 bits a number."""
    depth, width, local = shape_of(config)
    return 2 * 2 * width * (layers * tokens + depth * local)


def memory_table(configs, state_bytes, tokens=1 << 20):
    out = []
    for model, config in configs.items():
        if model not in state_bytes:
            continue
        one, every = (cache_bytes(config, tokens, n) for n in (1, config["num_hidden_layers"]))
        own = state_bytes[model]
        out.append([model, f"{own:,}", f"{one:,}", f"{one / own:,.0f}x", f"{every:,}", f"{every / own:,.0f}x"])
    return table(["checkpoint", "state bytes, measured", "cache of one layer", "ratio", "cache of every layer", "ratio"], out)


def write(path, sample_rows, speed_rows, models, configs, state_bytes, notes):
    parts = ["# Recall through the server\n", *(n + "\n" for n in notes), CHANCE + "\n", recall_table(sample_rows, models),
             "## By distance\n", distance_table(sample_rows, models)]
    if windows := reach_table(sample_rows, configs):
        parts += ["Beyond layers x (window - 1) tokens nothing of a key is left in a window model.\n", windows]
    parts += ["## By filler\n", filler_table(sample_rows, models), "## State and speed\n",
              "One session alone, medians of three; reading includes the commit.\n", speed_table(speed_rows, models)]
    if configs:
        parts += ["## Memory at 1 M tokens\n", MEMORY_NOTE + "\n", memory_table(configs, state_bytes)]
    text = "\n".join(parts)
    with open(path, "w") as f:
        f.write(text)
    return text
