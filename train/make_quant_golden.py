"""Writes tests/golden/quants/: random blocks of every stored weight type and their values in f32.

The values come from the `gguf` package (gguf.quants.dequantize), an implementation that is not ours.
Run:  python3 train/make_quant_golden.py tests/golden/quants

One file per type, little-endian: the rows' bytes as stored, then their elements as f32. The
manifest names type, rows, columns, generator and seed.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

SEED = 20240607
ROWS = 2
TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
# Where a block keeps its f16 scales: random bytes there would often be infinite.
HALFS = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
         "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_rows(rng: np.random.Generator, name: str, columns: int) -> np.ndarray:
    """Bytes [ROWS, row_bytes] of valid blocks, all of whose values are finite."""
    if name == "F16":
        return rng.normal(size=(ROWS, columns)).astype(np.float16).view(np.uint8)
    if name == "BF16":
        bits = rng.normal(size=(ROWS, columns)).astype(np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16).view(np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[T[name]]
    data = rng.integers(0, 256, size=(ROWS, columns // block, size), dtype=np.uint8)
    for offset in HALFS[name]:
        scales = rng.normal(scale=0.02, size=(ROWS, columns // block)).astype(np.float16)
        data[..., offset:offset + 2] = scales[..., None].view(np.uint8)
    return data.reshape(ROWS, -1)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    files = []
    for name in TYPES:
        columns = 512
        data = random_rows(rng, name, columns)
        values = gguf.quants.dequantize(data, T[name]).astype("<f4").reshape(ROWS, columns)
        assert np.isfinite(values).all()
        path = f"{name.lower()}.bin"
        (folder / path).write_bytes(data.tobytes() + values.tobytes())
        files.append({"file": path, "type": name, "rows": ROWS, "columns": columns})
    manifest = {
        "generator": "train/make_quant_golden.py",
        "packages": {"numpy": np.__version__, "gguf": getattr(gguf, "__version__", "")
                     or __import__("importlib.metadata").metadata.version("gguf")},
        "seed": SEED,
        "tolerance": "none: every bit",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
