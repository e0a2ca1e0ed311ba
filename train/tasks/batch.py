"""What a task makes."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Batch:
    """B sequences of T + 1 tokens; position t is read and predicts token t + 1."""

    tokens: np.ndarray  # [B, T + 1] int64
    answer: np.ndarray  # [B, T] bool: the prediction at t is scored
    rehearsal: np.ndarray  # [B, T] bool: predictable by copying, trained with some weight
    filler: np.ndarray  # [B, T] bool: nothing here needs to be remembered


def assemble(parts_of_samples, T):
    """Each sample: list of (bytes, kind), T + 1 bytes in all; kind per byte or for all of them:
    "f" filler, "n" needle or question, "r" rehearsed, "a" answer."""
    B = len(parts_of_samples)
    batch = Batch(*(np.zeros((B, n), t) for n, t in ((T + 1, np.int64), (T, bool), (T, bool), (T, bool))))
    for i, parts in enumerate(parts_of_samples):
        data = b"".join(b for b, _ in parts)
        kinds = "".join(k * len(b) if len(k) == 1 else k for b, k in parts)
        assert len(data) == len(kinds) == T + 1, (len(data), len(kinds), T)
        kinds = np.frombuffer(kinds.encode(), np.uint8)
        batch.tokens[i] = np.frombuffer(data, np.uint8)
        batch.answer[i] = kinds[1:] == ord("a")
        batch.rehearsal[i] = kinds[1:] == ord("r")
        batch.filler[i] = kinds[:-1] == ord("f")
    return batch
