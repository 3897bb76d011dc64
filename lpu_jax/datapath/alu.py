"""What element-wise operations take of the vector unit's ALUs, in instructions of the chip.

Exponential, hyperbolic tangent and reciprocal root are instructions of their own (ISCA20 Table I);
how many passes each takes is a constant of the chip (`ChipSpec.special_passes`). All else is
composed of them and of plain operations by the formulas below, which are assumed. The polynomials
that `numerics.elementary` computes, so that every backend gives the same bits, are not what the
chip executes: they cost nothing here. Not modelled: which of the 16 ALUs an operation is placed on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

#: A way through a chain: its plain operations, and its special functions in ascending order.
Path = tuple[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class AluChain:
    """An element-wise VXM operation: chained to its neighbours without touching memory."""

    operations: int  #: plain ALU operations per value
    #: ways through the operation, of which the one that takes longest on a chip counts
    paths: tuple[Path, ...]
    large: int = 0  #: how many of the plain operations need a large ALU
    special: tuple[str, ...] = ()  #: special functions per value; they need large ALUs


def plain(operations: int, depth: int, *, large: int = 0) -> AluChain:
    """Describe an operation without special functions."""
    return AluChain(operations=operations, paths=((depth, ()),), large=large)


def _special(
    name: str, operations: int = 0, *, large: int = 0, depth: int | None = None
) -> AluChain:
    """Describe a special function with plain operations around it, all in a row by default."""
    path = (operations if depth is None else depth, (name,))
    return AluChain(operations=operations, paths=(path,), large=large, special=(name,))


def through(before: Iterable[Path], row: AluChain) -> tuple[Path, ...]:
    """Lengthen the ways to the operands by those through an operation; drop the shorter ones."""
    ways = {
        (depth + more, tuple(sorted((*special, *others))))
        for depth, special in before
        for more, others in row.paths
    }
    return tuple(
        sorted(way for way in ways if not any(_is_longer(other, way) for other in ways - {way}))
    )


def _is_longer(one: Path, other: Path) -> bool:
    """Whether a way has at least all that another has."""
    rest = list(one[1])
    for name in other[1]:
        if name not in rest:
            return False
        rest.remove(name)
    return one[0] >= other[0]


_ONE = plain(1, 1)
_FMA = plain(1, 1, large=1)

#: By operation. `h = x / 2`; `fma` needs a large ALU (assumed).
ALU: Mapping[str, AluChain] = MappingProxyType(
    {
        **dict.fromkeys(["add", "sub", "mul", "max", "min", "select", "compare", "convert"], _ONE),
        "fma": _FMA,
        "exp": _special("exp"),
        "tanh": _special("tanh"),
        "rsqrt": _special("rsqrt"),
        "log": _special("log"),
        # x rsqrt(x)
        "sqrt": _special("rsqrt", 1),
        # rsqrt(|x|)^2 with the sign of x
        "reciprocal": _special("rsqrt", 3),
        # x times the reciprocal
        "div": _special("rsqrt", 4),
        # 1/2 + 1/2 tanh(h)
        "sigmoid": _special("tanh", 2, large=1),
        # h + h tanh(h)
        "silu": _special("tanh", 2, large=1),
        # h + h tanh(x (c1 + c2 x^2)): h beside the way through the tanh
        "gelu_tanh": _special("tanh", 5, large=2, depth=4),
        # h + h erf(x / sqrt 2), erf by Abramowitz and Stegun 7.1.26: a reciprocal, five
        # coefficients, and an exponential beside them
        "gelu": AluChain(
            operations=15,
            paths=((5, ("exp",)), (12, ("rsqrt",))),
            large=7,
            special=("exp", "rsqrt"),
        ),
    }
)
