#!/usr/bin/python3
"""Checks what training is built of, on tiny shapes, in about a minute: every training form against the token-by-token
reference on the same weights and input, carried states, dilution, tasks, and that a checkpoint survives the trip to
disk and a run its interruption.

  train/check_train.py [NAME ...]
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile

import needs

needs.modules("numpy", "torch")

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import models  # noqa: E402
import tasks  # noqa: E402
import trainable  # noqa: E402
from checkpoint import read_folder, write_folder  # noqa: E402
from served import check as served  # noqa: E402
from tasks import fillers, passkey, text  # noqa: E402

TINY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "golden", "tiny")
SEED = 20240611
PRICED = ("infini", "infini-delta", "titans", "titans-mac", "titans-mal", "titans-lmm", "rwkv7")


def reference_of(path):
    config, _ = read_folder(path)
    kind = config["model_type"]
    if kind in ("llama", "pangu_pi"):
        model = __import__(kind + ".reference", fromlist=["load"]).load(path)
        return lambda tokens: model.head(model.hidden(tokens, sinks=0, recents=config["max_position_embeddings"]))
    module = {"infini": "infini.reference", "titans": "titans.reference", "fam": "fam.reference"}.get(kind, "rwkv.reference")
    model = __import__(module, fromlist=["load"]).load(path)
    return lambda tokens: model.forward(model.initial_state(), tokens)


def compare(path, name, T):
    """The training form in f64 to rounding, in f32 to 1e-4, whole and in aligned pieces."""
    generator = np.random.default_rng(SEED)
    config, weights = read_folder(path)
    rows = torch.as_tensor(generator.integers(config["vocab_size"], size=(3, T)))
    want = torch.stack([reference_of(path)(row.tolist()) for row in rows])
    scale = want.abs().max().item()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = models.of(config, weights, dtype=dtype)
        with torch.no_grad():
            got, _ = model.forward(rows, model.initial_state(3))
            state, pieces, at = model.initial_state(3), [], 0
            while at < T:
                n = min(T - at, model.align * int(generator.integers(1, 4)) + (at + 5 * model.align > T) * 3)
                logits, state = model.forward(rows[:, at:at + n], state)
                n = n if at + n == T else n - n % model.align  # what lies beyond is read again
                pieces.append(logits[:, :n])
                at += n
                assert state["position"] == (at if at < T else T - T % model.align), (state["position"], at)
        error = max((x - want).abs().max().item() / max(1, scale) for x in (got, torch.cat(pieces, 1)))
        assert error < tolerance, f"{name}: {error} {dtype}"
    return error


def check_forms():
    for name in sorted(os.listdir(TINY)):
        path = os.path.join(TINY, name)
        if not os.path.exists(os.path.join(path, "config.json")):
            continue
        config, weights = read_folder(path)
        if config["model_type"] not in models.OF_CONFIG or config.get("read_mode") == "token":
            continue
        with tempfile.TemporaryDirectory() as folder:
            if config["model_type"] in ("llama", "pangu_pi"):
                config.update(max_position_embeddings=13)
            write_folder(folder, config, weights)
            print(f"  {name}: {compare(folder, name, 75):.1e} in f32")


def check_new_models():
    """What `new` makes is what the reference and the trainable model both read, and a training step moves every weight."""
    blocks = dict(d=24, L=2, H=2, dk=8, F=40)
    small = {"infini.model": dict(**blocks, N=8), "window.model": dict(**blocks, W=8), "pangu_pi.model": dict(**blocks, W=8),
             "fam.model": dict(**blocks, N=8),
             "titans.model": dict(d=24, L=2, H=2, e=8, h=12, b=8), "rwkv.model": dict(C=24, S=8, L=2, F=40),
             "rwkv.model_4_to_6": dict(C=24, S=8, L=2, F=40)}
    for arch, (module, _) in models.PRESETS.items():
        generator = np.random.default_rng(SEED)
        model = models.new(arch, generator, **small[module])
        for name, t in model.w.items():
            assert torch.isfinite(t).all(), name
        with tempfile.TemporaryDirectory() as folder:
            write_folder(folder, model.config, model.w)
            error = compare(folder, arch, 53)
        tokens = torch.as_tensor(generator.integers(256, size=(2, 70)))
        dilution = torch.ones(2, 70)
        dilution[:, 20:44] = 50
        logits, _ = model.forward(tokens, model.initial_state(2), dilution)
        filler = dilution > 1
        cost = model.cost(filler)
        assert cost.item() == 0 if arch not in PRICED else 0 < cost.item() < 30, cost
        assert arch not in PRICED or abs(model.cost(torch.ones_like(filler)).item() - cost.item()) > 1e-6
        (logits.square().mean() + 0.01 * cost).backward()
        for name, t in model.w.items():
            assert t.grad is not None and torch.isfinite(t.grad).all(), f"{arch}: {name}"
            assert t.grad.abs().sum() > 0 or "r_k" in name, f"{arch}: {name} does not learn"
        print(f"  {arch}: {error:.1e}, {model.parameters()} parameters")


def check_dilution():
    """Infini: R times a segment is the segment R times. RWKV and Titans: a factor of 1 changes nothing."""
    generator = np.random.default_rng(SEED)
    model = models.new("infini", generator, d=24, L=1, H=2, dk=8, F=40, N=8)
    filler, rest = (torch.as_tensor(generator.integers(256, size=(1, 8 * n))) for n in (1, 2))
    with torch.no_grad():
        repeated, _ = model.forward(torch.cat([filler] * 5 + [rest], 1), model.initial_state(1))
        dilution = torch.cat([torch.full((1, 8), 5.0), torch.ones(1, 16)], 1)
        diluted, _ = model.forward(torch.cat([filler, rest], 1), model.initial_state(1), dilution)
        # One layer: the memory is a sum, whatever its order, so only the last 16 rows may be compared.
        assert torch.allclose(repeated[:, -16:], diluted[:, -16:], atol=1e-5)
        for arch, size in (("titans", dict(d=24, L=2, H=2, e=8, h=12, b=8)), ("rwkv7", dict(C=24, S=8, L=2, F=40))):
            model = models.new(arch, generator, **size)
            tokens = torch.as_tensor(generator.integers(256, size=(2, 48)))
            plain, _ = model.forward(tokens, model.initial_state(2))
            once, _ = model.forward(tokens, model.initial_state(2), torch.ones(2, 48))
            many, _ = model.forward(tokens, model.initial_state(2), torch.full((2, 48), 300.0))
            assert torch.allclose(plain, once, atol=1e-4) and not torch.allclose(plain, many, atol=1e-2), arch
    s = torch.tensor([0.0, 1e-7, 0.3, 1.0])
    assert torch.allclose(trainable.repeated_gate(s, torch.tensor(3.0)), 1 - (1 - s) ** 3, atol=1e-6)
    assert torch.allclose(trainable.repeated_gate(s, torch.tensor(10000.0))[:2], torch.tensor([0.0, 1e-3]), rtol=1e-3)


def check_tasks():
    kinds = fillers.TRAINED + fillers.PRACTICE + fillers.UNSEEN
    assert len(kinds) == len(set(kinds)) and set(kinds) == set(fillers.registry()) and len(fillers.UNSEEN) >= 2
    for name in fillers.registry():
        rng = np.random.default_rng(SEED)
        for n in (0, 1, 7, 1000):
            assert len(fillers.fill(name, rng, n)) == n
        assert fillers.fill(name, rng, 60) != fillers.fill(name, rng, 60), name
    held_out, trained = text.corpus(True), text.corpus(False)
    assert len(held_out) > 200_000 and held_out[1000:1100] not in trained
    for name in tasks.NAMES:
        task = tasks.make(name)
        a, b = (task.batch(np.random.default_rng(7), 4, 300) for _ in range(2))
        assert (a.tokens == b.tokens).all() and a.tokens.shape == (4, 301)
        c = task.batch(np.random.default_rng(8), 4, 300)
        assert (a.tokens != c.tokens).any()
        if task.answer_tokens:
            assert (a.answer.sum(1) == task.answer_tokens).all() and a.answer[:, -task.answer_tokens:].all()
            digits = a.tokens[:, 1:][a.answer]
            assert ((digits >= ord("0")) & (digits <= ord("9"))).all()
            assert not (a.filler & a.answer).any()
        shortest = task.batch(np.random.default_rng(9), 2, task.shortest)
        assert shortest.tokens.shape == (2, task.shortest + 1)
    sample = b"".join(b for b, _ in passkey.Task(("grass",)).sample(np.random.default_rng(1), 400, depth=0.5))
    key = sample[-5:]
    assert sample.count(key) == 3 and sample.index(b"The pass key is " + key) > 50
    assert [len(b) for b, k in passkey.Task().sample(np.random.default_rng(1), 400, depth=0.0) if k == "f"][0] == 0
    for cut in (16, 128):  # 16: less than what stands before the key
        phases = set()  # of the key's first token
        for seed in range(100):
            sample = b"".join(b for b, _ in passkey.Task().sample(np.random.default_rng(seed), 700, cut=cut))
            phases.add((sample.index(b"The pass key is ") + 16 + cut // 2) % cut - cut // 2)
        assert phases == set(range(-7, 4)), (cut, phases)
    assert len(passkey.Task().batch(np.random.default_rng(1), 1, 200, cut=512).tokens[0]) == 201  # no room: anywhere


def check_checkpoint():
    generator = np.random.default_rng(SEED)
    tensors = {"a": torch.from_numpy(generator.normal(size=(5, 7)).astype(np.float32)), "b": torch.tensor([1.0, -2.5])}
    with tempfile.TemporaryDirectory() as folder:
        for kind, tolerance in (("F32", 0), ("F16", 1e-3), ("BF16", 8e-3)):
            write_folder(folder, {"model_type": "x", "n": 1}, tensors, kind)
            config, read = read_folder(folder)
            assert config == {"model_type": "x", "n": 1} and list(read) == ["a", "b"]
            for name, t in tensors.items():
                assert torch.allclose(read[name], t, rtol=tolerance, atol=tolerance / 10), kind


def check_needs():
    """A Python without the packages says what to install."""
    here = os.path.dirname(os.path.abspath(__file__))
    for script in ("train.py", "evaluate.py"):
        ran = subprocess.run([sys.executable, "-S", os.path.join(here, script), "--help"], capture_output=True, text=True)
        assert ran.returncode == 1 and "install_packages.sh train" in ran.stderr, ran


def check_help():
    """Every option says what it is for, and its default."""
    import train
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        train.arguments(["--help"])
    words = " ".join(text.getvalue().split())
    for line in ("--lr LR highest learning rate (default: 0.0015)", "--threads THREADS of PyTorch (default: 1)",
                 "--clip CLIP norm to which a gradient is shortened (default: 1.0)"):
        assert line in words, line


def run(*arguments):
    import train

    return train.main(list(arguments))


def check_training():
    """Seeded; a run that stops and resumes ends with the bytes of one that did not; the loss falls."""
    common = ["--arch", "infini", "--task", "passkey", "--set", "d=32", "--set", "L=2", "--set", "H=2", "--set", "dk=16",
              "--set", "F=48", "--set", "N=16", "--tokens", "600", "--length-from", "112", "--length", "160", "--seed", "3",
              "--carry", "0.5", "--dilution", "8", "--quiet", "--eval-every", "0", "--steps", "12"]
    with tempfile.TemporaryDirectory() as folder:
        a, b = (os.path.join(folder, x) for x in "ab")
        run(*common, "--out", a)
        run(*common, "--out", b, "--stop-after", "5")
        run(*common, "--out", b, "--resume")
        (config, first), (_, second) = read_folder(a), read_folder(b)
        assert config["model_type"] == "infini"
        for name in first:
            assert torch.equal(first[name], second[name]), name
        with open(os.path.join(a, "metrics.csv")) as f:
            rows = f.read().splitlines()
        assert rows[0].startswith("step,seconds,") and len(rows) >= 2, rows
        losses = [float(r.split(",")[rows[0].split(",").index("loss")]) for r in rows[1:]]
        assert all(np.isfinite(losses))


CHECKS = {"needs": check_needs, "help": check_help, "forms": check_forms, "models": check_new_models,
          "dilution": check_dilution, "tasks": check_tasks, "checkpoint": check_checkpoint, "training": check_training, "served": served.main}


def main():
    trainable.set_threads(1)
    for name in sys.argv[1:] or CHECKS:
        print(f"{name}", flush=True)
        CHECKS[name]()
    print("ok")


if __name__ == "__main__":
    main()
