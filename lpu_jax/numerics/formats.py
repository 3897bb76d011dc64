"""Number formats as data: widths, bias, largest code and special codes.

`floating` and `integer` make new ones; a `Format` whose fields contradict each other cannot be
made. Does not convert anything: `scalar` gives the meaning of a code, `rounding` the vectorised
twin. Block formats (a shared scale per group) are schemes of `quantized`, not formats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from ..arguments import check_fields, checked
from ..errors import LpuError

#: How a value between two neighbours of a format is rounded: to the nearest, ties to even ("rne")
#: or away from zero ("rna"); towards zero ("rz"); or up with a probability equal to the distance
#: from the lower neighbour ("sr", stochastic). Source: IEEE 754-2019 §4.3 for the first three.
Rounding = Literal["rne", "rz", "rna", "sr"]
#: What a value too large for a format becomes: the largest finite value, or infinity, else NaN,
#: else the largest finite value. Source: OCP OFP8 v1.0 names both behaviours.
Overflow = Literal["saturate", "ieee"]


#: What the highest codes of a floating point format are. "ieee": the top exponent is infinity and
#: NaN (IEEE 754, OCP E5M2); "fn": the top code is NaN, and there is no infinity (OCP E4M3);
#: "finite": all codes are numbers (OCP MX FP6 and FP4); "fnuz": all are, but the one that would be
#: negative zero, which is NaN. Source of the words: ml_dtypes; of "fnuz": arXiv 2206.02915.
Convention = Literal["ieee", "fn", "finite", "fnuz"]

#: Exponents of the largest and the smallest number of fp32: every value of a format is one.
_MAX_EXPONENT, _MIN_EXPONENT = 127, -149


@dataclass(frozen=True, kw_only=True)
class Format:
    """One number format. A code is a bit pattern read as an unsigned integer below `2**bits`.

    Floating point: sign, exponent, mantissa from the top bit down, subnormals present, signed
    zero except in the convention "fnuz"; every value is an fp32 number. Scale (`is_signed` false):
    an exponent and nothing else, so no zero and no subnormals; there is one, e8m0. Integer
    (`exponent_bits == 0`): two's complement. Two formats are the same if all fields but their names
    are.

    Raises:
        LpuError: fields that contradict each other, or values that are not fp32 numbers.
    """

    #: For reports only.
    name: str = field(compare=False)
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
    #: Code, without sign, of the NaN that conversions produce; None where there is none. In the
    #: convention "fnuz" the code of negative zero, sign included.
    nan_code: int | None
    #: Whether the top bit of a code is a sign.
    is_signed: bool = True
    #: Integers only: whether conversions avoid the lowest code, which has no counterpart.
    is_symmetric: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.is_integer:
            _check_integer(self)
        elif not self.is_signed:
            _check_scale(self)
        else:
            _check_floating(self)

    @property
    def bits(self) -> int:
        """Width of a code in bits, sign included."""
        return (1 if self.is_signed else 0) + self.exponent_bits + self.mantissa_bits

    @property
    def is_integer(self) -> bool:
        """Whether codes are two's complement integers."""
        return self.exponent_bits == 0

    @property
    def has_negative_zero(self) -> bool:
        """Whether zero has a sign."""
        return self.is_signed and not self.is_integer and self.nan_code != 1 << (self.bits - 1)

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


def _specials(
    convention: Convention, exponent_bits: int, mantissa_bits: int
) -> tuple[int, int | None, int | None]:
    """Return the codes of the largest value, of infinity and of NaN."""
    top_code = (1 << (exponent_bits + mantissa_bits)) - 1
    match convention:
        case "ieee":  # NaN is a quiet one: the top bit of the fraction
            inf_code = ((1 << exponent_bits) - 1) << mantissa_bits
            return inf_code - 1, inf_code, inf_code | 1 << mantissa_bits >> 1
        case "fn":
            return top_code - 1, None, top_code
        case "finite":
            return top_code, None, None
        case "fnuz":
            return top_code, None, top_code + 1


def _check_widths(name: str, exponent_bits: int, mantissa_bits: int) -> None:
    """Refuse widths beyond those of fp32."""
    if not (1 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23):
        raise LpuError(
            f"format {name}: exponent_bits={exponent_bits} and mantissa_bits={mantissa_bits} were "
            "given; allowed are 1 to 8 and 0 to 23."
        )


def _check_floating(fmt: Format) -> None:
    """Refuse widths, bias and special codes that do not belong together."""
    exponent_bits, mantissa_bits = fmt.exponent_bits, fmt.mantissa_bits
    _check_widths(fmt.name, exponent_bits, mantissa_bits)
    given = (fmt.max_code, fmt.inf_code, fmt.nan_code)
    allowed = {word: _specials(word, exponent_bits, mantissa_bits) for word in get_args(Convention)}
    if given not in allowed.values():
        raise LpuError(
            f"format {fmt.name}: codes {given} of largest value, infinity and NaN were given for "
            f"{exponent_bits} exponent and {mantissa_bits} mantissa bits; they must be those that "
            f"formats.floating derives, such as {allowed['ieee']} for 'ieee'."
        )
    if fmt.is_symmetric:
        raise LpuError(
            f"format {fmt.name}: is_symmetric=True was given; only an integer format may be."
        )
    if fmt.max_code >> mantissa_bits == 0 or fmt.inf_code == fmt.nan_code is not None:
        raise LpuError(
            f"format {fmt.name}: {exponent_bits} exponent and {mantissa_bits} mantissa bits were "
            "given; with its special codes no normal number or no NaN is left, so it needs more."
        )
    largest = (fmt.max_code >> mantissa_bits) - fmt.bias
    if largest > _MAX_EXPONENT or fmt.smallest_exponent < _MIN_EXPONENT:
        raise LpuError(
            f"format {fmt.name}: bias={fmt.bias} was given, which makes exponents "
            f"{fmt.smallest_exponent} to {largest}; fp32, which holds the values, has "
            f"{_MIN_EXPONENT} to {_MAX_EXPONENT}."
        )


def _check_integer(fmt: Format) -> None:
    """Refuse fields that are not those of a two's complement integer."""
    bits = fmt.mantissa_bits + 1
    fields = (fmt.bias, fmt.max_code, fmt.inf_code, fmt.nan_code, fmt.is_signed)
    if not 2 <= bits <= 16 or fields != (2 - bits, (1 << (bits - 1)) - 1, None, None, True):
        raise LpuError(
            f"format {fmt.name}: no exponent bits and {fmt.mantissa_bits} mantissa bits were given "
            f"with bias, codes and sign {fields}; an integer has 1 to 15 mantissa bits, and the "
            "others as formats.integer derives them."
        )


def _check_scale(fmt: Format) -> None:
    """Refuse formats without sign but e8m0, which conversions know."""
    fields = (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.max_code, fmt.inf_code)
    if (*fields, fmt.nan_code, fmt.is_symmetric) != (8, 0, 127, 254, None, 255, False):
        raise LpuError(
            f"format {fmt.name}: is_signed=False was given; the only format without a sign is "
            "e8m0, with 8 exponent bits, no mantissa, bias 127, largest code 254 and NaN code 255."
        )


def check_random(caller: str, rounding: str, *, has_random: bool) -> None:
    """Raise unless random bits are given for stochastic rounding and only for it.

    Raises:
        LpuError: if random bits are missing or unused.
    """
    if has_random != (rounding == "sr"):
        raise LpuError(
            f"{caller}: rounding={rounding!r} was given {'a' if has_random else 'no'} random key; "
            "stochastic rounding ('sr') needs one and no other rounding takes one."
        )


@checked
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


@checked
def floating(
    name: str,
    *,
    exponent_bits: int,
    mantissa_bits: int,
    convention: Convention,
    bias: int | None = None,
) -> Format:
    """Return a floating point format with a sign.

    Args:
        name: what messages call it.
        exponent_bits: 1 to 8.
        mantissa_bits: stored fraction bits, 0 to 23.
        convention: what the highest codes are; see `Convention`.
        bias: by default `2**(exponent_bits - 1) - 1`, and 1 more for "fnuz".

    Raises:
        LpuError: widths out of range or too few for the convention, or values that are no fp32
            numbers.

    Example:
        >>> floating("e5m1", exponent_bits=5, mantissa_bits=1, convention="ieee").max_value
        49152.0
        >>> floating("e4m3fnuz", exponent_bits=4, mantissa_bits=3, convention="fnuz").max_value
        240.0
    """
    _check_widths(name, exponent_bits, mantissa_bits)
    usual_bias = (1 << (exponent_bits - 1)) - (convention != "fnuz")
    max_code, inf_code, nan_code = _specials(convention, exponent_bits, mantissa_bits)
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=usual_bias if bias is None else bias,
        max_code=max_code,
        inf_code=inf_code,
        nan_code=nan_code,
    )


def _named(name: str, convention: Convention) -> Format:
    """Return the format whose name tells its widths, such as "e4m3fn"."""
    exponent_bits, mantissa_bits = (int(width) for width in name.removesuffix("fn")[1:].split("m"))
    return floating(
        name, exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, convention=convention
    )


FP32 = floating("fp32", exponent_bits=8, mantissa_bits=23, convention="ieee")
FP16 = floating("fp16", exponent_bits=5, mantissa_bits=10, convention="ieee")
BF16 = floating("bf16", exponent_bits=8, mantissa_bits=7, convention="ieee")
#: OCP OFP8 v1.0 E5M2.
E5M2 = _named("e5m2", "ieee")
#: OCP OFP8 v1.0 E4M3: largest value 448, one NaN code per sign, no infinity.
E4M3FN = _named("e4m3fn", "fn")
#: E4M3 by the rules of IEEE 754: largest value 240, infinity. Source: ml_dtypes `float8_e4m3`.
E4M3 = _named("e4m3", "ieee")
#: E3M4 by the rules of IEEE 754: largest value 15.5. Source: ml_dtypes `float8_e3m4`.
E3M4 = _named("e3m4", "ieee")
#: OCP MX v1.0 FP6, both kinds, and FP4: all codes finite.
E3M2 = _named("e3m2", "finite")
E2M3 = _named("e2m3", "finite")
E2M1 = _named("e2m1", "finite")
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
