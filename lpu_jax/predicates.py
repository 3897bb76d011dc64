"""What can be said of numbers, lengths and arrays that may be symbolic, traced, or neither.

A length that is not known may be anything: what is asked of it is answered in its favour.
"""

import math
from numbers import Integral, Real
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.export import is_symbolic_dim


def is_whole(number: object) -> TypeGuard[int]:
    """Whether this is a whole number, of Python or of NumPy; a truth value is none."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def is_number(number: object) -> TypeGuard[float]:
    """Whether this is a finite number, of Python or of NumPy; a truth value is none."""
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def narrows(dtype: np.dtype[Any]) -> bool:
    """Whether JAX would keep a NumPy type in fewer bits."""
    is_wide = dtype.name in ("int64", "uint64", "float64", "complex128")
    return is_wide and not jax.config.jax_enable_x64  # type: ignore[attr-defined]


def is_concrete(values: Any) -> bool:
    """Whether an array has values: it is neither traced nor a mere shape."""
    if isinstance(values, jax.core.Tracer):
        return False
    return isinstance(values, jax.Array | np.ndarray)


def may_equal(a: Any, b: Any) -> bool:
    """Whether two lengths are equal, as far as they are known; tuples of them, one by one."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(may_equal, a, b))
    return not (isinstance(a, int) and isinstance(b, int)) or a == b


def exceeds(a: Any, b: Any) -> bool:
    """Whether a length is known to be larger than another."""
    return isinstance(a, int) and isinstance(b, int) and a > b


def divides(part: Any, whole: Any) -> bool:
    """Whether a length is a whole number of parts, as far as both are known."""
    if not (isinstance(part, int) and isinstance(whole, int)):
        return True
    return part != 0 and whole % part == 0


def shorter(a: Any, b: Any) -> Any:
    """Take the smaller of two lengths: numbers, symbols, or arrays with one number per plan."""
    if is_symbolic_dim(a) or is_symbolic_dim(b):
        return jax.core.min_dim(a, b)
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)
