"""What a weight is on one chip: its share, its format and its scales, no values."""

from functools import partial
from typing import Any

import jax.numpy as jnp

from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import FP16_PLAIN, Scheme

from .block_leaves import Dimension, Leaf, Sizes
from .layers.linear import Split
from .param_spec import ParamSpec
from .params import OUTPUT_AXES
from .policy import Policy


def weight_leaf(spec: ParamSpec, policy: Policy, split: Split, sizes: Sizes) -> Any:
    """Describe a weight; one with an output axis is split as the plan says."""
    is_output = not OUTPUT_AXES.isdisjoint(spec.axes)
    dimensions = [
        _output_share(axis, length, spec, split, sizes) if is_output else sizes.share(axis, length)
        for axis, length in zip(spec.axes, spec.shape, strict=True)
    ]
    if spec.is_number:
        return Leaf(dimensions=tuple(dimensions), dtype=jnp.int32, kind="tables", bits=32)
    scheme = policy.scheme(spec)
    leaf = partial(Leaf, kind="weights", batch=spec.batch, rows=spec.rows)
    if scheme is None:
        return leaf(dimensions=tuple(dimensions), dtype=jnp.float32, bits=policy.bits(spec))
    if scheme == FP16_PLAIN:
        return leaf(dimensions=tuple(dimensions), dtype=jnp.float16, bits=16)
    return _quantized(tuple(dimensions), spec, scheme)


def _output_share(
    axis: str | None, length: int, spec: ParamSpec, split: Split, sizes: Sizes
) -> Dimension:
    """Say what a chip holds of a dimension of an output projection, or of its bias.

    By columns it holds all rows; else its rows, and all columns. A bias is added to the whole sum,
    on every chip, but that of experts under `WIDE`, which is part of the sum. Under `TREE` the
    results of experts are whole on shares of their columns.
    """
    if axis in OUTPUT_AXES:
        if split is Split.COLUMN:
            return sizes.share(axis, length)
        if split is Split.TREE and spec.role in ("expert", "shared") and axis != "alone_d_out":
            return sizes.gathered("d_out") if spec.rows else sizes.share("d_out", length)
        return (length, None)
    if axis == "once" and (split is Split.TREE or (split is Split.WIDE and spec.role != "expert")):
        return (length, None)
    if split is Split.COLUMN and axis is not None and axis in sizes.ways.keys() - {"experts"}:
        return sizes.gathered(axis)
    return sizes.share(axis, length)


def _quantized(dimensions: tuple[Dimension, ...], spec: ParamSpec, scheme: Scheme) -> Any:
    """Describe codes and scales of a weight, each in the dimensions of the weight."""
    first_column = spec.batch + spec.rows
    matrices = dimensions[: spec.batch]
    rows, columns = dimensions[spec.batch : first_column], dimensions[first_column:]
    return QuantizedArray(
        codes=Leaf(
            dimensions=dimensions,
            dtype=scheme.code_dtype,
            kind="weights",
            bits=scheme.bits_per_value,
            batch=spec.batch,
            rows=spec.rows,
        ),
        scales=_scales(matrices, rows, columns, scheme),
        tensor_scale=Leaf(
            dimensions=(*matrices, *((1, None),) * (len(rows) + len(columns))),
            dtype=jnp.float32,
            kind="weights",
            bits=32,
        )
        if scheme.is_two_level
        else None,
        scheme=scheme,
    )


def _scales(
    matrices: tuple[Dimension, ...],
    rows: tuple[Dimension, ...],
    columns: tuple[Dimension, ...],
    scheme: Scheme,
) -> Leaf | None:
    """Describe the scales of a weight; those of blocks are counted with the codes."""
    if scheme.scale_format is None:
        return None
    is_counted = scheme.block_rows is None or scheme.block_columns is None
    if scheme.block_rows is None:
        rows = ((1, None),) * len(rows)
    else:
        *outer, (length, axis) = rows
        rows = (*outer, (-(-length // scheme.block_rows), axis))
    if scheme.block_columns is None:
        columns = ((1, None),) * len(columns)
    return Leaf(
        dimensions=(*matrices, *rows, *columns),
        dtype=scheme.scale_dtype,
        kind="weights" if is_counted else "scales",
        bits=scheme.scale_format.bits if is_counted else 0,
    )
