#!/usr/bin/python3
"""Checks what needs no server: intervals, plans, texts, files that are resumed. A few seconds; also run by check_train.py.

  train/served/check.py
"""

import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tasks  # noqa: E402
from served import plan, report  # noqa: E402
from tasks import fillers, passkey  # noqa: E402


def check_interval():
    """Against values of Wilson's formula worked out by hand, and coverage summed over the binomial distribution."""
    for right, n, low, high in ((0, 20, 0.0, 0.16113), (20, 20, 0.83887, 1.0), (99, 100, 0.94554, 0.99823),
                                (5, 10, 0.23659, 0.76341)):
        got = report.wilson(right, n)
        assert abs(got[0] - low) < 1e-4 and abs(got[1] - high) < 1e-4, (right, n, got)
    assert report.wilson(0, 0) == (0.0, 1.0)
    for p in (0.02, 0.3, 0.5, 0.9):
        chance, covered = (1 - p) ** 100, 0.0
        for k in range(101):
            low, high = report.wilson(k, 100)
            covered += chance * (low <= p <= high)
            chance *= (100 - k) / (k + 1) * p / (1 - p)
        assert 0.92 < covered < 0.98, (p, covered)


def whole(sample):
    before = b"".join(plan.shared_text(sample.seed, sample.source, 0, sample.point))
    return before + b"".join(sample.text()) + sample.question


def check_samples():
    """Every sample is what it says: two mentions of its key, at its depth, clear of the sinks, at every phase."""
    for wording in ("unseen", "trained"):
        phases, ends, keys = set(), set(), set()
        for length in (1024, 4096, 16384):
            samples = plan.samples_of(length, plan.DEPTHS, 14, wording=wording)
            assert len({s.key for s in samples}) == len(samples) == 14 * 5 * 2
            assert {s.filler for s in samples} == set(fillers.TRAINED + fillers.UNSEEN)
            for s in samples:
                text = whole(s)
                assert len(text) == s.tokens and length <= s.tokens < length + 256
                assert text.count(s.secret) == 2 and text.endswith(passkey.QUESTION)
                assert text[s.needle_at:s.needle_at + len(s.needle)] == s.needle and text.count(b"pass key") == 4
                assert len(text) - (text.rindex(s.secret) + 5) == s.distance
                assert (b"Remember it." in s.needle) == (wording == "trained")
                assert s.needle_at >= plan.GUARD > 4, "a needle may lie in the sinks"
                assert s.point <= s.needle_at < s.point + plan.phases(length)
                depth = s.needle_at / (s.tokens - len(s.needle) - len(s.question))
                assert abs(depth - s.depth) < 0.01 + 2 * plan.phases(length) / length, (depth, s)
                assert s.filler in plan.GROUPS[s.group]
                if length > 1024:
                    phases.add(s.needle_at % 64), ends.add(s.tokens % 64), keys.add(s.secret)
        assert len(phases) == len(ends) == 64 and len(keys) > 250, (len(phases), len(ends), len(keys))
    trained, unseen = (plan.samples_of(4096, (0.5,), 4, wording=w) for w in ("trained", "unseen"))
    assert [s.secret for s in trained] == [s.secret for s in unseen]
    assert whole(trained[0]) == whole(plan.samples_of(4096, (0.5,), 4, wording="trained")[0])
    assert trained[0].secret != plan.samples_of(4096, (0.5,), 4, seed=1)[0].secret
    assert not any(r in passkey.NEEDLE for r in passkey.UNSEEN_REMINDERS)


def check_shared_text():
    for filler in fillers.registry():
        end = 2 * plan.BLOCK + 777
        text = b"".join(plan.shared_text(3, (filler, 1), 0, end))
        assert len(text) == end
        for begin, stop in ((0, 10), (65530, 65550), (100, end), (plan.BLOCK, plan.BLOCK)):
            assert b"".join(plan.shared_text(3, (filler, 1), begin, stop)) == text[begin:stop]
        for seed, number in ((4, 1), (3, 2)):
            assert b"".join(plan.shared_text(seed, (filler, number), 0, 500)) != text[:500]
    assert {s.source for s in plan.samples_of(4096, (0.5,), 20)} >= {("bible", i) for i in range(4)}
    assert len({s.source for s in plan.samples_of(10 << 20, plan.DEPTHS, 2)}) == 4


def check_costs():
    samples = plan.samples_of(4096, (0.0, 0.5), 2, groups={"trained": ("grass",)})
    points = sorted({s.point for s in samples})
    assert points[0] == 0 and 1700 < points[1] < 2000 and plan.points_of(samples) == {("grass", 0): points}
    assert plan.shared_cost(samples, {}) == points[1] and plan.shared_cost(samples, {("grass", 0): points}) == 0
    assert plan.shared_cost(samples, {("grass", 0): [0, 1000]}) == points[1] - 1000
    assert plan.parse_length("64K") == 65536 and plan.parse_length("10M") == 10 << 20 and plan.parse_length("1500") == 1500
    assert [plan.length_name(n) for n in (1024, 65536, 10 << 20, 1500)] == ["1 K", "64 K", "10 M", "1500"]
    slow = plan.quick_plan(plan.LENGTHS, plan.DEPTHS, [(1000, 0.1)], 600)
    fast = plan.quick_plan(plan.LENGTHS, plan.DEPTHS, [(100_000, 0.01)], 600)
    assert len(slow[0]) < len(fast[0]) and slow[1] >= 1 and fast[1] >= 4, (slow, fast)
    for (lengths, count), rate in ((slow, 1000), (fast, 100_000)):
        chosen = [s for n in lengths for s in plan.samples_of(n, plan.DEPTHS, count)]
        assert (sum(s.cost for s in chosen) + plan.shared_cost(chosen, {})) / rate <= 600


def row(s, exact):
    return dict(zip(report.KEY_FIELDS, s.key), model="m", fingerprint="f", point=s.point, needle_at=s.needle_at, tokens=s.tokens,
                distance=s.distance, key=s.secret.decode(), answer=report.printable(b'a,"\n\x1c\xff'), exact=exact,
                digits=5 if exact else 2, state_bytes=1000, seconds="0.1")


def check_files():
    """A run that was cut in the middle of a line goes on with what is missing, and with nothing else."""
    samples = plan.samples_of(1024, plan.DEPTHS, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "samples.csv")
        first = report.Rows(path, report.SAMPLE_FIELDS)
        for s in samples[:7]:
            first.append(**row(s, 1))
        with open(path, "a") as f:
            f.write("m,f,trained,grass,10")  # the crash
        again = report.Rows(path, report.SAMPLE_FIELDS)
        done = {report.sample_key(r) for r in again.rows}
        assert done == {s.key for s in samples[:7]} and again.rows == first.rows
        for s in samples:
            if s.key not in done:
                again.append(**row(s, 0))
        rows = report.Rows(path, report.SAMPLE_FIELDS).rows
        assert len(rows) == len(samples) and {report.sample_key(r) for r in rows} == {s.key for s in samples}
        speed = [dict(zip(report.SPEED_FIELDS, ("m", "f", str(p), "5", "6", "1000"))) for p in (1024, 4096)]
        config = {"model_type": "titans", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "memory_heads": 2,
                  "memory_head_dim": 32, "window_tokens": 32}
        text = report.write(os.path.join(folder, "r.md"), rows, speed, ["m"], {"m": config}, {"m": 1000}, ["note"])
        window = {"model_type": "llama", "num_hidden_layers": 4, "max_position_embeddings": 65}
        near, far = report.reach_table(rows, {"m": window}).splitlines()[2:]
        inside = [r for r in rows if int(r["distance"]) <= 256]
        assert 0 < len(inside) < 20, len(inside)
        assert near.endswith(f"| {len(inside)} |") and far.endswith(f"| {20 - len(inside)} |"), (near, far)
        assert "up to 256 |" in near and report.reach(config) is None
        assert "7/20" not in text and "| m | 1 K | trained |" in text and report.CHANCE in text
        counted = report.Count(rows)
        assert counted.right == 7 and counted.n == 20 and abs(counted.digits - (7 * 5 + 13 * 2) / 100) < 1e-9
        assert report.cache_bytes(config, 1 << 20) == 4 * 64 * ((1 << 20) + 2 * 32)
        # The paper's Memorizing Transformer: 65 K tokens in one of 12 layers, windows of 2,048, 8 heads of 128: 183 M numbers.
        paper = {"model_type": "infini", "num_hidden_layers": 12, "hidden_size": 1024, "num_attention_heads": 8, "head_dim": 128,
                 "segment_tokens": 2048}
        assert round(report.cache_bytes(paper, 65536) / 2 / 1e6) in (183, 184, 185)


CHECKS = (check_interval, check_samples, check_shared_text, check_costs, check_files)


def main():
    assert "passkey" in tasks.NAMES
    for check in CHECKS:
        check()


if __name__ == "__main__":
    main()
    print("ok")
