#!/usr/bin/python3
"""Checks the reference on random models of several heads: against the PyPI package `rwkv`, against
the chunked form of RWKV-7, and its properties. Written against rwkv 0.8.32.

  train/rwkv/check.py [--package-path FOLDER]
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from rwkv.reference import Rwkv  # noqa: E402

T64 = dict(dtype=torch.float64)
V, C, H, L = 90, 128, 2, 3
S = C // H
TORCH_LOAD = torch.load
TOKENS = torch.randint(V, (80,), generator=torch.Generator().manual_seed(5)).tolist()


def random_weights(version):
    """Names and shapes of the original checkpoints; every path matters to the logits."""
    generator = torch.Generator().manual_seed(int(version[0]))

    def normal(*shape, std=1.0, mean=0.0):
        return mean + std * torch.randn(*shape, generator=generator)

    def matrix(rows, columns, gain=1.0):
        return normal(rows, columns, std=gain / columns ** 0.5)

    def lerp():
        return torch.rand(1, 1, C, generator=generator)

    w = {"emb.weight": normal(V, C), "head.weight": matrix(V, C, 2.0)}
    norms = ["blocks.0.ln0", "ln_out"]
    ffn = 4 * C if version in "47" else 3 * C
    for i in range(L):
        p, q = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2"] + ([p + "ln_x"] if version != "4" else [])
        for name in ("receptance", "key", "value", "output"):
            w[p + name + ".weight"] = matrix(C, C, 1.2)
        w[q + "key.weight"], w[q + "value.weight"] = matrix(ffn, C, 1.2), matrix(C, ffn)
        if version != "7":
            w[q + "receptance.weight"] = matrix(C, C)
        if version in ("5.2", "6"):
            w[p + "gate.weight"] = matrix(C, C)
        if version in ("4", "5.1", "5.2"):
            for f in "kvr" + ("g" if version == "5.2" else ""):
                w[p + "time_mix_" + f] = lerp()
            w[q + "time_mix_k"], w[q + "time_mix_r"] = lerp(), lerp()
            if version == "5.2":
                w[p + "time_decay"], w[p + "time_faaaa"] = normal(H, S, mean=-2, std=1.5), normal(H, S)
            else:
                n = C if version == "4" else H
                w[p + "time_decay"], w[p + "time_first"] = normal(n, mean=-2, std=1.5), normal(n, std=.5)
        elif version == "6":
            for f in "xwkvrg":
                w[p + "time_maa_" + f] = lerp()
            w[q + "time_maa_k"], w[q + "time_maa_r"] = lerp(), lerp()
            w[p + "time_maa_w1"], w[p + "time_maa_w2"] = normal(C, 5 * 32, std=.1), normal(5, 32, C, std=.1)
            w[p + "time_decay"], w[p + "time_faaaa"] = normal(1, 1, C, mean=-2, std=1.5), normal(H, S)
            w[p + "time_decay_w1"], w[p + "time_decay_w2"] = normal(C, 64, std=.1), normal(64, C, std=.1)
        else:
            for f in "rwkvag":
                w[p + "x_" + f] = lerp()
            w[q + "x_k"] = lerp()
            for f, rank in (("w", 24), ("a", 20), ("v", 12), ("g", 40)):
                w[p + f + "1"], w[p + f + "2"] = normal(C, rank, std=.15), normal(rank, C, std=.3)
                if f != "g":
                    w[p + f + "0"] = normal(1, 1, C)
            w[p + "k_k"], w[p + "k_a"] = normal(1, 1, C, mean=1, std=.3), normal(1, 1, C, mean=1, std=.3)
            w[p + "r_k"] = normal(H, S, std=.3)
    for name in norms:
        w[name + ".weight"], w[name + ".bias"] = normal(C, mean=1, std=.1), normal(C, std=.1)
    # The package tells the versions apart while it walks the names: the norms of a head come first.
    return dict(sorted(w.items(), key=lambda item: "ln_x" not in item[0]))


def load_pth(*args, mmap=None, **options):
    """Torch 1.13 knows no mmap."""
    return TORCH_LOAD(*args, **options)


def against_package(versions):
    for version in versions:
        w = random_weights(version)
        model = Rwkv(w)
        ours = model.forward(model.initial_state(), TOKENS)
        os.environ.update(RWKV_V7_ON="1" if version == "7" else "0", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
        # Ours is called rwkv too: the package is imported under that name while ours is put aside.
        mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "rwkv"}
        here = sys.path.pop(0)
        package = importlib.import_module("rwkv.model")
        sys.path.insert(0, here)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = os.path.join(folder, "model")
            torch.save({name: t.clone() for name, t in w.items()}, path + ".pth")
            torch.load = load_pth
            theirs_model = package.RWKV(model=path, strategy="cpu fp32")
            state, rows = None, []
            for token in TOKENS:
                logits, state = theirs_model.forward([token], state)
                rows.append(logits.double().clone())
        torch.load = TORCH_LOAD
        for name in [n for n in sys.modules if n.split(".")[0] == "rwkv"]:
            del sys.modules[name]
        sys.modules.update(mine)
        error = (torch.stack(rows) - ours).abs().max().item()
        print(f"   version {version}: logits of rms {ours.square().mean().sqrt():.2f}, worst difference {error:.2e}")
        assert error < 5e-5 if version == "7" else error < 2e-4


def splits_and_chunks():
    for version in ("4", "5.1", "5.2", "6", "7"):
        model = Rwkv(random_weights(version))
        whole = model.forward(model.initial_state(), TOKENS)
        state = model.initial_state()
        parts = [model.forward(state, TOKENS[a:b]) for a, b in ((0, 1), (1, 30), (30, 80))]
        assert torch.equal(torch.cat(parts), whole)
        single = Rwkv(random_weights(version), dtype=torch.float32)
        error = (single.forward(single.initial_state(), TOKENS) - whole).abs().max()
        print(f"   version {version}: f32 differs from f64 by {error:.1e}")


def chunked_7():
    """One head of RWKV-7's recurrence against its chunked form (diagonal plus low rank)."""
    generator = torch.Generator().manual_seed(3)
    T, N = 40, 12
    r, k, v, kappa = (torch.randn(T, N, generator=generator, **T64) for _ in range(4))
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    a = torch.rand(T, N, generator=generator, **T64)
    gamma = -0.6065306597126334 * torch.rand(T, N, generator=generator, **T64)
    S0 = torch.randn(N, N, generator=generator, **T64)
    S, rows = S0, []
    for t in range(T):
        s = -S @ kappa[t]
        S = S * gamma[t].exp() + torch.outer(s, kappa[t] * a[t]) + torch.outer(v[t], k[t])
        rows.append(S @ r[t])
    G = gamma.cumsum(0)
    E = G - gamma
    A, B = -kappa, kappa * a

    def pairs(x, y, left, keep):
        return torch.einsum("tj,sj,tsj->ts", x, y, (left[:, None] - G[None]).clamp(max=0).exp()).tril(keep)

    U = torch.linalg.solve(torch.eye(T, **T64) - pairs(A, B, E, -1), (A * E.exp()) @ S0.T + pairs(A, k, E, -1) @ v)
    Y = (r * G.exp()) @ S0.T + pairs(r, k, G, 0) @ v + pairs(r, B, G, 0) @ U
    ST = S0 * G[-1].exp() + v.T @ (k * (G[-1] - G).exp()) + U.T @ (B * (G[-1] - G).exp())
    assert (Y - torch.stack(rows)).abs().max() < 1e-11 and (ST - S).abs().max() < 1e-11


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package-path", help="folder that holds the package `rwkv`, if it is not installed")
    parser.add_argument("--versions", nargs="*", default=["4", "5.1", "5.2", "6", "7"])
    args = parser.parse_args()
    if args.package_path:
        sys.path.insert(1, args.package_path)
    torch.set_num_threads(1)
    splits_and_chunks()
    print("ok splits_and_chunks")
    chunked_7()
    print("ok chunked_7")
    against_package(args.versions)
    print("ok against_package")
