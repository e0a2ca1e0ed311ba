"""What is asked: samples, the text of each, and which text they share. Knows no server and no model.

A cell is a group of fillers, a length and a depth. Its samples share the filler before the needle: each filler has a few
texts of ours, and a *point* is a place in one where sessions fork. What comes after is a sample's own:

  | shared filler        | lead | needle | filler of its own            | question |  -> answer
  0                  point                                               tokens

The lead, up to 256 tokens that go on with the shared text, and the total, up to 256 above the cell's length, are drawn
anew for every sample: needle and question meet every phase of a segment or chunk.
"""

import dataclasses
import functools
import zlib

import numpy as np

from tasks import fillers, passkey

SEED = 0x5EED_5E4D  # training seeds are small; evaluate.py has its own
GUARD = 16  # a needle never lies in the first tokens, which a window with sinks would keep
BLOCK = 65536  # texts are made in blocks of so many bytes, each from a seed of its own
GROUPS = {"trained": fillers.TRAINED, "unseen": fillers.UNSEEN}
LENGTHS = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 10 << 20)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 0.95)


def parse_length(word):
    """1024, 64K or 10M, in powers of two."""
    factor = {"K": 1 << 10, "M": 1 << 20}.get(word[-1:].upper(), 1)
    return int(word[:-1] if factor > 1 else word) * factor


def length_name(n):
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if n >= size and n % size == 0:
            return f"{n // size} {unit}"
    return str(n)


def phases(length):
    return min(256, length // 16)


def texts(length):
    """How many shared texts a filler has. More make samples less alike and cost as many times the reading."""
    return 4 if length < 1 << 20 else 2 if length < 10 << 20 else 1


def generator(seed, filler, *what):
    return np.random.default_rng([SEED, seed, zlib.crc32(filler.encode()), *what])


@functools.lru_cache(64)
def shared_block(seed, filler, text, index):
    return fillers.fill(filler, generator(seed, filler, 0, text, index), BLOCK)


def shared_text(seed, source, begin, end):
    """Yields bytes begin..end of a text that samples share; source: (filler, number of the text)."""
    while begin < end:
        index, at = divmod(begin, BLOCK)
        piece = shared_block(seed, *source, index)[at:at + end - begin]
        yield piece
        begin += len(piece)


@dataclasses.dataclass(frozen=True)
class Sample:
    group: str
    filler: str
    length: int  # of the cell
    depth: float  # of the cell
    number: int  # in the cell
    seed: int
    wording: str  # "unseen" or "trained"

    @property
    def key(self):
        """Names a result in a file."""
        return (self.group, self.filler, self.length, self.depth, self.number, self.seed, self.wording)

    @functools.cached_property
    def drawn(self):
        """(point, needle_at, tokens, secret, reminder)"""
        rng = generator(self.seed, self.filler, 1, self.length, round(1000 * self.depth), self.number)
        secret = b"%05d" % rng.integers(10 ** passkey.DIGITS)
        reminder = passkey.UNSEEN_REMINDERS[int(rng.integers(len(passkey.UNSEEN_REMINDERS)))]
        reminder = b"Remember it." if self.wording == "trained" else reminder
        n, fixed = phases(self.length), LONGEST_NEEDLE + len(passkey.QUESTION)
        assert self.length >= fixed + n + GUARD, f"{self.length} tokens are too few"
        point = min(max(0, round(self.depth * (self.length - fixed)) - n // 2), self.length - fixed - n)
        lead = int(rng.integers(max(0, GUARD - point), n))
        return point, point + lead, self.length + int(rng.integers(n)), secret, reminder

    @property
    def source(self):
        """What it shares: (filler, number of the text)."""
        return self.filler, self.number // len(GROUPS[self.group]) % texts(self.length)

    @property
    def point(self):
        return self.drawn[0]

    @property
    def needle_at(self):
        return self.drawn[1]

    @property
    def tokens(self):
        """Read before the answer, question included."""
        return self.drawn[2]

    @property
    def secret(self):
        return self.drawn[3]

    @property
    def distance(self):
        """From the end of the key's last mention to the first token of the answer."""
        tail = len(passkey.NEEDLE.rsplit(b"%s", 1)[1])
        return self.tokens - (self.needle_at + len(self.needle) - tail)

    @property
    def needle(self):
        return b"".join(b for b, _ in passkey.needle(self.secret, self.drawn[4]))

    @property
    def question(self):
        return passkey.QUESTION

    def text(self):
        """Yields what is read after the point and before the question."""
        yield b"".join(shared_text(self.seed, self.source, self.point, self.needle_at)) + self.needle
        rest = self.tokens - len(self.question) - self.needle_at - len(self.needle)
        for index in range(0, rest, BLOCK):
            rng = generator(self.seed, self.filler, 2, self.length, round(1000 * self.depth), self.number, index)
            yield fillers.fill(self.filler, rng, min(BLOCK, rest - index))

    @property
    def cost(self):
        """Tokens that the server reads for it alone."""
        return self.tokens - self.point


LONGEST_NEEDLE = max(len(b"".join(b for b, _ in passkey.needle(b"0" * passkey.DIGITS, r))) for r in passkey.UNSEEN_REMINDERS)


def samples_of(length, depths, count, seed=0, wording="unseen", groups=GROUPS):
    """`count` per cell, fillers in turn, those of real text first; the longest to read first."""
    out = []
    for depth in sorted(depths):
        for number in range(count):
            for group, names in groups.items():
                out.append(Sample(group, tuple(reversed(names))[number % len(names)], length, depth, number, seed, wording))
    return out


def points_of(samples):
    """{source: ascending points}"""
    out = {}
    for s in samples:
        out.setdefault(s.source, set()).add(s.point)
    return {source: sorted(points) for source, points in out.items()}


def shared_cost(samples, reached):
    """Tokens to read until every point exists, if `reached[source]` lists those that do. A point grows from the nearest
    one before it."""
    total = 0
    for source, points in points_of(samples).items():
        have = sorted({0, *reached.get(source, ())})
        for p in points:
            nearest = max(h for h in have if h <= p)
            total += p - nearest
            have.append(p)
    return total


def quick_plan(lengths, depths, rates, budget_seconds, seconds_per_length=0.0, groups=GROUPS, most=20):
    """(lengths, samples per cell) that fit, first as far as four samples a cell go, then as many of them as go. rates: for
    each checkpoint, tokens/s and seconds that a sample costs besides."""

    def seconds(chosen, count):
        samples = [s for n in chosen for s in samples_of(n, depths, count, groups=groups)]
        tokens = sum(s.cost for s in samples) + shared_cost(samples, {})
        return sum(tokens / rate + len(samples) * other + len(chosen) * seconds_per_length for rate, other in rates)

    lengths = sorted(lengths)
    for few in (4, 2, 1):
        reach = max((i for i in range(1, len(lengths) + 1) if seconds(lengths[:i], few) <= budget_seconds), default=0)
        if reach > 0:
            chosen = lengths[:reach]
            return chosen, max(n for n in range(few, max(few, most) + 1) if seconds(chosen, n) <= budget_seconds)
    return lengths[:1], 1
