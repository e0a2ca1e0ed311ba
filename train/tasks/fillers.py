"""Endless text to hide things in. A filler is a function (rng, n) -> n bytes, from a random phase.

TRAINED fillers may be used in training; UNSEEN ones never are: other sentences, other words, other books. PRACTICE is for
training alone.
"""

import functools

import numpy as np

from tasks import text

GRASS = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # the paper's

WORDS = """river mountain window garden paper stone market winter summer table letter candle forest silver
yellow orange purple simple little great many other under over about after again always among around because before
behind below between both bring build carry change close cold come count cover cross dark deep draw dream drink drive
early earth east enough even every face fall family farm fast father feel field fire first fish floor follow food foot
friend front full game girl give glass gold good green ground grow half hand hard head hear heart heavy help here high
hold home horse house hundred idea inch island keep kind king land large last late laugh lead learn leave left life
light line list listen live long look love machine make mark measure meet metal mile mind minute moon morning mother
move much music name near never next night north note nothing notice number ocean often old once only open order page
paint pair part pass people person picture piece place plain plan plant play point possible pound power press problem
produce pull quick quiet rain reach read ready real record red remember rest rich ride right ring road rock room round
rule sail same school science season second seem sentence serve seven shape ship short show side sign sing sleep slow
small snow song soon sound south space spell spring stand star start state stay still story street strong study sugar
surface system tail talk teach thing think thousand three through time together town trade train travel tree true turn
unit usual valley value village visit voice wait walk wall warm wash watch water wave way weather week weight west
wheel white whole wide wild wind wing wish woman wonder wood word work world write year young""".split()

SENTENCES = (b"A kettle was left on the stove. ", b"Nobody answered the door. ", b"The train to the coast runs late. ",
             b"She counts the boats every morning. ", b"Rain fell on the empty square. ", b"He sold the old piano. ",
             b"What is the time? ", b"Remember to lock the gate. ", b"The key to the shed is lost. ",
             b"Their answer was short; nobody minded. ", b"We saw three herons by the canal. ", b"Is it the same road? ",
             b"Bread, salt and butter are on the list. ", b"The pass over the hills is closed. ", b"Some doors stay open. ")

HARBOUR = (b"Gulls turn above the harbour wall. A rope creaks and the tide goes out. Two men mend a net by "
           b"the slipway. Nothing much happens before noon. ")

SYLLABLES = """ka ve ro lin sto mar du pel ish tor na gri qua bex om fal zu wen dra cho yit hol sev""".split()

MARKS = b"()[]{}<>\"'!?;:,.-_*/&%$#@+=~^|\n\t 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def repeated(sentence):
    def filler(rng, n):
        start = int(rng.integers(len(sentence)))
        return (sentence * (n // len(sentence) + 2))[start:start + n]

    return filler


def grass(rng, n):
    return repeated(GRASS)(rng, n)


def words(rng, n):
    """Random words, now and then a number of one to four digits, as texts have them."""
    out, size = [], 0
    numbers = rng.random() < 0.3
    while size < n + 16:
        for i in rng.integers(len(WORDS), size=64):
            word = WORDS[i]
            if numbers and i % 29 == 0:
                word = str(int(rng.integers(10 ** int(rng.integers(1, 5)))))
            out.append(word)
            size += len(word) + 1
    joined = " ".join(out).encode()
    start = int(rng.integers(8))
    return joined[start:start + n]


def numbers(rng, n):
    """Words and, dense, what resembles a key: hard to ignore, and in real text too rare for a short training to meet."""
    out, size = [], 0
    share = rng.uniform(0.05, 0.4)
    while size < n + 16:
        for i, is_number in zip(rng.integers(len(WORDS), size=64), rng.random(64) < share):
            out.append(str(int(rng.integers(10 ** int(rng.integers(1, 7))))) if is_number else WORDS[i])
            out[-1] += (" ", " ", " ", " ", ". ", ", ", ": ", "? ")[int(rng.integers(8))]
            size += len(out[-1])
    start = int(rng.integers(8))
    return "".join(out).encode()[start:start + n]


def marks(rng, n):
    """The trained books with marks, digits and capitals at places where they do not stand: each is rare in real text."""
    body = bytearray(passage(False)(rng, n))
    share = rng.uniform(0.005, 0.06)
    for i in np.flatnonzero(rng.random(n) < share):
        body[i] = MARKS[int(rng.integers(len(MARKS)))]
    return bytes(body)


def sentences(rng, n):
    out, size = [], 0
    while size < n + 40:
        s = SENTENCES[int(rng.integers(len(SENTENCES)))]
        out.append(s)
        size += len(s)
    start = int(rng.integers(30))
    return b"".join(out)[start:start + n]


def passage(held_out):
    def filler(rng, n):
        body = text.corpus(held_out)
        start = int(rng.integers(len(body)))
        return (body[start:] + body * (n // len(body)) + body[:start])[:n] if start + n > len(body) else body[start:start + n]

    return filler


def nonsense(rng, n):
    """Words that no training text has."""
    out, size, count = [], 0, 256
    while size < n + 16:
        syllables, sizes = rng.integers(len(SYLLABLES), size=3 * count).tolist(), rng.integers(1, 4, size=count).tolist()
        ends, marks = (rng.random(count) < 0.1).tolist(), rng.integers(4, size=count).tolist()
        for i in range(count):
            word = "".join(SYLLABLES[k] for k in syllables[3 * i:3 * i + sizes[i]])
            out.append(word.capitalize() + ",.?;"[marks[i]] if ends[i] else word)
            size += len(out[-1]) + 1
    return " ".join(out).encode()[:n]


@functools.lru_cache(None)
def registry():
    return {"grass": grass, "words": words, "numbers": numbers, "marks": marks, "sentences": sentences, "bible": passage(False),
            "harbour": repeated(HARBOUR), "nonsense": nonsense, "held_out_books": passage(True)}


TRAINED = ("grass", "words", "sentences", "bible")
PRACTICE = ("numbers", "marks")
UNSEEN = ("harbour", "nonsense", "held_out_books")


def fill(name, rng, n):
    out = registry()[name](rng, n)
    assert len(out) == n
    return out
