"""Matrices of files, plain or quantised, brought into the dimensions of `models.params`.

Codes and scales are moved alike and stay bit for bit what the file holds. Only layout and values:
which tensors of a file make up a matrix is the job of `forms`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from einops import rearrange

from lpu_jax.numerics.formats import E2M1
from lpu_jax.numerics.quantized import QuantizedArray
from lpu_jax.numerics.schemes import Scheme

from ..param_spec import ParamSpec


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A quantised matrix `[*batch, out, in]`: a scale per row and group of `scheme.block_rows`.

    Without such groups a row has one scale.
    """

    codes: np.ndarray
    scales: np.ndarray  #: `[*batch, out, groups]`
    scheme: Scheme
    tensor_scale: float | None = None  #: of the whole matrix, for two-level schemes

    def values(self) -> np.ndarray:
        """Return the values in float32: code times scale, rounded once where it must be."""
        values = _values(self.codes, self.scales, self.scheme, axis=-1)
        return values if self.tensor_scale is None else values * np.float32(self.tensor_scale)


#: Plain numbers in the type of the file, or codes.
Matrix = np.ndarray | Coded
#: What a weight source hands out: float32, or codes and scales of the file.
Weight = np.ndarray | QuantizedArray


# --- layout -----------------------------------------------------------------------------------


def moved(matrix: Matrix, move: Callable[[np.ndarray], np.ndarray]) -> Matrix:
    """Take or order rows (`out`) of a matrix, and of its scales alike."""
    if isinstance(matrix, Coded):
        return replace(matrix, codes=move(matrix.codes), scales=move(matrix.scales))
    return move(matrix)


def joined(
    matrices: Sequence[Matrix], join: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> Matrix:
    """Stack matrices or concatenate their rows; they become plain unless stored in one scheme.

    Nor may they have different scales of a whole matrix.
    """
    coded = [matrix for matrix in matrices if isinstance(matrix, Coded)]
    kinds = {(matrix.scheme, matrix.tensor_scale) for matrix in coded}
    if len(coded) == len(matrices) and len(kinds) == 1:
        return Coded(
            codes=join([matrix.codes for matrix in coded]),
            scales=join([matrix.scales for matrix in coded]),
            scheme=coded[0].scheme,
            tensor_scale=coded[0].tensor_scale,
        )
    arrays = [matrix.values() if isinstance(matrix, Coded) else matrix for matrix in matrices]
    if len({array.dtype for array in arrays}) > 1:
        arrays = [array.astype(np.float32) for array in arrays]
    return join(arrays)


def laid_out(matrix: Matrix, spec: ParamSpec, pattern: str, **sizes: int) -> Weight:
    """Bring a matrix into the dimensions of a parameter.

    Args:
        matrix: `[*batch, out, in]`.
        spec: the parameter; its rows are the matrix's `in`.
        pattern: of einops; the length of the last of the rows must not be among `sizes`.
        **sizes: lengths of the others.

    Returns:
        float32, or codes with the scales of every column; float32 too if a group of values that
        share a scale would reach from one head into the next.

    Fidelity:
        Exact, but for codes that become float32: rounded once.
    """
    if isinstance(matrix, Coded) and _groups_fit(spec, matrix.scheme):
        codes = packed(matrix.codes, pattern, **sizes)
        return _quantised(codes, _packed_scales(matrix, spec, pattern, **sizes), matrix, spec)
    return packed(float32_values(matrix), pattern, **sizes)


def _packed_scales(matrix: Coded, spec: ParamSpec, pattern: str, **sizes: int) -> np.ndarray:
    """Bring scales into the dimensions of a parameter; those of a whole row belong to no part."""
    if matrix.scheme.block_rows is not None:
        return packed(matrix.scales, pattern, **sizes)
    of_all = rearrange(np.broadcast_to(matrix.scales, matrix.codes.shape), pattern, **sizes)
    first = (slice(None),) * spec.batch + (slice(1),) * spec.rows
    return np.ascontiguousarray(of_all[first])


def laid_across(matrix: Matrix, spec: ParamSpec, pattern: str) -> Weight:
    """As `laid_out` for a parameter whose rows are the `out` of a matrix, not its `in`.

    Codes are kept if their blocks are as high as wide and lie whole within a batch entry.
    """
    scales = _scales_across(matrix) if isinstance(matrix, Coded) else None
    if scales is None or not isinstance(matrix, Coded):
        return packed(float32_values(matrix), pattern)
    codes = packed(matrix.codes, pattern)
    return _quantised(codes, packed(scales, pattern), matrix, spec)


def _scales_across(matrix: Coded) -> np.ndarray | None:
    """Return scales `[*batch, groups of out, in]`, None if groups of `out` do not share them."""
    block = matrix.scheme.block_rows
    n_out, n_in = matrix.codes.shape[-2:]
    if block is None or block != matrix.scheme.block_columns or n_out % block:
        return None
    scales = matrix.scales[..., ::block, :]
    if not np.array_equal(np.repeat(scales, block, axis=-2), matrix.scales):
        return None
    return np.repeat(scales, block, axis=-1)[..., :n_in]


def _quantised(
    codes: np.ndarray, scales: np.ndarray, matrix: Coded, spec: ParamSpec
) -> QuantizedArray:
    """Return codes and scales in the dimensions of a parameter, of a matrix that was laid out."""
    scheme, factor = matrix.scheme, matrix.tensor_scale
    assert (codes.shape, scales.shape) == (spec.shape, scales_shape(spec, scheme))
    whole = None if factor is None else np.full(ones_shape(spec), factor, np.float32)
    return QuantizedArray(codes=codes, scales=scales, tensor_scale=whole, scheme=scheme)


def packed(array: np.ndarray, pattern: str, **sizes: int) -> np.ndarray:
    """Return an einops rearrangement laid out in memory in its new order."""
    return np.ascontiguousarray(rearrange(array, pattern, **sizes))


def _groups_fit(spec: ParamSpec, scheme: Scheme) -> bool:
    """Whether groups of rows that share a scale lie within the last dimension of the rows."""
    last_row = spec.shape[spec.batch + spec.rows - 1]
    return spec.rows == 1 or last_row % scheme.row_granule == 0


def scales_shape(spec: ParamSpec, scheme: Scheme) -> tuple[int, ...]:
    """Shape of the scales in the dimensions of the weight, as `models.blocks` describes them."""
    shape = list(spec.shape)
    first_column = spec.batch + spec.rows
    if scheme.block_rows is None:
        shape[spec.batch : first_column] = [1] * spec.rows
    else:
        shape[first_column - 1] = -(-shape[first_column - 1] // scheme.block_rows)
    if scheme.block_columns is None:
        shape[first_column:] = [1] * (len(shape) - first_column)
    return tuple(shape)


def ones_shape(spec: ParamSpec) -> tuple[int, ...]:
    """Shape of one number per matrix in the dimensions of the weight."""
    return (*spec.shape[: spec.batch], *(1,) * (len(spec.shape) - spec.batch))


def one_of_batch(spec: ParamSpec) -> ParamSpec:
    """Describe one of the matrices that a parameter's first dimension counts."""
    return replace(spec, shape=spec.shape[1:], axes=spec.axes[1:], batch=spec.batch - 1)


# --- values -----------------------------------------------------------------------------------


def dequantised(weight: Weight) -> np.ndarray:
    """Return the values of a weight in float32.

    Args:
        weight: float32, returned as it is, or codes and scales as a file stores them.

    Fidelity:
        Exact for MXFP4 and for int4 with 16-bit scales; fp8 and NVFP4 are rounded once (RNE).
    """
    if not isinstance(weight, QuantizedArray):
        return weight
    codes, scales = np.asarray(weight.codes), np.asarray(weight.scales)
    lengths = enumerate(zip(codes.shape, scales.shape, strict=True))
    axis = next((axis for axis, (values, groups) in lengths if values != groups), 0)
    values = _values(codes, scales, weight.scheme, axis)
    return values if weight.tensor_scale is None else values * np.asarray(weight.tensor_scale)


def _values(codes: np.ndarray, scales: np.ndarray, scheme: Scheme, axis: int) -> np.ndarray:
    """Return code times scale in float32; groups of `scheme.block_rows` run along `axis`."""
    if scheme.format == E2M1:
        codes = codes.view(ml_dtypes.float4_e2m1fn)
    if scheme.has_power_of_two_scales:
        scales = scales.view(ml_dtypes.float8_e8m0fnu)
    # Taking values out of a table is much faster than converting 8-bit floating point numbers.
    of_code = np.arange(256, dtype=np.uint8).view(codes.dtype).astype(np.float32)
    values: np.ndarray = of_code[codes.view(np.uint8)]
    if scheme.block_rows is None:
        return values * scales.astype(np.float32)
    factors = np.moveaxis(scales.astype(np.float32), axis, 0)
    rows = np.moveaxis(values, axis, 0)
    block = 1 if len(factors) == len(rows) else scheme.row_granule
    for number, factor in enumerate(factors):
        rows[number * block : (number + 1) * block] *= factor
    return values


def float32_values(matrix: Matrix) -> np.ndarray:
    """Return the values of a matrix in float32."""
    if isinstance(matrix, Coded):
        return matrix.values()
    values: np.ndarray = matrix.astype(np.float32, copy=False)
    return values
