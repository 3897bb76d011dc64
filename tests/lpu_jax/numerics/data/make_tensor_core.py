"""Write `tensor_core.npz`: blocks of every kind, and their products by mmasim.

Run `PYTHONPATH=.:tests python tests/lpu_jax/numerics/data/make_tensor_core.py` where the dependency
group `oracle` is installed. Names are `CASE.ARRAY`; the leading axis of an array is `CLASSES`.
"""

from pathlib import Path

import numpy as np
from mmasim_products import product
from tensor_core_blocks import CASES, CLASSES, STEPS, operands

SEED, SIZE = 40, 8


def made(i: int, j: int) -> dict[str, np.ndarray]:
    """Make the blocks of a case and a class, with their products."""
    rng = np.random.default_rng([SEED, i, j])
    arrays = operands(CASES[i], CLASSES[j], SIZE, SIZE, 2 * STEPS[CASES[i][0]], rng)
    return arrays | {"d": product(CASES[i], arrays)}


if __name__ == "__main__":
    stacked = {}
    for i in range(len(CASES)):
        classes = [made(i, j) for j in range(len(CLASSES))]
        stacked |= {f"{i}.{key}": np.stack([one[key] for one in classes]) for key in classes[0]}
    np.savez_compressed(Path(__file__).parent / "tensor_core.npz", **stacked)
