"""The tiny checkpoints in `models/data/tiny` and what Hugging Face transformers makes of them."""

import functools
from pathlib import Path

import numpy as np

from models.weights.checkpoint import Checkpoint, open_checkpoint

TINY = Path(__file__).parent / "models" / "data" / "tiny"
#: Every family in float32, then the released formats.
NAMES = tuple(sorted(folder.name for folder in TINY.iterdir() if folder.is_dir()))

#: Largest difference of logits, absolute. Two float32 evaluations in different orders differ by up
#: to 1e-5 here (logits reach 4); wrong conventions differ by more, see `oracle/test_mutations.py`.
HF_BOUND = 2e-5


@functools.cache
def checkpoint(name: str, folder: Path = TINY) -> Checkpoint:
    """Open a checkpoint by the product's own reader."""
    return open_checkpoint(folder / name)


@functools.cache
def oracle(name: str, folder: Path = TINY) -> tuple[np.ndarray, np.ndarray]:
    """The token ids `[b, t]` and the logits `[b, t, vocab]` of transformers."""
    with np.load(folder / name / "logits.npz") as saved:
        return saved["tokens"].astype(np.int32), saved["logits"]


def difference(logits: object, name: str, folder: Path = TINY) -> float:
    """Largest distance of logits from those of transformers."""
    return float(np.max(np.abs(np.asarray(logits) - oracle(name, folder)[1])))
