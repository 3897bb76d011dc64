"""One parameter of a model as data: shape, logical axes, role and initial spread.

Holds no values and no formats: which role is stored in which format is the precision policy's job.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["attention", "dense", "expert", "shared", "router", "norm", "embedding", "head"]
#: Spread of random biases: small against what they are added to, yet large enough to see.
_BIAS_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One parameter, seen as `batch` leading dimensions, then `rows`, then columns.

    Attributes:
        shape: sizes, outermost first.
        axes: the logical axis of each dimension; None where a dimension is never split.
        rows: how many dimensions after the batch ones form the contraction (K) side of the
            matrix. The rest are its columns. 0 for vectors that are added or multiplied. The axis
            "once" of a bias has length one: of the chips whose sums it joins, the first holds it.
        batch: how many leading dimensions count separate matrices (experts; heads of k_b, v_b).
        role: what the precision policy calls it.
        std: standard deviation of a random initial value; 0 for norms, which start near 1.
        is_number: whole numbers that follow from the configuration and count as no parameters.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    rows: int
    role: Role
    std: float
    batch: int = 0
    is_number: bool = False

    @property
    def n_values(self) -> int:
        """Number of parameters."""
        return 0 if self.is_number else math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """`(matrices, k, n)`: how many matrices there are and the size of each."""
        first_column = self.batch + self.rows
        return (
            math.prod(self.shape[: self.batch]),
            math.prod(self.shape[self.batch : first_column]),
            math.prod(self.shape[first_column:]),
        )


def matrix(
    role: Role,
    *dims: tuple[int, str | None] | int,
    rows: int = 1,
    batch: int = 0,
) -> ParamSpec:
    """Describe a matrix; a bare size is a dimension without a logical axis."""
    pairs = [dim if isinstance(dim, tuple) else (dim, None) for dim in dims]
    shape = tuple(size for size, _ in pairs)
    fan_in = math.prod(shape[batch : batch + rows])
    return ParamSpec(
        shape=shape,
        axes=tuple(axis for _, axis in pairs),
        rows=rows,
        batch=batch,
        role=role,
        std=fan_in**-0.5,
    )


def bias(role: Role, *dims: tuple[int, str | None], batch: int = 0) -> ParamSpec:
    """Describe what is added to columns."""
    return ParamSpec(
        shape=tuple(size for size, _ in dims),
        axes=tuple(axis for _, axis in dims),
        rows=0,
        batch=batch,
        role=role,
        std=_BIAS_STD,
    )


def norm(*dims: tuple[int, str | None] | int) -> ParamSpec:
    """Describe what multiplies columns, and starts near 1."""
    return replace(matrix("norm", *dims, rows=0), std=0.0)
