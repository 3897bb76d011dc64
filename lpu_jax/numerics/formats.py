"""Number formats as data: widths, bias, largest code and special codes.

Does not convert anything: `scalar` gives the meaning of a code, `rounding` the vectorised twin.
Block formats (a shared scale per group) are schemes of `quantized`, not formats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Format:
    """One number format. A code is a bit pattern read as an unsigned integer below `2**bits`.

    Floating point: sign, exponent, mantissa from the top bit down, subnormals present, signed
    zero. Integer (`exponent_bits == 0`): two's complement.
    """

    name: str
    #: Width of the exponent field; 0 marks a two's complement integer.
    exponent_bits: int
    #: Stored fraction bits (floating point) or magnitude bits (integer).
    mantissa_bits: int
    #: A normal number is `1.fraction * 2**(exponent field - bias)`.
    bias: int
    #: Code, without sign, of the largest finite magnitude.
    max_code: int
    #: Code, without sign, of infinity; None where the format has none.
    inf_code: int | None
    #: Code, without sign, of the NaN that conversions produce; None where there is none.
    nan_code: int | None

    @property
    def bits(self) -> int:
        """Width of a code in bits, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

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
        return 0 if self.is_integer else 1 - self.bias - self.mantissa_bits


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


def _integer(name: str, bits: int) -> Format:
    """Return a two's complement integer format."""
    return Format(
        name=name,
        exponent_bits=0,
        mantissa_bits=bits - 1,
        bias=0,
        max_code=(1 << (bits - 1)) - 1,
        inf_code=None,
        nan_code=None,
    )


FP32 = _ieee("fp32", 8, 23)
FP16 = _ieee("fp16", 5, 10)
BF16 = _ieee("bf16", 8, 7)
#: OFP8 E5M2.
E5M2 = _ieee("e5m2", 5, 2)
#: OFP8 E4M3, the "fn" form: largest value 448, one NaN code per sign, no infinity.
E4M3 = Format(
    name="e4m3",
    exponent_bits=4,
    mantissa_bits=3,
    bias=7,
    max_code=0x7E,
    inf_code=None,
    nan_code=0x7F,
)
INT8 = _integer("int8", 8)
INT4 = _integer("int4", 4)

#: Every named format.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {f.name: f for f in (FP32, FP16, BF16, E5M2, E4M3, INT8, INT4)}
)
