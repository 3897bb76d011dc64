"""Precision policies: which role of a weight is stored in which format.

Activations, the cache and what crosses chips are fp16 in every policy here, except that int8
weights multiply int8 activations (scaled per row). Norms and router biases are fp32: they are
vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lpu_jax.errors import unknown
from lpu_jax.numerics.quantized import Scheme, scheme_named

from .params import ParamSpec

#: Roles whose values are vectors in fp32.
VECTOR_BITS = 32
WIRE_BITS = 16


@dataclass(frozen=True)
class Policy:
    """Formats by role; a role that is not named is fp16."""

    name: str
    formats: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    def scheme(self, spec: ParamSpec) -> Scheme | None:
        """Storage of a parameter; None for vectors, which are fp32."""
        return scheme_named(self.formats.get(spec.role, "fp16")) if spec.rows else None

    def bits(self, spec: ParamSpec) -> float | int:
        """Stored bits per value."""
        scheme = self.scheme(spec)
        return VECTOR_BITS if scheme is None else scheme.bits_per_value


_MATRICES = ("attention", "dense", "expert", "shared")

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("fp16", {}, "16-bit weights as released"),
            Policy(
                "int4",
                {"expert": "int4"},
                "Kimi K2 Thinking / K2.5 released form: routed experts int4 in groups of 32, the "
                "rest 16-bit",
            ),
            Policy(
                "fp8",
                dict.fromkeys(_MATRICES, "fp8"),
                "DeepSeek-V3 / Kimi K2 released form: e4m3 in 128x128 blocks; embedding, head and "
                "router 16-bit",
            ),
            Policy(
                "int8",
                dict.fromkeys((*_MATRICES, "head"), "int8"),
                "Groq's int8 flow: symmetric, per output column (assumed); embedding and router "
                "16-bit",
            ),
        )
    }
)


def policy_named(name: str) -> Policy:
    """Find a policy.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    if name not in POLICIES:
        raise unknown("weights format", name, POLICIES)
    return POLICIES[name]
