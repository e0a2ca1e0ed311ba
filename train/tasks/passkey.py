"""Pass key (Mohtashami, Jaggi 2023; Infini-attention's form): a five-digit key hidden in filler, asked at
the end. Exact recall needs all five digits."""

from tasks import fillers
from tasks.batch import assemble

NEEDLE = b"The pass key is %s. Remember it. %s is the pass key. "
QUESTION = b"What is the pass key? The pass key is "
DIGITS = 5
NEAR = 3  # tokens beside the key

# What stands in place of "Remember it." in evaluations: never trained on. The rest of the needle and the question is what
# the model was taught to look for.
UNSEEN_REMINDERS = (b"Keep it in mind.", b"You will need it later.", b"Do not forget it.", b"It matters, so write it down.")


def needle(key, reminder=b"Remember it."):
    """Parts of the needle; the key's second mention can be copied."""
    before, middle, after = NEEDLE.replace(b"Remember it.", reminder).split(b"%s")
    return [(before + key + middle, "n"), (key, "r"), (after, "n")]


class Task:
    answer_tokens = DIGITS
    shortest = len(NEEDLE % (b"0" * DIGITS, b"0" * DIGITS)) + len(QUESTION) + DIGITS

    def __init__(self, fillers=fillers.TRAINED):
        self.fillers = fillers

    def sample(self, rng, T, depth=None, cut=None):
        """T + 1 bytes. depth 0: needle first; 1: directly before the question; None: anywhere, or where the key's first
        mention has a multiple of `cut` tokens in it or close by."""
        key = b"%05d" % rng.integers(10 ** DIGITS)
        parts = needle(key)
        room = T + 1 - sum(len(b) for b, _ in parts) - len(QUESTION) - DIGITS
        assert room >= 0, f"{T} tokens are too few"
        before = int(rng.integers(room + 1)) if depth is None else round(depth * room)
        if cut:
            first = NEEDLE.index(b"%s") + int(rng.integers(-NEAR, DIGITS + NEAR))
            places = range(-first % cut, room + 1, cut)
            before = places[int(rng.integers(len(places)))] if places else before
        name = self.fillers[int(rng.integers(len(self.fillers)))]
        text = fillers.fill(name, rng, room)
        return [(text[:before], "f"), *parts, (text[before:], "f"), (QUESTION, "n"), (key, "a")]

    def batch(self, rng, B, T, depth=None, cut=None):
        return assemble([self.sample(rng, T, depth, cut) for _ in range(B)], T)

    def filler_only(self, rng, B, T):
        """[B, T] tokens without a key: what may lie before a sequence."""
        return assemble([[(fillers.fill(self.fillers[int(rng.integers(len(self.fillers)))], rng, T + 1), "f")]
                         for _ in range(B)], T)
