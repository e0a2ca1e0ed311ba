"""Bytes of a real text; every prediction is scored. Evaluation reads books that training never saw."""

from tasks import text
from tasks.batch import assemble


class Task:
    answer_tokens = None
    shortest = 64

    def __init__(self, fillers=None, held_out=False):
        self.body = text.corpus(held_out)

    def batch(self, rng, B, T, depth=None):
        starts = rng.integers(len(self.body) - T - 1, size=B)
        return assemble([[(self.body[s:s + T + 1], "a")] for s in starts], T)

    def filler_only(self, rng, B, T):
        return self.batch(rng, B, T)
