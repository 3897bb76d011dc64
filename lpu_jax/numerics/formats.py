"""Number formats as data: widths, bias, largest code and special codes.

Does not convert anything: `scalar` gives the meaning of a code, `rounding` the vectorised twin.
Block formats (a shared scale per group) are schemes of `quantized`, not formats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ..errors import LpuError

#: How a value between two neighbours of a format is rounded: to the nearest, ties to even ("rne")
#: or away from zero ("rna"); towards zero ("rz"); or up with a probability equal to the distance
#: from the lower neighbour ("sr", stochastic). Source: IEEE 754-2019 §4.3 for the first three.
Rounding = Literal["rne", "rz", "rna", "sr"]
#: What a value too large for a format becomes: the largest finite value, or infinity, else NaN,
#: else the largest finite value. Source: OCP OFP8 v1.0 names both behaviours.
Overflow = Literal["saturate", "ieee"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One number format. A code is a bit pattern read as an unsigned integer below `2**bits`.

    Floating point: sign, exponent, mantissa from the top bit down, subnormals present, signed
    zero. Scale (`is_signed` false): an exponent and nothing else, so no zero and no subnormals.
    Integer (`exponent_bits == 0`): two's complement.
    """

    name: str
    #: Width of the exponent field; 0 marks a two's complement integer.
    exponent_bits: int
    #: Stored fraction bits (floating point) or magnitude bits (integer).
    mantissa_bits: int
    #: A normal number is `1.fraction * 2**(exponent field - bias)`. The positive integers are the
    #: subnormal numbers of a format with exponents so large that its step there is 1.
    bias: int
    #: Code, without sign, of the largest finite magnitude.
    max_code: int
    #: Code, without sign, of infinity; None where the format has none.
    inf_code: int | None
    #: Code, without sign, of the NaN that conversions produce; None where there is none.
    nan_code: int | None
    #: Whether the top bit of a code is a sign.
    is_signed: bool = True
    #: Integers only: whether conversions avoid the lowest code, which has no counterpart.
    is_symmetric: bool = False

    @property
    def bits(self) -> int:
        """Width of a code in bits, sign included."""
        return (1 if self.is_signed else 0) + self.exponent_bits + self.mantissa_bits

    @property
    def is_integer(self) -> bool:
        """Whether codes are two's complement integers."""
        return self.exponent_bits == 0

    @property
    def max_value(self) -> float:
        """Largest finite value."""
        if self.is_integer:
            return float(self.max_code)
        exponent, fraction = divmod(self.max_code, 1 << self.mantissa_bits)
        return (1.0 + fraction * 2.0**-self.mantissa_bits) * 2.0 ** (exponent - self.bias)

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest positive value, which is `2**smallest_exponent`."""
        # With a sign, exponent field 0 holds the subnormals, whose exponent is that of field 1.
        smallest_field = 1 if self.is_signed else 0
        return smallest_field - self.bias - self.mantissa_bits

    def overflow_code(self, overflow: Overflow) -> int:
        """Return the code, without sign, of a value that is too large for the format."""
        codes = (self.inf_code, self.nan_code) if overflow == "ieee" else ()
        return next((code for code in codes if code is not None), self.max_code)


def check_conversion(caller: str, rounding: str, overflow: str, *, has_random: bool) -> None:
    """Raise unless the words of a conversion are known and fit together.

    Raises:
        LpuError: if a word is unknown, or random bits are missing or not used.
    """
    if rounding not in get_args(Rounding):
        raise LpuError(f"{caller}: rounding={rounding!r} was given; allowed: {get_args(Rounding)}.")
    if overflow not in get_args(Overflow):
        raise LpuError(f"{caller}: overflow={overflow!r} was given; allowed: {get_args(Overflow)}.")
    if has_random != (rounding == "sr"):
        raise LpuError(
            f"{caller}: rounding={rounding!r} was given {'a' if has_random else 'no'} random key; "
            "stochastic rounding ('sr') needs one and no other rounding takes one."
        )


def integer(name: str, bits: int, *, symmetric: bool = False) -> Format:
    """Return a two's complement integer format.

    Args:
        name: what messages call it.
        bits: width of a code, sign included, 2 to 16.
        symmetric: whether conversions clip at `-max_code` and so never give the lowest code.

    Raises:
        LpuError: if `bits` is out of range.
    """
    if not 2 <= bits <= 16:
        raise LpuError(f"integer format {name}: bits={bits} was given; allowed are 2 to 16.")
    return Format(
        name=name,
        exponent_bits=0,
        mantissa_bits=bits - 1,
        bias=2 - bits,
        max_code=(1 << (bits - 1)) - 1,
        inf_code=None,
        nan_code=None,
        is_symmetric=symmetric,
    )


def _ieee(name: str, exponent_bits: int, mantissa_bits: int) -> Format:
    """Return a format that reserves the top exponent for infinity and NaN, as IEEE 754 does."""
    inf_code = ((1 << exponent_bits) - 1) << mantissa_bits
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=(1 << (exponent_bits - 1)) - 1,
        max_code=inf_code - 1,
        inf_code=inf_code,
        nan_code=inf_code | 1 << (mantissa_bits - 1),
    )


def _finite(name: str, exponent_bits: int, mantissa_bits: int, *, n_nan_codes: int = 0) -> Format:
    """Return a format without infinity, whose highest `n_nan_codes` magnitudes (0 or 1) are NaN."""
    top_code = (1 << (exponent_bits + mantissa_bits)) - 1
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=(1 << (exponent_bits - 1)) - 1,
        max_code=top_code - n_nan_codes,
        inf_code=None,
        nan_code=top_code if n_nan_codes else None,
    )


FP32 = _ieee("fp32", 8, 23)
FP16 = _ieee("fp16", 5, 10)
BF16 = _ieee("bf16", 8, 7)
#: OCP OFP8 v1.0 E5M2.
E5M2 = _ieee("e5m2", 5, 2)
#: OCP OFP8 v1.0 E4M3: largest value 448, one NaN code per sign, no infinity.
E4M3FN = _finite("e4m3fn", 4, 3, n_nan_codes=1)
#: E4M3 by the rules of IEEE 754: largest value 240, infinity. Source: ml_dtypes `float8_e4m3`.
E4M3 = _ieee("e4m3", 4, 3)
#: E3M4 by the rules of IEEE 754: largest value 15.5. Source: ml_dtypes `float8_e3m4`.
E3M4 = _ieee("e3m4", 3, 4)
#: OCP MX v1.0 FP6, both kinds, and FP4: all codes finite.
E3M2 = _finite("e3m2", 3, 2)
E2M3 = _finite("e2m3", 2, 3)
E2M1 = _finite("e2m1", 2, 1)
#: OCP MX v1.0 E8M0, a scale: `2**(code - 127)`, code 255 is NaN; "rne" rounds its ties up.
E8M0 = Format(
    name="e8m0",
    exponent_bits=8,
    mantissa_bits=0,
    bias=127,
    max_code=254,
    inf_code=None,
    nan_code=255,
    is_signed=False,
)
INT8 = integer("int8", 8)
INT4 = integer("int4", 4)

#: Every named format.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        f.name: f
        for f in (
            *(FP32, FP16, BF16, E5M2, E4M3FN, E4M3, E3M4),
            *(E3M2, E2M3, E2M1, E8M0, INT8, INT4),
        )
    }
)
