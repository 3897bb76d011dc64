"""The arithmetic of NVIDIA tensor cores as data: one row per generation and kind of operands.

Not measured here: the rows are those of public models that were compared with the chips bit by
bit, so results are those of a *model of* a tensor core. Not modelled: fp16 accumulators, tf32,
fp64, sparsity, and what a kernel library adds around the instruction (splits of K, fp32 additions
between instructions).

Sources, by the names the rows use:

- MMASIM: P. Xie et al., "Bit-Accurate Modeling of GPU Matrix Multiply-Accumulate Units", arXiv
  2511.10909, and its package `mmasim` 2.1.1 (which states no licence: facts were read, no code was
  taken; it is the oracle of the tests).
- FHMP: Fasi, Higham, Mikaitis, Pranesh, PeerJ Computer Science 7:e330, 2021: the structure, found
  on V100 to A100: products are exact, are aligned to the largest, truncated, and normalised once.
- e8m13 accumulators for fp8 on H100: a PyTorch blog, read second-hand.

Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv 2512.07004, study V100 to B200
independently of MMASIM by test vectors; only their abstract was read, so no row rests on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from ..errors import LpuError

Generation = Literal["hopper", "blackwell", "rubin"]
#: "mxfp8" stands for every pair of fp8, fp6 and fp4 elements with a power of two for 32 of them;
#: "mxfp4" for a pair of fp4 with such scales, which has an instruction of its own.
Kind = Literal["fp16", "bf16", "fp8", "mxfp8", "mxfp4", "nvfp4"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one instruction adds the products of a step of K to an accumulator.

    `D = truncate(sum of aligned terms)`, where the terms are the step's products, each exact, and
    the accumulator. The exponent of a product is the sum of those of its factors, so its
    significand lies in [1, 4); subnormals have the smallest exponent of their format. Every term
    is truncated (towards zero) to a multiple of `2**(largest exponent - alignment_bits)`, the sum
    of these is exact, and is truncated to fp32. A zero result is +0, a NaN has the code 0x7FFFFFFF.
    Steps follow one another in ascending K.

    Raises:
        LpuError: a sum that 32 bits do not hold (64, where groups are added first).
    """

    #: Products that are added at once.
    step: int
    #: Neighbours that are added exactly, and have one block scale, before they are aligned.
    group: int = 1
    #: Bits that a term keeps behind the largest exponent.
    alignment_bits: int
    #: Exponent of a term that is zero: no sum is aligned to a smaller one.
    zero_exponent: int = -133
    #: Fraction bits of the result that are kept, of the 23 of fp32.
    result_bits: int = 23
    #: Elements that share a block scale; 0: there are none.
    block: int = 0
    #: "published", "derived" or "assumed", as everywhere (`provenance`).
    status: Literal["published", "derived", "assumed"] = "published"
    source: str

    def __post_init__(self) -> None:
        if self.group == 1 and self.alignment_bits > 25:
            raise LpuError(
                f"tensor_core_rules.Rule: alignment_bits={self.alignment_bits} was given; sums of "
                "single products have at most 25, those of groups 35."
            )


_SIXTEEN_BITS = Rule(step=16, alignment_bits=25, source="MMASIM; structure: FHMP")
_BLACKWELL: dict[Kind, Rule] = {
    "fp16": _SIXTEEN_BITS,
    "bf16": _SIXTEEN_BITS,
    "fp8": Rule(step=32, alignment_bits=25, source="MMASIM"),
    "mxfp8": Rule(step=32, alignment_bits=25, block=32, source="MMASIM"),
    "mxfp4": Rule(
        step=64, group=16, alignment_bits=35, zero_exponent=-139, block=32, source="MMASIM"
    ),
    "nvfp4": Rule(
        step=64, group=16, alignment_bits=35, zero_exponent=-139, block=16, source="MMASIM"
    ),
}

#: The rule of every generation and kind that it takes.
RULES: Mapping[Generation, Mapping[Kind, Rule]] = MappingProxyType(
    {
        "hopper": MappingProxyType(
            {
                "fp16": _SIXTEEN_BITS,
                "bf16": _SIXTEEN_BITS,
                "fp8": Rule(
                    step=32, alignment_bits=13, result_bits=13, source="MMASIM; e8m13: PyTorch blog"
                ),
            }
        ),
        "blackwell": MappingProxyType(_BLACKWELL),
        "rubin": MappingProxyType(
            {
                kind: replace(rule, status="assumed", source=f"as Blackwell: {rule.source}")
                for kind, rule in _BLACKWELL.items()
            }
        ),
    }
)


def rule_of(generation: Generation, kind: Kind) -> Rule:
    """Return the rule of a kind of operands.

    Raises:
        LpuError: a kind that the generation has no instruction for.

    Example:
        >>> rule_of("hopper", "fp8").alignment_bits
        13
    """
    rules = RULES[generation]
    if kind not in rules:
        raise LpuError(
            f"tensor_core_rules.rule_of: {kind} on {generation} was given; {generation} takes "
            f"{', '.join(rules)}."
        )
    return rules[kind]
