"""Several key-value pairs hidden in filler, one of them asked: the memory must keep them apart. Names are
four random consonant-vowel letters, values four digits; both are drawn anew for every sample."""

import numpy as np

from tasks import fillers
from tasks.batch import assemble

DIGITS = 4


def name_of(rng):
    letters = []
    for _ in range(2):
        letters += [rng.choice(list("bcdfghjklmnpqrstvwxz")), rng.choice(list("aeiouy"))]
    return "".join(letters).encode()


class Task:
    answer_tokens = DIGITS

    def __init__(self, fillers=fillers.TRAINED, pairs=4):
        self.fillers, self.pairs = fillers, pairs
        self.shortest = pairs * len(b"The number of abab is 0000. ") + len(b"What is the number of abab? It is 0000")

    def sample(self, rng, T, depth=None):
        """depth: of the pair that is asked, the others lie anywhere."""
        names = set()
        while len(names) < self.pairs:
            names.add(name_of(rng))
        names = sorted(names)
        rng.shuffle(names)
        values = [b"%04d" % rng.integers(10 ** DIGITS) for _ in names]
        asked = int(rng.integers(self.pairs))
        needles = [b"The number of %s is %s. " % pair for pair in zip(names, values)]
        question = b"What is the number of %s? It is " % names[asked]
        room = T + 1 - sum(map(len, needles)) - len(question) - DIGITS
        assert room >= 0, f"{T} tokens are too few"
        places = rng.integers(room + 1, size=self.pairs)
        if depth is not None:
            places[asked] = round(depth * room)
        text = fillers.fill(self.fillers[int(rng.integers(len(self.fillers)))], rng, room)
        parts, at = [], 0
        for i in np.argsort(places, kind="stable"):
            parts += [(text[at:places[i]], "f"), (needles[i], "n")]
            at = places[i]
        return parts + [(text[at:], "f"), (question, "n"), (values[asked], "a")]

    def batch(self, rng, B, T, depth=None):
        return assemble([self.sample(rng, T, depth) for _ in range(B)], T)

    def filler_only(self, rng, B, T):
        return assemble([[(fillers.fill(self.fillers[int(rng.integers(len(self.fillers)))], rng, T + 1), "f")]
                         for _ in range(B)], T)
