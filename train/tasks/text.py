"""A real English text: the King James Bible of the Debian package bible-kjv-text, printed by bible-kjv.

Whole books are held out; nothing of them is ever trained on.
"""

import functools
import re
import subprocess

HELD_OUT = ("Ruth", "Est", "Jonah", "Amos", "Mark", "Rom", "Jas")


@functools.lru_cache(None)
def books():
    """{book: bytes}; verses without their numbers, one space between them."""
    printed = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    verses = {}
    for line in printed.stdout.decode("ascii", "ignore").splitlines():
        m = re.match(r"([1-3]?[A-Za-z]+)\d+:\d+ (.*)", line)
        if m:
            verses.setdefault(m[1], []).append(m[2].strip())
    assert len(verses) == 66, sorted(verses)
    assert all(book in verses for book in HELD_OUT), sorted(verses)
    return {book: " ".join(lines).encode() + b" " for book, lines in verses.items()}


@functools.lru_cache(None)
def corpus(held_out):
    return b"".join(text for book, text in books().items() if (book in HELD_OUT) == held_out)
