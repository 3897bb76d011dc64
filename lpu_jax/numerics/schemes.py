"""Storage schemes of quantised arrays as data: element format, blocks and scales.

A scheme is a value: two schemes are the same if all their fields are, whatever their names, and
new ones are made by changing fields. Holds no arrays (`quantized`), makes no scales (`blocks`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ..arguments import check_fields, checked
from ..errors import LpuError, unknown
from .formats import BF16, E2M1, E2M3, E3M2, E4M3FN, E5M2, E8M0, FP16, FP32, Format, integer
from .rounding import code_dtype

#: How a power-of-two scale follows from the largest magnitude of a block, with `max` the largest
#: value of the element format and `emax` its exponent:
#: `floor`: `2**(floor(log2(amax)) - emax)`; elements above `max` saturate (OCP MX v1.0);
#: `up`: the smallest power with `amax <= max * scale` (NVIDIA's and JAX's rounding up);
#: `even`: `floor` of an `amax` rounded to the element format's precision, ties to even (torchao).
Rule = Literal["floor", "up", "even"]

#: Array types that hold codes as themselves; the codes of other floating point formats lie in the
#: smallest unsigned type and integers in the smallest signed one.
_NATURAL_DTYPES: Mapping[Format, Any] = MappingProxyType(
    {
        FP32: jnp.float32,
        FP16: jnp.float16,
        BF16: jnp.bfloat16,
        E5M2: jnp.float8_e5m2,
        E4M3FN: jnp.float8_e4m3fn,
    }
)

#: The widest mantissa of block floating point: sign and magnitude fit int16.
MOST_MANTISSA_BITS = 15

#: Codes of at most this many significant bits give exact products with fp32 scales in 32 bits.
_MOST_SIGNIFICANT_BITS_OF_PRODUCTS = 8
_MOST_SIGNIFICANT_BITS = 16
#: A 16-bit tile has 160 rows, and half as many arrays work at once as on 8-bit tiles.
_LEAST_BLOCK_ROWS = 80


@checked
def storage_dtype(fmt: Format) -> np.dtype[Any]:
    """Return the array type that holds codes of a format, one per element."""
    if fmt.is_integer:
        return np.dtype(np.int8 if fmt.bits <= 8 else np.int16)
    dtype: np.dtype[Any] = np.dtype(_NATURAL_DTYPES.get(fmt, code_dtype(fmt)))
    return dtype


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How an array is stored. Bytes are the real ones, whatever arrays hold the codes.

    Rows run along the contraction, columns across it. A block of `block_rows x block_columns`
    values shares a scale; None stands for all rows or all columns of a matrix.

    Raises:
        LpuError: blocks without a row or column, or formats that do not go together.
    """

    #: For reports only.
    name: str = field(compare=False)
    #: Format of the elements.
    format: Format
    block_rows: int | None = None
    #: The emulator's arrays repeat a scale for each column (unless None), so that columns split
    #: anywhere; stored bytes count it once.
    block_columns: int | None = 1
    #: None: no scales. `E8M0`: powers of two, chosen by `rule`. Others: `amax / largest code`.
    scale_format: Format | None = None
    rule: Rule = "floor"
    #: Block scales are themselves scaled by one fp32 number per matrix (NVFP4).
    is_two_level: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for what, size in (("rows", self.block_rows), ("columns", self.block_columns)):
            if size is not None and size < 1:
                raise LpuError(
                    f"scheme {self.name}: block_{what}={size} was given; it must be at least 1, or "
                    f"None for all {what}."
                )
        self._check_formats()

    def _check_formats(self) -> None:
        """Refuse formats that have no meaning together."""
        if self.format == E8M0:
            raise LpuError(f"scheme {self.name}: e8m0 holds scales only; give another format.")
        if self.is_two_level and (self.scale_format is None or self.has_power_of_two_scales):
            raise LpuError(
                f"scheme {self.name}: two-level scales need a floating point scale_format such as "
                "e4m3fn."
            )
        if self.is_two_level and self.scale_format in (FP32, BF16):
            raise LpuError(
                f"scheme {self.name}: scale_format={self.scale_format.name} was given for two "
                "levels; the scale of a matrix brings block scales into a narrow range, such as "
                "e4m3fn's."
            )
        if self.scale_format is not None and self.scale_format.is_integer:
            raise LpuError(
                f"scheme {self.name}: scale_format={self.scale_format.name} was given; scales are "
                "e8m0 or a floating point format."
            )
        significant_bits = self.format.mantissa_bits + (0 if self.format.is_integer else 1)
        most = (
            _MOST_SIGNIFICANT_BITS_OF_PRODUCTS if self.has_float_scales else _MOST_SIGNIFICANT_BITS
        )
        if self.scale_format is not None and significant_bits > most:
            raise LpuError(
                f"scheme {self.name}: elements of {significant_bits} significant bits were given; "
                f"{self.scale_format.name} scales allow at most {most}."
            )

    @property
    def has_power_of_two_scales(self) -> bool:
        """Whether scales are E8M0: powers of two, applied to exponents."""
        return self.scale_format == E8M0

    @property
    def has_float_scales(self) -> bool:
        """Whether scales are floating point numbers, applied by products."""
        return self.scale_format is not None and not self.has_power_of_two_scales

    @property
    def multiplies_bare(self) -> bool:
        """Whether int8 codes can multiply int8 rows, with the scales left for the result."""
        whole_columns = self.block_rows is None and self.has_float_scales
        return self.format.is_integer and self.format.bits == 8 and whole_columns

    @property
    def multiplies_in_blocks(self) -> bool:
        """Whether codes can multiply 8-bit floating point rows block by block of the contraction.

        The scales are left for the sums of the blocks. A block fills more of an 8-bit array than
        its widened values fill of a 16-bit one if it has more than half as many rows.
        """
        is_held = self.format in (E4M3FN, E5M2) and self.has_float_scales and not self.is_two_level
        return is_held and self.block_rows is not None and self.block_rows > _LEAST_BLOCK_ROWS

    @property
    def row_granule(self) -> int:
        """Rows that must stay together when an array is split along its blocks."""
        return self.block_rows or 1

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value of the element format, `emax` of the rules."""
        if self.format.is_integer:
            return self.format.max_code.bit_length() - 1
        return (self.format.max_code >> self.format.mantissa_bits) - self.format.bias

    @property
    def code_exponent(self) -> int:
        """Exponent of the weight of an integer code under a power-of-two scale of 1.

        A scale stands for the leading bit of the largest integer, so that MXINT8 codes count
        `2**-6` and the shared exponent of block floating point is its largest element's.
        """
        return -self.max_exponent if self.format.is_integer else 0

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Array type of the codes."""
        return storage_dtype(self.format)

    @property
    def scale_dtype(self) -> np.dtype[Any] | None:
        """Array type of the scales, None without scales."""
        return None if self.scale_format is None else storage_dtype(self.scale_format)

    @property
    def bits_per_value(self) -> float:
        """Stored bits of one value with its share of a block's scale.

        Scales of a whole row, column or matrix are left out: their share depends on its length.
        """
        if self.scale_format is None or self.block_rows is None or self.block_columns is None:
            return float(self.format.bits)
        return self.format.bits + self.scale_format.bits / (self.block_rows * self.block_columns)

    def scales_shape(self, shape: tuple[Any, ...], axis: int = -2) -> tuple[Any, ...] | None:
        """Return the shape of the scales of an array whose blocks run along `axis` (-2 or -1)."""
        if self.scale_format is None:
            return None
        sizes = list(shape)
        sizes[axis] = 1 if self.block_rows is None else -(-sizes[axis] // self.block_rows)
        if self.block_columns is None:
            sizes[-3 - axis] = 1
        return tuple(sizes)

    def stored_bytes(self, shape: tuple[Any, ...], axis: int = -2) -> Any:
        """Return the bytes of a stored array of this shape, codes and scales, without padding.

        Args:
            shape: `(*batch, k, n)` for blocks along `axis` -2, `(*batch, m, k)` for -1; integers,
                symbolic dimensions or NumPy integer arrays.
            axis: where the blocks run.

        Fidelity:
            Exact; codes are packed over the whole array and rounded up to a byte once. A block has
            one scale, a matrix of a two-level scheme four bytes more.
        """
        *batch, _, _ = shape
        matrices: Any = 1
        for size in batch:
            matrices = matrices * size
        rows, columns = shape[axis], shape[-3 - axis]
        code_bytes = -(-matrices * rows * columns * self.format.bits // 8)
        if self.scale_format is None:
            return code_bytes
        blocks = matrices
        for length, block in ((rows, self.block_rows), (columns, self.block_columns)):
            blocks = blocks * (1 if block is None else -(-length // block))
        tensor_bytes = matrices * (FP32.bits // 8) if self.is_two_level else 0
        return code_bytes + blocks * (self.scale_format.bits // 8) + tensor_bytes

    def with_rule(self, rule: Rule) -> "Scheme":
        """Return this scheme with another rule for its power-of-two scales.

        Raises:
            LpuError: there is no such rule, or the scales are not powers of two.
        """
        if not self.has_power_of_two_scales:
            raise LpuError(
                f"scheme {self.name}: rule {rule!r} was given, but its scales are not powers of "
                "two; only e8m0 scales have a rule."
            )
        return replace(self, rule=rule)


def _mx(name: str, fmt: Format) -> Scheme:
    """Return an MX format: blocks of 32 with E8M0 scales. Source: OCP Microscaling v1.0."""
    return Scheme(name=name, format=fmt, block_rows=32, scale_format=E8M0)


@checked
def block_floating_point(block_rows: int, mantissa_bits: int, *, name: str | None = None) -> Scheme:
    """Make a block floating point scheme: sign and mantissa, one 8-bit exponent per block.

    The shared exponent is that of the largest magnitude; mantissas have no implicit one and count
    from it downwards: `value = ±m * 2**(exponent - mantissa_bits + 1)`, `m < 2**mantissa_bits`. A
    mantissa that would round up to `2**mantissa_bits` saturates.

    Args:
        block_rows: values along the contraction that share an exponent.
        mantissa_bits: magnitude bits of an element, its sign excluded.
        name: of the scheme; `bfp<block>_m<bits>` if not given.

    Raises:
        LpuError: a block without a row, or mantissa bits outside 1 to 15.

    Source:
        Darvish Rouhani et al., NeurIPS 2020 (MSFP): sign and mantissa, 8-bit shared exponent, no
        implicit one. That saturation, not a larger exponent, meets a carry, and that the exponent
        is biased by 127, are assumed.
    """
    if not 1 <= mantissa_bits <= MOST_MANTISSA_BITS:
        raise LpuError(
            f"block_floating_point: mantissa_bits={mantissa_bits} was given; it must be 1 to "
            f"{MOST_MANTISSA_BITS}."
        )
    return Scheme(
        name=name or f"bfp{block_rows}_m{mantissa_bits}",
        format=integer(f"sign_mantissa{mantissa_bits}", mantissa_bits + 1, symmetric=True),
        block_rows=block_rows,
        scale_format=E8M0,
    )


FP16_PLAIN = Scheme(name="fp16", format=FP16)
BF16_PLAIN = Scheme(name="bf16", format=BF16)
#: Symmetric grids: a weight and its negative have the same error. -128 and -8 stay unused.
_INT8_SYMMETRIC = integer("int8", 8, symmetric=True)
_INT4_SYMMETRIC = integer("int4", 4, symmetric=True)
#: Codes -127..127, one scale per output column. Source: Abts et al., ISCA 2020 (symmetric int8);
#: the scale per column instead of per layer is assumed.
INT8_COLUMN = Scheme(name="int8", format=_INT8_SYMMETRIC, scale_format=FP32)
#: As `INT8_COLUMN`, with a scale per row or per matrix, to compare granularities.
INT8_ROW = replace(INT8_COLUMN, name="int8_row", block_rows=1, block_columns=None)
INT8_TENSOR = replace(INT8_COLUMN, name="int8_tensor", block_columns=None)
#: Source: the released form of Kimi K2 Thinking and K2.5 (int4, symmetric, group 32, 16-bit
#: scales); that the 16 bits are bf16 is assumed, from the models' other weights.
INT4_GROUP32 = Scheme(name="int4", format=_INT4_SYMMETRIC, block_rows=32, scale_format=BF16)
#: Source: DeepSeek-V3 and Kimi K2 released forms (e4m3, blocks of 128 x 128, fp32 scales).
FP8_BLOCK128 = Scheme(
    name="fp8", format=E4M3FN, block_rows=128, block_columns=128, scale_format=FP32
)
#: Source: the released form of NVIDIA ModelOpt's FP8 (e4m3, an fp32 scale per matrix). A scale per
#: column holds it too, of matrices that lie side by side, and one per row of a released matrix.
FP8_COLUMN = Scheme(name="fp8_column", format=E4M3FN, scale_format=FP32)
MXFP8_E4M3 = _mx("mxfp8_e4m3", E4M3FN)
MXFP8_E5M2 = _mx("mxfp8_e5m2", E5M2)
MXFP6_E3M2 = _mx("mxfp6_e3m2", E3M2)
MXFP6_E2M3 = _mx("mxfp6_e2m3", E2M3)
MXFP4 = _mx("mxfp4", E2M1)
#: The value -2 (code -128) stays unused, as the standard permits.
MXINT8 = _mx("mxint8", _INT8_SYMMETRIC)
#: Source: arXiv 2509.25149 (e2m1 in blocks of 16, e4m3 scales, one fp32 scale per tensor).
NVFP4 = Scheme(name="nvfp4", format=E2M1, block_rows=16, scale_format=E4M3FN, is_two_level=True)
#: Source of both: Darvish Rouhani et al., NeurIPS 2020 (boxes of 16; 3 and 7 mantissa bits).
MSFP12 = block_floating_point(16, 3, name="msfp12")
MSFP16 = block_floating_point(16, 7, name="msfp16")

#: Every named scheme.
SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            FP16_PLAIN,
            BF16_PLAIN,
            INT8_COLUMN,
            INT8_ROW,
            INT8_TENSOR,
            INT4_GROUP32,
            FP8_BLOCK128,
            FP8_COLUMN,
            MXFP8_E4M3,
            MXFP8_E5M2,
            MXFP6_E3M2,
            MXFP6_E2M3,
            MXFP4,
            MXINT8,
            NVFP4,
            MSFP12,
            MSFP16,
        )
    }
)


@checked
def scheme_named(name: str) -> Scheme:
    """Return the scheme called `name`.

    Raises:
        UnknownNameError: if there is no such scheme; the message lists the nearest names.
    """
    if name not in SCHEMES:
        raise unknown("weight scheme", name, SCHEMES)
    return SCHEMES[name]
