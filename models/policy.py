"""Precision policies: which tensors of a model are held in which format, and how sums are carried.

Everything not named is fp16: other weights, rows that multiply weights, the cache, what crosses
chips, softmax weights that multiply values. Single int8 matrices multiply int8 rows: fp16 rows,
rounded again with a scale per row; int8 stores of many matrices (experts, absorbed projections) are
widened to fp16. Scores, exponentials, their sums, norms and logits are fp32 in every policy; norms
and biases are vectors, held in fp32. The policy "float32" has fp32 where the others have fp16: no
chip computes so; it is for checking a model's meaning.

A cache may be narrower (`fp16+fp8-cache`, `fp16+mxfp8-cache`): keys, after their rotation, and
values are rounded where they are made, and are widened to fp16 at the matrix unit; scales are those
of one token and head (`cache_formats`), or a given one of all tensors (`fp16+fp8x0.25-cache`).
Recurrent states stay as they are. Not built: scales of each tensor that a checkpoint brings.

Partial sums of a split by rows may cross chips in another format (`fp16+bf16-wire`); what is only
copied (gathered, exchanged, handed from stage to stage) crosses as it is.

A policy may have parts of a model multiplied by the tensor cores of a GPU instead of the matrix
unit (`fp16@blackwell`, or `fp16@blackwell:attention` for the parts that GPUs beside LPUs have).
Formats stay the same, and everything else is computed as on an LPU: no GPU's own exponentials and
sums are modelled.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import jax.numpy as jnp

from lpu_jax.arguments import described
from lpu_jax.datapath.mxm import Fidelity
from lpu_jax.errors import ConfigError, LpuError, unknown
from lpu_jax.numerics.accumulate import Carry
from lpu_jax.numerics.schemes import (
    BF16_PLAIN,
    FP8_BLOCK128,
    FP8_COLUMN,
    FP16_PLAIN,
    INT4_GROUP32,
    INT8_COLUMN,
    MSFP16,
    MXFP4,
    NVFP4,
    Scheme,
)
from lpu_jax.numerics.tensor_core_rules import Generation

from .cache_formats import CacheFormat, WireFormat, cache_scheme
from .config import ModelConfig
from .param_spec import ParamSpec, Role

#: Stored bits of a value of a vector.
VECTOR_BITS = 32
#: Roles of matrices that multiply; the embedding is looked up instead, as fp16.
MATRIX_ROLES: tuple[Role, ...] = ("attention", "dense", "expert", "shared", "router", "head")

#: Parts of a plan (`blocks.BLOCK_KINDS`).
PlanPart = Literal["attention", "mlp", "moe", "vocab"]
#: Format of rows that multiply weights; "fp8" is e4m3fn without a scale, saturating.
RowFormat = Literal["fp16", "fp8"]
#: Format of everything that a policy does not name: unnamed matrices and rows, the hidden state and
#: what crosses chips; usually the cache too.
BaseFormat = Literal["fp16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Formats by the role of a weight.

    Raises:
        ConfigError: a role, a scheme, a format of rows, cache or base, a carry or a fidelity that
            does not exist, or narrow formats beside a base of fp32.
    """

    name: str
    #: Storage of matrices; a role that is not named is fp16.
    weights: Mapping[Role, Scheme] = field(default_factory=dict)
    #: Format of the rows that multiply weights of a role; fp16 where it is not named.
    rows: Mapping[Role, RowFormat] = field(default_factory=dict)
    #: What the matrix unit carries from K tile to K tile.
    carry: Carry = "fp32"
    base: BaseFormat = "fp16"
    #: Format of cached keys and values.
    cache: CacheFormat = "base"
    #: What `fp8` codes are multiplied by: the scale of every cached tensor, of all layers.
    cache_scale: float = 1.0
    #: Format in which partial sums of `Split.ROW` cross chips, and are added.
    wire: WireFormat = "base"
    #: How products are computed, see `mxm.matmul`; changes bits, never time.
    fidelity: Fidelity = "faithful"
    #: Whose tensor cores make the products of a part of a plan; the matrix unit does the others.
    tensor_cores: Mapping[PlanPart, Generation] = field(default_factory=dict)
    #: Whose make all products: what a block's own policy says (`of_part`).
    generation: Generation | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for what, given, keys, key, value in (
            ("weights", self.weights, MATRIX_ROLES, "role", "format"),
            ("rows", self.rows, MATRIX_ROLES, "role", "format"),
            ("tensor_cores", self.tensor_cores, get_args(PlanPart), "part", "generation"),
        ):
            if not isinstance(given, Mapping):
                raise ConfigError(
                    f"policy {self.name}: {what} is {described(given)}; it must be a dict of "
                    f"{value}s by {key}."
                )
            for part in given:
                if part not in keys:
                    raise ConfigError(
                        f"policy {self.name}: {what} of {part!r} were given a {value}; {key}s are "
                        f"{', '.join(keys)}."
                    )
            # Traces of layers are kept by policy, so it must not change.
            object.__setattr__(self, what, MappingProxyType(dict(given)))
        for generation in (*self.tensor_cores.values(), self.generation):
            if generation is not None and generation not in get_args(Generation):
                raise ConfigError(
                    f"policy {self.name}: tensor cores of {generation!r} were given; allowed are "
                    f"{', '.join(get_args(Generation))}."
                )
        if self.tensor_cores and not self._suits_tensor_cores:
            raise ConfigError(
                f"policy {self.name}: tensor cores multiply float16 rows by weights widened to "
                "float16; int8 weights, fp8 rows, a narrower cache and a base of fp32 are not "
                "built for them."
            )
        for role, scheme in self.weights.items():
            if not isinstance(scheme, Scheme):
                raise ConfigError(
                    f"policy {self.name}: weights of {role} were given {scheme!r}; it must be a "
                    "Scheme, such as schemes.scheme_named('mxfp4')."
                )
        for role, name in self.rows.items():
            if name not in get_args(RowFormat):
                raise ConfigError(
                    f"policy {self.name}: rows of {role} were given {name!r}; allowed are "
                    f"{', '.join(get_args(RowFormat))}."
                )
        for what, chosen, allowed in (
            ("carry", self.carry, get_args(Carry)),
            ("base", self.base, get_args(BaseFormat)),
            ("cache", self.cache, get_args(CacheFormat)),
            ("wire", self.wire, get_args(WireFormat)),
            ("fidelity", self.fidelity, get_args(Fidelity)),
        ):
            if chosen not in allowed:
                raise ConfigError(
                    f"policy {self.name}: {what} {chosen!r} was given; allowed are "
                    f"{', '.join(allowed)}."
                )
        is_scale = isinstance(self.cache_scale, float | int) and 2**-64 <= self.cache_scale <= 2**64
        if not is_scale or (self.cache_scale != 1 and self.cache != "fp8"):
            raise ConfigError(
                f"policy {self.name}: cache_scale {self.cache_scale!r} was given with cache "
                f"{self.cache}; it must be a number from 2**-64 to 2**64, and 1 but for fp8."
            )
        narrows = bool(self.weights or self.rows) or (self.cache, self.wire) != ("base", "base")
        if self.base == "fp32" and (narrows or self.fidelity != "fast"):
            raise ConfigError(
                f"policy {self.name}: a base of fp32 goes with fast products and no other formats."
            )

    def __hash__(self) -> int:
        """Hash the fields: traces of layers are kept by policy."""
        formats = frozenset(self.weights.items()), frozenset(self.rows.items())
        cores = frozenset(self.tensor_cores.items()), self.generation
        chosen = self.carry, self.base, self.cache, self.cache_scale, self.wire, self.fidelity
        return hash((self.name, *formats, *chosen, *cores))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the formats as dicts: a mapping that cannot change has no pickled form."""
        maps = ("weights", "rows", "tensor_cores")
        formats = {name: dict(getattr(self, name)) for name in maps}
        return partial(Policy, **vars(self) | formats), ()

    @property
    def dtype(self) -> Any:
        """Array type of the base format."""
        return jnp.float32 if self.base == "fp32" else jnp.float16

    @property
    def base_bits(self) -> int:
        """Bits of a value in the base format."""
        return 32 if self.base == "fp32" else 16

    @property
    def cache_dtype(self) -> Any:
        """Array type of cached keys and values in a format without scales."""
        return jnp.float8_e4m3fn if self.cache == "fp8" else self.dtype

    @property
    def cache_bits(self) -> int:
        """Bits of a cached value in a format without scales."""
        return 8 if self.cache == "fp8" else self.base_bits

    @property
    def has_scaled_cache(self) -> bool:
        """Whether cached vectors have scales."""
        return cache_scheme(self.cache, 1) is not None

    @property
    def products(self) -> dict[str, Any]:
        """How the matrix unit multiplies: the arguments of `mxm.matmul`."""
        return {"carry": self.carry, "fidelity": self.fidelity}

    @property
    def _suits_tensor_cores(self) -> bool:
        bare = any(getattr(own, "multiplies_bare", False) for own in self.weights.values())
        return self.base == "fp16" and self.cache == "base" and not self.rows and not bare

    def of_part(self, part: str) -> "Policy":
        """What multiplies in the blocks of a part of a plan."""
        return replace(self, generation=self.tensor_cores.get(cast(PlanPart, part)))

    @property
    def on_chip(self) -> "Policy":
        """What an LPU holds and multiplies: fp16 for a policy that is for checking only."""
        if self.tensor_cores:
            return replace(self, tensor_cores={}, generation=None)
        return self if self.base == "fp16" else FP16

    def scheme(self, spec: ParamSpec) -> Scheme | None:
        """Storage of a parameter; None where it is plain fp32: vectors, and all for that base."""
        if not spec.rows or self.base == "fp32":
            return None
        return self.weights.get(spec.role, FP16_PLAIN)

    def bits(self, spec: ParamSpec) -> float | int:
        """Stored bits per value."""
        scheme = self.scheme(spec)
        return VECTOR_BITS if scheme is None else scheme.bits_per_value

    @property
    def roles(self) -> frozenset[Role]:
        """Roles that it treats otherwise than fp16."""
        return frozenset(self.weights) | frozenset(self.rows)


_MATRICES: tuple[Role, ...] = ("attention", "dense", "expert", "shared")
_MLP: tuple[Role, ...] = ("dense", "expert", "shared")

FP16 = Policy(name="fp16", source="16-bit weights, as the matrix unit takes them")
BF16 = Policy(
    name="bf16",
    weights=dict.fromkeys(MATRIX_ROLES, BF16_PLAIN),
    source="16-bit weights as most are released; widening to fp16 at the matrix unit is assumed",
)
INT4 = Policy(
    name="int4",
    weights={"expert": INT4_GROUP32},
    source="Kimi K2 Thinking / K2.5 released form: routed experts int4 in groups of 32; the rest, "
    "released as bf16, is held as fp16",
)
FP8 = Policy(
    name="fp8",
    weights=dict.fromkeys(_MATRICES, FP8_BLOCK128),
    source="DeepSeek-V3 / Kimi K2 released form: e4m3 in 128x128 blocks; embedding, head and "
    "router, released as bf16, are held as fp16",
)
FP8_ROWS = Policy(
    name="fp8-rows",
    weights=dict.fromkeys(_MATRICES, FP8_BLOCK128),
    rows=dict.fromkeys(_MATRICES, "fp8"),
    source="as fp8, with e4m3 rows, as DeepSeek-V3 multiplies (technical report, section 3.3); "
    "that rows have no scale of their own is assumed",
)
#: Of released files only.
FP8_COLUMNS = Policy(
    name="fp8-column",
    weights=dict.fromkeys(_MATRICES, FP8_COLUMN),
    source="NVIDIA ModelOpt's FP8: e4m3 with a scale per matrix, held as one per column; "
    "embedding, head and router, released as bf16, are held as fp16",
)
INT8 = Policy(
    name="int8",
    weights=dict.fromkeys((*_MATRICES, "head"), INT8_COLUMN),
    source="Groq's int8 flow: symmetric, per output column (assumed); embedding and router 16-bit",
)
MX4 = Policy(
    name="mxfp4",
    weights=dict.fromkeys(_MATRICES, MXFP4),
    source="OCP MXFP4 for all matrices but embedding, head and router (assumed)",
)
NV4 = Policy(
    name="nvfp4",
    weights=dict.fromkeys(_MATRICES, NVFP4),
    source="NVFP4 for all matrices but embedding, head and router (assumed)",
)
#: The published part: block floating point for MoE weights, fp8 storage of activations where the
#: model tolerates it, fp32 attention logits, 100 bits of intermediate accumulation.
#: Assumed: boxes of 16 with 7 mantissa bits (MSFP16); that the tolerant activations are the rows
#: that enter MLPs; that fp8 is e4m3 without a scale; that the accumulator reaches over all of K.
TRUEPOINT = Policy(
    name="groq-truepoint",
    weights={"expert": MSFP16},
    rows=dict.fromkeys(_MLP, "fp8"),
    carry="exact",
    source="Groq, blog of 2025-08-01, for the roles; block size, mantissa bits and which "
    "activations are tolerant are assumed",
)
#: gpt-oss ships routed experts in MXFP4 and the rest in bf16.
GPT_OSS = Policy(
    name="mxfp4-experts",
    weights={**dict.fromkeys(MATRIX_ROLES, BF16_PLAIN), "expert": MXFP4},
    source="gpt-oss released form: routed experts MXFP4, the rest bf16",
)

#: Not a format of the chip: layers computed in plain fp32, to compare a model's meaning with
#: another implementation of it.
FLOAT32 = Policy(name="float32", base="fp32", fidelity="fast", source="for checking only")

_ALL = (FP16, BF16, INT8, FP8, FP8_ROWS, INT4, MX4, NV4, GPT_OSS, TRUEPOINT, FLOAT32)
POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in _ALL})
#: What may stand behind the name of a policy: a format of its cache, one of its wire.
_CACHE_WORDS: Mapping[str, CacheFormat] = MappingProxyType(
    {f"{name}-cache": name for name in get_args(CacheFormat) if name != "base"}
)
#: A cache whose codes have a scale: `fp8x0.25-cache`.
_FP8_SCALED = re.compile(r"fp8x(\d+(?:\.\d+)?(?:e-?\d+)?)-cache")
_WIRE_WORDS: Mapping[str, WireFormat] = MappingProxyType(
    {f"{name}-wire": name for name in get_args(WireFormat) if name != "base"}
)
#: The name of whatever the checkpoint ships.
RELEASED = "released"
#: Policies by `ModelConfig.released_format`, for the usual roles, and the scheme of narrow ones.
_BY_RELEASED_FORMAT = {
    "fp16": FP16,
    "bf16": BF16,
    "fp8": FP8,
    "fp8-column": FP8_COLUMNS,
    "int4": INT4,
    "mxfp4": GPT_OSS,
    "nvfp4": NV4,
}
_RELEASED_SCHEMES = {
    "fp8": FP8_BLOCK128,
    "fp8-column": FP8_COLUMN,
    "int4": INT4_GROUP32,
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
}


def policy_named(name: str, cfg: ModelConfig | None = None) -> Policy:
    """Find a policy.

    Args:
        name: of a policy, or "released" for the format in which the model's weights are published;
            behind it may stand a format of cached keys and values, as in `fp16+fp8-head-cache` or,
            for codes under a scale of all tensors, `fp16+fp8x0.25-cache`, and
            one of partial sums between chips, as in `fp16+fp8-cache+bf16-wire`; or whose tensor
            cores multiply, as in `fp16@blackwell`, and there what they multiply, as in
            `fp16@blackwell:attention`: attention, embedding and head.
        cfg: the model; "released" needs it.

    Raises:
        UnknownNameError: if there is no such policy, or no such format of a cache or a wire.
        LpuError: if two formats of a cache or a wire are given, or "released" without a model.
        ConfigError: if the model is released in a format that no policy holds.
    """
    base, at, cores = name.partition("@") if isinstance(name, str) else (name, "", "")
    if at:
        return on_tensor_cores(policy_named(base, cfg), cores)
    if isinstance(name, str) and "+" in name:
        base, *words = name.split("+")
        return _with_words(policy_named(base, cfg), words, name)
    if name == RELEASED:
        if cfg is None:
            raise LpuError(f"policy {RELEASED} is that of a model; give the model too.")
        if cfg.released_format not in _BY_RELEASED_FORMAT:
            raise ConfigError(
                f"{cfg.name} is released in {cfg.released_format}, which no policy holds; choose "
                f"one of {', '.join(POLICIES)}."
            )
        if cfg.released_roles is not None and cfg.released_format in _RELEASED_SCHEMES:
            return _narrowed(cfg.released_format, cfg.released_roles)
        return _BY_RELEASED_FORMAT[cfg.released_format]
    if not isinstance(name, str) or name not in POLICIES:
        raise unknown("precision policy", str(name), (*POLICIES, RELEASED))
    return POLICIES[name]


def _with_words(policy: Policy, words: Sequence[str], name: str) -> Policy:
    """Have a policy's cache, or what crosses its chips, in the formats of the words of a name."""
    known = (*_CACHE_WORDS, *_WIRE_WORDS)
    for word in words:
        scaled = _FP8_SCALED.fullmatch(word)
        kind = "fp8-cache" if scaled else word
        if kind not in known:
            raise unknown("format of a cache or a wire", word, known)
        if policy.cache != "base" and kind in _CACHE_WORDS:
            raise LpuError(f"policy {name} names two formats of the cache; give one.")
        if policy.wire != "base" and kind in _WIRE_WORDS:
            raise LpuError(f"policy {name} names two formats of the wire; give one.")
        policy = replace(
            policy,
            name=f"{policy.name}+{word}",
            cache=_CACHE_WORDS.get(kind, policy.cache),
            cache_scale=float(scaled[1]) if scaled else policy.cache_scale,
            wire=_WIRE_WORDS.get(kind, policy.wire),
            source=f"{policy.source}; {word.replace('-', ' ')} (assumed)",
        )
    return policy


def on_tensor_cores(policy: Policy, cores: str) -> Policy:
    """Have all parts of a model, or those that GPUs beside LPUs have, multiplied by tensor cores.

    Args:
        policy: what multiplies the rest.
        cores: a generation, such as `"blackwell"`, of all parts; or with `":attention"` behind it.

    Raises:
        LpuError: an unknown generation or part, or a policy whose rows tensor cores do not take.
    """
    generation, colon, part = cores.partition(":")
    if generation not in get_args(Generation):
        raise unknown("generation of tensor cores", generation, get_args(Generation))
    if colon and part != "attention":
        raise LpuError(
            f"policy {policy.name}@{cores} names part {part!r}; it must be 'attention', which is "
            "what GPUs beside LPUs have, or nothing for all parts."
        )
    parts: tuple[PlanPart, ...] = ("attention", "vocab") if colon else get_args(PlanPart)
    return replace(
        policy,
        name=f"{policy.name}@{cores}",
        tensor_cores=dict.fromkeys(parts, cast(Generation, generation)),
        source=f"{policy.source}; products of {' and '.join(parts)} by a model of {generation} "
        "tensor cores, not measured on them",
    )


def _narrowed(released_format: str, roles: tuple[str, ...]) -> Policy:
    """Make the policy of a checkpoint that narrows other roles than its format usually does.

    The rest is held as the usual policy of the format holds what it leaves alone.
    """
    usual, scheme = _BY_RELEASED_FORMAT[released_format], _RELEASED_SCHEMES[released_format]
    narrow = {role: scheme for role in MATRIX_ROLES if role in roles}
    rest = usual.weights.get("router")  # which no format narrows
    spared = {} if rest is None else {role: rest for role in MATRIX_ROLES if role not in roles}
    return Policy(
        name=f"{released_format}-{'-'.join(roles) or 'nowhere'}",
        weights=narrow | spared,
        source=f"quantization_config of the model's config.json; the rest is held as "
        f"{(rest or FP16_PLAIN).name}",
    )
