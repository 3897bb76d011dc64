"""Operations in few shapes: most of a triple's cost is to compile each of them for its lengths.

Element-wise operations run on flat arrays of some lengths, reductions of lanes on some numbers of
rows, and products matrix by matrix in some sizes, zeros behind the operands. That the bits of these
do not depend on what lies beside them has tests of its own (`tests/lpu_jax/datapath/test_mxm.py`,
`tests/lpu_jax/numerics`); a triple's other ways of running have all shapes as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any
from unittest import mock

import numpy as np

from lpu_jax.datapath.primitive import DEFINITIONS

Implementation = Callable[..., list[Any]]

_ROWS = 8  #: of products, and of reductions, in steps
_COLUMNS = (64, 128, 192)  #: of products; more come in whole vectors
_VECTOR = 320
#: Rows of a tile of 16 bits; those of 8 bits have twice as many.
_TILE = 160


@contextmanager
def few_shapes() -> Iterator[None]:
    """Run every operation that is not being compiled in few shapes."""
    with ExitStack() as stack:
        for primitive, definition in DEFINITIONS.items():
            how = _HOW.get(definition.name)
            if how is None and definition.chain is not None and "mask" not in definition.name:
                how = _flat
            patched = _only_alone(how or _as_it_is, primitive.impl)
            stack.enter_context(mock.patch.object(primitive, "impl", patched))
        yield


def _only_alone(how: Callable[..., list[Any]], implementation: Implementation) -> Implementation:
    """Leave operations on virtual chips as they are."""

    def run(*operands: Any, **params: Any) -> list[Any]:
        if params.get("levels") or params.get("fidelity") == "fast":
            return implementation(*operands, **params)
        results = how(implementation, [np.asarray(operand) for operand in operands], params)
        return [np.asarray(result) for result in results]  # whose layout changes for nothing

    return run


def _as_it_is(run: Implementation, operands: list[np.ndarray], params: dict[str, Any]) -> list[Any]:
    return run(*operands, **params)


def _padded(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    missing = [(0, want - have) for want, have in zip(shape, x.shape, strict=True)]
    return np.pad(x, missing) if any(n for _, n in missing) else x


def _up(length: int, step: int) -> int:
    return -(-length // step) * step


def _flat(run: Implementation, operands: list[np.ndarray], params: dict[str, Any]) -> list[Any]:
    shape = operands[0].shape
    size = prod(shape)
    length = 1 << max(6, (size - 1).bit_length())
    results = run(*(_padded(operand.reshape(-1), (length,)) for operand in operands), **params)
    return [np.asarray(result)[:size].reshape(shape) for result in results]


def _by_rows(run: Implementation, operands: list[np.ndarray], params: dict[str, Any]) -> list[Any]:
    (x,) = operands
    rows = prod(x.shape[:-1])
    flat = _padded(x.reshape(rows, x.shape[-1]), (_up(rows, _ROWS), x.shape[-1]))
    (result,) = run(flat, **params)
    return [np.asarray(result)[:rows].reshape(*x.shape[:-1], -1)]


def _by_columns(
    run: Implementation, operands: list[np.ndarray], params: dict[str, Any]
) -> list[Any]:
    (x,) = operands
    size = prod(x.shape[1:])
    length = 1 << max(6, (size - 1).bit_length())
    (result,) = run(_padded(x.reshape(len(x), size), (len(x), length)), **params)
    return [np.asarray(result)[:size].reshape(x.shape[1:])]


def _product(run: Implementation, operands: list[np.ndarray], params: dict[str, Any]) -> list[Any]:
    x, w, *rows = operands
    alone = params | {"shared_x": True, "grouped": False, "addressed": False, "weight_bits": 16.0}
    is_whole = params["is_wide"] or x.dtype == w.dtype == np.int8
    words = (4,) if params["is_wide"] else ()

    def one(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        (m, k), n = x.shape, w.shape[-1]
        k_step = _TILE * 2 // max(x.dtype.itemsize, w.dtype.itemsize)
        columns = next((c for c in _COLUMNS if n <= c), _up(n, _VECTOR))
        shape = _up(m, _ROWS), _up(k, k_step)
        (y,) = run(_padded(x, shape), _padded(w, (shape[1], columns)), **alone)
        return np.asarray(y)[:m, ..., :n]

    if not params["grouped"]:
        return [one(x, w)]
    chosen = rows[0] if rows else np.arange(len(w))
    made = [
        one(x if params["shared_x"] else x[i], w[row])
        if row >= 0
        else np.zeros((x.shape[-2], *words, w.shape[-1]), np.int32 if is_whole else np.float32)
        for i, row in enumerate(chosen)
    ]
    return [np.stack(made)]


_HOW: dict[str, Callable[..., list[Any]]] = {
    "mxm_matmul": _product,
    "vxm_sum_lanes": _by_rows,
    "vxm_max_lanes": _by_rows,
    "vxm_sum_leading": _by_columns,
    "vxm_max_leading": _by_columns,
}
