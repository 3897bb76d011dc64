"""Tensor-core sums against mmasim itself, on a million blocks of every kind.

Needs the dependency group `oracle`; skipped without. `TENSOR_CORE_BLOCKS` sets the number of blocks
of each case.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensor_core_blocks import CASES, CLASSES, STEPS, operands
from tensor_core_products import product

SIZE = 128
BLOCKS = int(os.environ.get("TENSOR_CORE_BLOCKS", 1_000_000))
MISSING = [name for name in ("torch", "mmasim") if importlib.util.find_spec(name) is None]
SCRIPT = Path(__file__).parents[3] / "mmasim_products.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}: `make oracle`"),
]


@pytest.mark.parametrize("i", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_no_bit_differs_from_mmasim(i, tmp_path):
    case, compared = CASES[i], 0
    for turn in range(-(-BLOCKS // (len(CLASSES) * SIZE**2))):
        given = {}
        for j, name in enumerate(CLASSES):
            rng = np.random.default_rng([7, i, turn, j])
            made = operands(case, name, SIZE, SIZE, 2 * STEPS[case[0]], rng)
            given |= {f"{i}.{name}.{key}": array for key, array in made.items()}
        expected = asked(given, tmp_path)
        for name in CLASSES:
            prefix = f"{i}.{name}."
            made = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
            np.testing.assert_array_equal(product(case, made), expected[f"{prefix}d"], name)
            compared += made["c"].size
    assert compared >= BLOCKS


def asked(given, folder):
    """Ask mmasim, in a process of its own: torch brings threads and warnings along."""
    source, result = folder / "given.npz", folder / "products.npz"
    np.savez(source, **given)
    command = [sys.executable, "-W", "ignore", SCRIPT, source, result]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(result) as arrays:
        return dict(arrays)
