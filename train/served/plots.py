"""PNG plots of the results, with Debian's matplotlib."""

import os
import zlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from served import plan, report  # noqa: E402

STYLE = {"trained": "-", "unseen": "--"}
FILL = {"trained": None, "unseen": "white"}  # of markers
COLORS = {"rwkv": "C0", "titans": "C1", "infini": "C2", "window": "C3", "fam": "C4", "pangu": "C5"}


def _color(model):
    """The same in every plot and every run."""
    family = next((c for name, c in COLORS.items() if model.startswith(name)), None)
    return family or f"C{6 + zlib.crc32(model.encode()) % 4}"


def _save(figure, folder, name):
    figure.tight_layout()
    figure.savefig(os.path.join(folder, name), dpi=110, metadata={"Software": None})
    plt.close(figure)


FEW = 20  # samples, below which a point says so


def _curve(axes, points, **look):
    """points: (x, Count). Few samples: a cross in the place of the dot, and their number."""
    x = [p for p, _ in points]
    y = [c.exact for _, c in points]
    error = [[max(0, c.exact - c.interval[0]) for _, c in points], [max(0, c.interval[1] - c.exact) for _, c in points]]
    axes.errorbar(x, y, yerr=error, marker="o", markersize=4, capsize=3, **look)
    for at, count in points:
        if count.n >= FEW:
            continue
        axes.plot(at, count.exact, "X", markersize=9, color=look["color"])
        axes.annotate(f"n={count.n}", (at, count.exact), xytext=(0, -14 if count.exact > 0.5 else 9),
                      textcoords="offset points", ha="center", fontsize=7)


def _recall_axes(axes, label, values):
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [plan.length_name(v) for v in values], rotation=45)
    axes.minorticks_off()
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(values[0] / 1.5, values[-1] * 1.5)
    axes.axhline(1e-5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel(label)
    axes.set_ylabel("all five digits right")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def recall(rows, models, folder):
    """A panel for each model: curves that are right everywhere would hide each other."""
    columns = min(2, len(models))
    lines = -(-len(models) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(1 + 5 * columns, 0.6 + 3.4 * lines), squeeze=False)
    for axes, model in zip(grid.flat, models):
        for j, group in enumerate(plan.GROUPS):
            points = [(n * 1.08 ** j, report.Count(cell)) for n in report.distinct(rows, "length", int)
                      if (cell := report.select(rows, model=model, group=group, length=n))]
            if points:
                _curve(axes, points, color=_color(model), linestyle=STYLE[group], markerfacecolor=FILL[group],
                       label=f"{group} fillers")
        axes.set_title(model, fontsize=10)
        _recall_axes(axes, "tokens read", report.distinct(rows, "length", int))
    for axes in grid.flat[len(models):]:
        axes.set_visible(False)
    figure.suptitle("Recall of a five-digit key through the server, 95 % intervals")
    _save(figure, folder, "recall.png")


def distance(rows, models, folder):
    figure, axes = plt.subplots(figsize=(8, 4.8))
    for i, model in enumerate(models):
        bins = report.distance_bins(report.select(rows, model=model))
        points = [(low * 1.41 * 1.03 ** i, report.Count(part)) for low, _, part in bins]
        if points:
            _curve(axes, points, color=_color(model), label=model)
    axes.set_title("Recall by distance between key and answer, octaves, 95 % intervals")
    lows = sorted({low for low, _, _ in report.distance_bins(rows)})
    _recall_axes(axes, "tokens between key and answer", lows)
    _save(figure, folder, "distance.png")


def depths(rows, models, folder):
    lengths, at = report.distinct(rows, "length", int), report.distinct(rows, "depth", float)
    size = (2 + 1.8 * max(3, len(lengths)), 0.8 + 2.6 * len(models))
    figure, grid = plt.subplots(len(models), 2, figsize=size, squeeze=False)
    for line, model in zip(grid, models):
        for axes, group in zip(line, plan.GROUPS):
            cells = [[report.Count(report.select(rows, model=model, group=group, length=n, depth=d))
                      for n in lengths] for d in at]
            shares = [[c.exact if c.n else float("nan") for c in row] for row in cells]
            axes.set_facecolor("lightgrey")  # not measured
            axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            for y, row in enumerate(cells):
                for x, c in enumerate(row):
                    axes.text(x, y, f"{c.right}/{c.n}" if c.n else "", ha="center", va="center", fontsize=7,
                              color="white" if c.n and c.exact > 0.5 else "black")
            axes.set_xticks(range(len(lengths)), [plan.length_name(n) for n in lengths])
            axes.set_yticks(range(len(at)), [f"{100 * d:g} %" for d in at])
            axes.set_title(f"{model}, {group} fillers", fontsize=9)
            axes.set_ylabel("needle at")
    _save(figure, folder, "depths.png")


def state_and_speed(speed_rows, models, configs, folder):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
    for model in models:
        rows = sorted(report.select(speed_rows, model=model), key=lambda r: int(r["position"]))
        x = [max(1, int(r["position"])) for r in rows]
        left.plot(x, [int(r["state_bytes"]) / 1024 for r in rows], marker="o", markersize=4, color=_color(model), label=model)
        if model in configs:  # what a Transformer of its shape would keep instead
            every = [report.kv_bytes(configs[model], n) / 1024 for n in x]
            left.plot(x, every, ":", color=_color(model), label=f"K/V of every token in {model}'s shape")
        for what, field, look in (("reading", "prefill_tokens_per_s", "o-"), ("writing", "decode_tokens_per_s", "x:")):
            right.plot(x, [float(r[field]) for r in rows], look, markersize=4, color=_color(model), label=f"{model}, {what}")
    last = max((int(r["position"]) for r in speed_rows), default=0)
    ticks = [n for n in plan.LENGTHS if n < 2 * last]
    for axes, label in ((left, "state of a session, KiB"), (right, "tokens/s, one session alone")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [plan.length_name(t) for t in ticks], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("tokens read before")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncol=2)  # lines may be anywhere
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    _save(figure, folder, "state_and_speed.png")


def draw(sample_rows, speed_rows, models, configs, folder):
    """configs: config.json by model, of those whose folder is at hand."""
    os.makedirs(folder, exist_ok=True)
    if sample_rows:
        for plot in (recall, distance, depths):
            plot(sample_rows, models, folder)
    if speed_rows:
        state_and_speed(speed_rows, models, configs, folder)
