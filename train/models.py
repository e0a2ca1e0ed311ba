"""Architectures by the name that --arch takes. A preset is what its `new` is called with; `--set` overrides."""

import importlib

PRESETS = {
    "infini": ("infini.model", {}),
    "infini-delta": ("infini.model", {"delta": True}),
    "titans": ("titans.model", {"variant": "mag"}),
    "titans-mac": ("titans.model", {"variant": "mac"}),
    "titans-mal": ("titans.model", {"variant": "mal"}),
    "titans-lmm": ("titans.model", {"variant": "lmm"}),
    "rwkv7": ("rwkv.model", {}),
    **{"rwkv" + v.replace(".", ""): ("rwkv.model_4_to_6", {"version": v}) for v in ("4", "5.1", "5.2", "6")},
    "fam": ("fam.model", {}),
    "bswa": ("fam.model", {"f": 0, "m": 1}),
    "pangu_pi": ("pangu_pi.model", {}),
    "window": ("window.model", {}),
}

OF_CONFIG = {"infini": "infini.model", "titans": "titans.model", "rwkv7": "rwkv.model",
             **dict.fromkeys(("rwkv", "rwkv5", "rwkv6"), "rwkv.model_4_to_6"),
             "fam": "fam.model", "pangu_pi": "pangu_pi.model", "llama": "window.model"}


def new(arch, generator, **options):
    module, preset = PRESETS[arch]
    module = importlib.import_module(module)
    return module.Model(*module.new(generator, **{**preset, **options}))


def of(config, weights, **options):
    """The trainable model of a checkpoint that was read."""
    return importlib.import_module(OF_CONFIG[config["model_type"]]).Model(config, weights, **options)
