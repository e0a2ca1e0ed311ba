"""Tasks: they make token sequences and say which of them are scored. They know no model; training and
every evaluation use the same ones, with other fillers and other seeds."""

import importlib

NAMES = ("passkey", "needle", "lm")


def make(name, **options):
    assert name in NAMES, name
    return importlib.import_module("tasks." + name).Task(**options)
