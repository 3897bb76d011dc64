"""The matrix products of a Flax model on the emulated matrix unit, by one argument of its layers.

`flax.nnx` and `flax.linen` layers, and `jnp.einsum`, call what they are given in place of
`jax.lax.dot_general`. Not modelled: everything else of those layers. Biases, activation functions
and softmax stay ordinary JAX, whose bits depend on the compiler; convolutions do not ask for a
`dot_general`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Float32, Num

from ..arguments import check_fields, described
from ..errors import LpuError
from ..numerics.accumulate import PRODUCT_KINDS, Carry
from ..numerics.formats import BF16, E4M3FN, E5M2, FP16, FP32, Format, Overflow
from ..numerics.quantized import QuantizedArray, output_scale, quantize
from ..numerics.repair import SumRounding
from ..numerics.rounding import encode
from ..numerics.schemes import Scheme, scheme_named, storage_dtype
from . import mxm, vxm
from .alu import ALU
from .primitive import free, primitive
from .scaled import int8_product

#: What activations are rounded to: "int8" with a scale per row, `max |x| / 127`; the others
#: without a scale, "fp16" overflowing to infinity, "e4m3fn" and "e5m2" saturating (assumed).
Activations = Literal["fp16", "e4m3fn", "e5m2", "int8"]
#: `((contracting of lhs, of rhs), (batch of lhs, of rhs))`, as for `jax.lax.dot_general`.
DimensionNumbers = tuple[
    tuple[Sequence[int], Sequence[int]],
    tuple[Sequence[int], Sequence[int]],
]

#: Format of the values of an operand or a result, by array type.
_FORMATS: Mapping[str, Format] = MappingProxyType(
    {"float32": FP32, "bfloat16": BF16, "float16": FP16}
)
_ACTIVATION_FORMATS: Mapping[str, Format] = MappingProxyType(
    {"fp16": FP16, "e4m3fn": E4M3FN, "e5m2": E5M2}
)


@dataclass(frozen=True, kw_only=True)
class MxmDotGeneral:
    """A `jax.lax.dot_general` whose products and sums are those of the matrix unit.

    The first operand is taken for activations, the second for weights. Weights cost no time to
    round: they are stored that way before the program runs. Where both operands are made by the
    program, as in attention, use `weights=None`.

    Args:
        weights: the scheme that the second operand is stored in, blocks along the contraction, or
            its name; stored weights are widened to fp16 at the array, except fp8 without scales,
            which it takes as it is. None: the second operand is rounded as activations are.
        activations: what the first operand is rounded to; "int8" needs weights of int8 with a scale
            per column or matrix.
        rounding: of an exact sum to fp32, as for `mxm.matmul`; int8 sums are not rounded.
        carry: what passes from one K tile to the next, as for `mxm.matmul`.

    Raises:
        UnknownNameError: there is no scheme of this name.
        LpuError: options that do not exist or do not go together.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Linear(64, 32, dot_general=MxmDotGeneral(), rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 64))).shape
        (2, 32)
    """

    weights: str | Scheme | None = "fp16"
    activations: Activations = "fp16"
    rounding: SumRounding = "rne"
    carry: Carry = "fp32"

    def __post_init__(self) -> None:
        check_fields(self)
        scheme = self.scheme
        if self.activations == "int8" and (scheme is None or not scheme.multiplies_bare):
            raise LpuError(
                f"MxmDotGeneral: int8 activations were given with weights "
                f"{scheme.name if scheme else None}; they need int8 weights with one scale per "
                "column or matrix, such as weights='int8'."
            )

    @property
    def scheme(self) -> Scheme | None:
        """Storage of the second operand; None if it is rounded as activations are."""
        return scheme_named(self.weights) if isinstance(self.weights, str) else self.weights

    def __call__(
        self,
        lhs: ArrayLike,
        rhs: ArrayLike,
        dimension_numbers: DimensionNumbers,
        precision: Any = None,
        preferred_element_type: DTypeLike | None = None,
        *,
        out_sharding: Any = None,
    ) -> Array:
        """Contract activations with weights.

        Derivatives, forward and reverse, are straight-through: those of the float32 product of the
        operands as they were before any rounding. Second ones through `jax.checkpoint` need JAX
        0.12.

        Args:
            lhs: activations, float32, bfloat16 or float16, each rounded once.
            rhs: weights, of the same types.
            dimension_numbers: as for `jax.lax.dot_general`. Contracted dimensions are ordered as
                they lie in `rhs`; that order makes the K tiles.
            precision: accepted and ignored: the matrix unit has one way to multiply.
            preferred_element_type: type of the result; by default that of `jax.lax.dot_general`.
            out_sharding: None; layers pass it by name.

        Returns:
            Batch dimensions, the others of `lhs`, the others of `rhs`. The fp32 result is rounded
            once more if it is of a narrower type.

        Raises:
            LpuError: operands or a result of another type, dimension numbers that do not fit, or
                an `out_sharding`.

        Fidelity:
            As `mxm.matmul`. Rounded the same under jit, vmap, scan and for any number of rows.
        """
        del precision
        if out_sharding is not None:
            raise LpuError(
                f"MxmDotGeneral: out_sharding={described(out_sharding)} was given, but a product "
                "is that of one chip; chips are laid out with lpu_jax.mesh."
            )
        for operand in (lhs, rhs):
            if (
                not isinstance(operand, jax.Array | np.ndarray)
                or operand.dtype.name not in _FORMATS
            ):
                raise LpuError(
                    f"MxmDotGeneral: operand {described(operand)} was given; it must be an array "
                    f"of {', '.join(_FORMATS)}, rounded here to what the matrix unit takes."
                )
        lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
        result = _result_of(lhs, rhs, dimension_numbers, preferred_element_type)
        if result.dtype.name not in _FORMATS:
            raise LpuError(
                f"MxmDotGeneral: a result of {result.dtype.name} was asked for; allowed are "
                f"{', '.join(_FORMATS)}."
            )
        if 0 in (lhs.size, rhs.size):  # nothing to multiply; empty sums are zero
            return jnp.zeros(result.shape, result.dtype)
        layout = _Layout.of(dimension_numbers, lhs.ndim, rhs.ndim)
        out: Array = _product(lhs, rhs, self, layout, result.dtype.name)
        return out


def _result_of(lhs: Array, rhs: Array, dimension_numbers: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """Return shape and type of the result, as this and every other version of JAX has them.

    Raises:
        LpuError: the dimension numbers do not fit, or there is no such type.
    """
    product = partial(
        lax.dot_general, dimension_numbers=dimension_numbers, preferred_element_type=dtype
    )
    try:
        # Some versions of JAX take less than two pairs.
        _Layout.of(dimension_numbers, lhs.ndim, rhs.ndim)
        result: jax.ShapeDtypeStruct = jax.eval_shape(product, lhs, rhs)
    except (TypeError, ValueError, IndexError):
        raise LpuError(
            f"MxmDotGeneral: dimension_numbers or a type that do not fit {described(lhs)} and "
            f"{described(rhs)} were given; they must be ((contracting of lhs, of rhs), (batch of "
            "lhs, of rhs)), of equal lengths, and the name of a type."
        ) from None
    return result


#: Dimensions of an operand that become one dimension of a matrix, for each of `[b, m, k]` or
#: `[b, k, n]`; without batch dimensions there is no `b`.
_Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How two operands become matrices."""

    lhs: _Groups
    rhs: _Groups

    @classmethod
    def of(cls, dimension_numbers: DimensionNumbers, lhs_rank: int, rhs_rank: int) -> "_Layout":
        """Read dimension numbers that are known to fit."""
        (lhs_k, rhs_k), (lhs_b, rhs_b) = dimension_numbers
        by_weights = sorted(zip(rhs_k, lhs_k, strict=True))
        rhs_k, lhs_k = ([int(pair[side]) for pair in by_weights] for side in (0, 1))
        lhs_batch, rhs_batch = (tuple(int(d) for d in dims) for dims in (lhs_b, rhs_b))
        lhs_free = tuple(d for d in range(lhs_rank) if d not in (*lhs_batch, *lhs_k))
        rhs_free = tuple(d for d in range(rhs_rank) if d not in (*rhs_batch, *rhs_k))
        return cls(
            lhs=(*((lhs_batch,) if lhs_batch else ()), lhs_free, tuple(lhs_k)),
            rhs=(*((rhs_batch,) if rhs_batch else ()), tuple(rhs_k), rhs_free),
        )

    @property
    def dimension_numbers(self) -> DimensionNumbers:
        """The same for `jax.lax.dot_general`."""
        batch = (self.lhs[0], self.rhs[0]) if len(self.lhs) == 3 else ((), ())
        return (self.lhs[-1], self.rhs[-2]), batch

    def result_shape(self, lhs: Array, rhs: Array) -> list[Any]:
        """Return the dimensions of the result."""
        of_lhs = [lhs.shape[d] for group in self.lhs[:-1] for d in group]
        return of_lhs + [rhs.shape[d] for d in self.rhs[-1]]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _product(lhs: Array, rhs: Array, options: MxmDotGeneral, layout: _Layout, dtype: str) -> Array:
    """Round the operands, multiply them as matrices, round the result."""
    multiply = _int8_product if options.activations == "int8" else _float_product
    y = multiply(lhs, rhs, options, layout)
    return _rounded(y.reshape(layout.result_shape(lhs, rhs)), _FORMATS[dtype])


@_product.defjvp
def _straight_through(
    options: MxmDotGeneral,
    layout: _Layout,
    dtype: str,
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    """Differentiate the product of the unrounded operands in float32."""
    multiply = partial(
        lax.dot_general,
        dimension_numbers=layout.dimension_numbers,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    lhs, rhs, d_lhs, d_rhs = (v.astype(jnp.float32) for v in (*primals, *tangents))
    tangent = multiply(d_lhs, rhs) + multiply(lhs, d_rhs)
    y: Array = _product(*primals, options, layout, dtype)
    return y, tangent.astype(dtype)


def _float_product(
    lhs: Array, rhs: Array, options: MxmDotGeneral, layout: _Layout
) -> Float32[Array, "..."]:
    """Multiply values of fp16 and fp8."""
    fmt = _ACTIVATION_FORMATS[options.activations]
    multiply = partial(mxm.matmul, rounding=options.rounding, carry=options.carry)
    x = _matrices(_rounded(lhs, fmt), layout.lhs)
    if options.scheme is None:
        return multiply(x, _matrices(_rounded(rhs, fmt), layout.rhs))
    w = _stored(rhs, layout.rhs, options.scheme)
    takes_codes = w.scales is None and (x.dtype.name, w.codes.dtype.name) in PRODUCT_KINDS
    y = multiply(x, w.codes if takes_codes else w)
    scale = output_scale(w)
    return y if scale is None else vxm.mul(y, scale)


def _int8_product(
    lhs: Array, rhs: Array, options: MxmDotGeneral, layout: _Layout
) -> Float32[Array, "..."]:
    """Multiply rows, rounded once, by bare int8 codes."""
    assert options.scheme is not None
    x = _matrices(_wide(lhs), layout.lhs)
    w = _stored(rhs, layout.rhs, options.scheme)
    return int8_product(x, w)


# --- operands -------------------------------------------------------------------------------------


def _matrices(x: Num[Array, "..."], groups: _Groups) -> Num[Array, "..."]:
    """Order and join dimensions to `[b, m, k]` or `[m, k]`."""
    order = [d for group in groups for d in group]
    ordered = x if order == list(range(x.ndim)) else lax.transpose(x, order)
    return ordered.reshape(_matrices_shape(x.shape, groups))


def _matrices_shape(shape: tuple[Any, ...], groups: _Groups) -> tuple[Any, ...]:
    return tuple(math.prod(shape[d] for d in group) for group in groups)


def _wide(x: Float[Array, "..."]) -> Float32[Array, "..."]:
    return x if x.dtype == jnp.float32 else vxm.to_fp32(x)


def _rounded(x: Float[Array, "..."], fmt: Format) -> Float[Array, "..."]:
    """Round to a format by one conversion of the vector unit; nothing if it is that already."""
    if _FORMATS[x.dtype.name] == fmt:
        return x
    if fmt == FP32:
        return _wide(x)
    if fmt == FP16:
        return vxm.to_fp16(_wide(x))
    out: Array = _to_format(_wide(x), fmt=fmt, overflow="ieee" if fmt == BF16 else "saturate")
    return out


def _to_format_meaning(x: Array, *, fmt: Format, overflow: Overflow) -> Array:
    codes = encode(x, fmt, overflow=overflow)
    out: Array = lax.bitcast_convert_type(codes, storage_dtype(fmt))
    return out


#: Rounding to bfloat16 and fp8, which no layer of the project needs.
_to_format = primitive(
    "vxm_to_format",
    abstract=lambda x, *, fmt, overflow: jax.ShapeDtypeStruct(x.shape, storage_dtype(fmt)),
    meaning=_to_format_meaning,
    chain=lambda params: ALU["convert"],
)


def _stored(w: Float[Array, "..."], groups: _Groups, scheme: Scheme) -> QuantizedArray:
    """Return weights as they lie in memory before the program runs."""
    leaves = _store(w, groups=groups, scheme=scheme)
    codes, *scales = leaves if isinstance(leaves, tuple) else (leaves,)
    scale, tensor_scale = (*scales, None, None)[:2]
    return QuantizedArray(codes=codes, scales=scale, tensor_scale=tensor_scale, scheme=scheme)


def _store_shapes(w: Any, *, groups: _Groups, scheme: Scheme) -> tuple[jax.ShapeDtypeStruct, ...]:
    shape = _matrices_shape(w.shape, groups)
    shapes: list[tuple[Any, Any]] = [(shape, scheme.code_dtype)]
    if scheme.scale_format is not None:
        shapes.append((scheme.scales_shape(shape), scheme.scale_dtype))
    if scheme.is_two_level:
        shapes.append(((*shape[:-2], 1, 1), jnp.float32))
    return tuple(jax.ShapeDtypeStruct(*leaf) for leaf in shapes)


def _store_meaning(w: Array, *, groups: _Groups, scheme: Scheme) -> tuple[Array, ...]:
    q = quantize(_matrices(w.astype(jnp.float32), groups), scheme)
    return tuple(leaf for leaf in (q.codes, q.scales, q.tensor_scale) if leaf is not None)


#: Free: done once, when a model is loaded.
_store = primitive("mxm_store", abstract=_store_shapes, meaning=_store_meaning, cost=free)
