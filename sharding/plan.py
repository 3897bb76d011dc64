"""A plan is a value: stages, chips in each, and how each kind of block splits them.

Names of plans are written and read in `plan_name`, files in `plan_file`. Whether a plan is legal
for a model and a machine is `legal`'s question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from hashlib import sha256
from math import prod
from numbers import Integral
from types import MappingProxyType
from typing import Any, ClassVar, cast

from lpu_jax.arguments import described
from lpu_jax.datapath.axis import check_algorithm
from lpu_jax.datapath.mem import POSITIONS_STEP
from lpu_jax.errors import PlanError, unknown
from lpu_jax.predicates import is_number
from models.layers.dispatch import Dispatch
from models.layers.linear import Split

from .plan_name import name_of, plan_named


@dataclass(frozen=True, kw_only=True)
class PlanAxis:
    """One way in which a part of a plan shares out its blocks: all that is known of it, in one row.

    Attributes:
        name: of the degree in a plan, and of the mesh axis.
        letter: of the degree in a plan's name.
        splits: the logical axes that its chips share out; the first bounds the degree. None:
            copies.
        pieces: what the first consists of, in words.
        sums: with a row split, partial sums of the output projection are added over its chips.
        moves: says how values are rounded otherwise than on one chip, whatever the split, given
            the degree, the tokens so far and the base format; None: they are not.
        outside: orders written before this axis existed have it just outside that one; it is named
            only where it has chips.
        inner: the axis inside it that takes further ways once the first logical axis has no more.
    """

    name: str = ""
    letter: str
    splits: tuple[str, ...] = ()
    pieces: str = "columns"
    sums: bool = False
    moves: Callable[[int, int, str], str] | None = None
    outside: str | None = None
    inner: "PlanAxis | None" = None


#: Probabilities of an overflow that a plan may state: what is counted is not exact below.
LEAST_OVERFLOW, MOST_OVERFLOW = 1e-9, 0.5


class SlotRule(StrEnum):
    """How many slots a mixture's chips have, where the plan gives no number."""

    #: enough for every routing
    WORST = "worst"
    #: enough but with a stated probability
    CAPACITY = "capacity"
    #: what the busiest chip needs on average: an optimistic reading, overflow has no price
    EXPECTED = "expected"


_METADATA_KEY = "sharding.plan_axis"


def _axis(letter: str, *splits: str, **facts: Any) -> Any:
    """Declare a degree of a part of a plan; it takes its name from the field."""
    row = PlanAxis(letter=letter, splits=splits, **facts)
    return field(default=1, metadata={_METADATA_KEY: row})


def _merge_in_words(n_chips: int, n_tokens: int, base: str) -> str:
    """Say what the merge of a context over chips does; each holds `POSITIONS_STEP` positions."""
    n_holding = min(n_chips, -(-n_tokens // POSITIONS_STEP))
    rounding = f"rounds its result to {base}; all are merged by log-sum-exp in chip order"
    if n_holding == 1:
        return (
            f"softmax over the context: only the first of {n_chips} chips holds positions of so "
            f"few tokens, so that no rounding moves; beyond {POSITIONS_STEP} tokens each chip that "
            f"holds some {rounding}"
        )
    which = f"{n_chips} chips" if n_holding == n_chips else f"the first {n_holding} chips"
    idle = "" if n_holding == n_chips else f" (the other {n_chips - n_holding} hold no position)"
    return f"softmax over the context: each of {which} {rounding}{idle}"


def _take_degrees(owner: str, instance: Any, *names: str) -> None:
    """Refuse degrees that are no whole numbers of at least 1; NumPy's become Python's."""
    for name in names:
        degree = getattr(instance, name)
        if not isinstance(degree, Integral) or isinstance(degree, bool) or degree < 1:
            raise PlanError(
                f"{owner} {name} is {described(degree)}; it must be a whole number of at least 1."
            )
        object.__setattr__(instance, name, int(degree))


class Shard:
    """What the parts of a plan have in common: degrees along axes, their order, and a split."""

    part: ClassVar[str]  #: its name in a plan
    letter: ClassVar[str]  #: its name in a plan's name
    title: ClassVar[str]
    #: mesh axes, outermost first; the default, if only axes of one chip stand elsewhere
    order: tuple[str, ...]
    split: Split  #: of the output projection

    def __post_init__(self) -> None:
        _take_degrees(self.part, self, *self.degrees)
        self._take_order()
        self._take_word("split", Split)
        if not self.has_output or (self.output_ways == 1 and not self.split.rules_one_chip):
            # The chip holds all columns. Plans that differ only in the split of what is not split
            # are one plan, with one program, one time and the same bits.
            object.__setattr__(self, "split", Split.COLUMN)

    def _take_order(self) -> None:
        """Refuse an order that is none of the axes; those of one chip may be left out."""
        default = type(self).order
        if self.order == default:
            return
        if not (
            isinstance(self.order, list | tuple)
            and all(isinstance(name, str) for name in self.order)
        ):
            raise PlanError(
                f"{self.part} order is {described(self.order)}; it must be a tuple of axes, such "
                f"as {default}."
            )
        order = list(self.order)
        for axis in self.axes:
            if axis.name not in order and axis.outside in order:
                order.insert(order.index(axis.outside), axis.name)
        busy = {name for name, degree in self.degrees.items() if degree > 1}
        if len(set(order)) < len(order) or not busy <= set(order) <= set(default):
            raise PlanError(
                f"{self.part} order is {', '.join(order) or 'empty'}; it must name each of "
                f"{', '.join(default)} once, outermost first; those of one chip may be left out."
            )
        # Plans that differ only in where axes of one chip stand are one plan.
        order = [name for name in order if name in busy]
        if order == [name for name in default if name in busy]:
            object.__setattr__(self, "order", default)
        else:
            idle = (name for name in default if name not in busy)
            object.__setattr__(self, "order", (*idle, *order))

    def _take_word(self, name: str, words: type[StrEnum]) -> None:
        """Take a choice given as a plain word for the word of its enumeration."""
        given = getattr(self, name)
        if given not in list(words):
            raise unknown(f"{self.part} {name}", str(given), [str(word) for word in words])
        object.__setattr__(self, name, words(given))

    @property
    def axes(self) -> tuple[PlanAxis, ...]:
        """Its axes, in the order of its name."""
        return AXES[self.part]

    @property
    def degrees(self) -> dict[str, int]:
        """Chips along each axis."""
        return {axis.name: getattr(self, axis.name) for axis in self.axes}

    @property
    def n_chips(self) -> int:
        """Chips of the group it needs."""
        return prod(self.degrees.values())

    @property
    def has_output(self) -> bool:
        """Whether it has an output projection."""
        return any(axis.sums for axis in self.axes)

    @property
    def output_ways(self) -> int:
        """Chips that share out the output projection: their results are added, or gathered."""
        return prod(getattr(self, axis.name) for axis in self.axes if axis.sums)

    @property
    def moving_axes(self) -> tuple[PlanAxis, ...]:
        """The axes with chips over which values are rounded, whatever the split."""
        return tuple(axis for axis in self.axes if axis.moves and getattr(self, axis.name) > 1)

    @property
    def named_axes(self) -> frozenset[str]:
        """The axes to be named: all but those of one chip that older plans do not know."""
        return frozenset(
            axis.name for axis in self.axes if axis.outside is None or getattr(self, axis.name) > 1
        )


@dataclass(frozen=True, kw_only=True)
class AttentionShard(Shard):
    """How an attention block splits its group.

    Heads over `tensor`, positions of the cache over `context`, sequences over `data`, copies over
    `replica`. One chip that holds all heads has all columns: `row` becomes `column`.
    Chips along the last axis of `order` are neighbours; an order without `context` has
    it just outside `tensor`. Sliding layers have short caches: `context` copies them. The keys of
    an index are shared out by position over `context` and `tensor`.
    """

    part, letter, title = "attention", "a", "attention"

    tensor: int = _axis(
        "t",
        *("kv_heads", "heads", "d_out", "once", "index_length"),
        pieces="heads",
        sums=True,
        inner=PlanAxis(
            name="query", letter="", splits=("heads", "q_per_kv", "d_out", "once"), sums=True
        ),
    )
    data: int = _axis("d", "batch_local", pieces="sequences")
    context: int = _axis("c", "kv_length", "index_length", moves=_merge_in_words, outside="tensor")
    replica: int = _axis("r")
    split: Split = Split.ROW
    order: tuple[str, ...] = ("replica", "data", "context", "tensor")


@dataclass(frozen=True, kw_only=True)
class MlpShard(Shard):
    """How a dense MLP splits its group: columns over `tensor`, copies over `replica`."""

    part, letter, title = "mlp", "f", "dense MLP"

    tensor: int = _axis("t", "mlp", "d_out", sums=True)
    replica: int = _axis("r")
    split: Split = Split.ROW
    order: tuple[str, ...] = ("replica", "tensor")


#: Logical axes of a mixture's matrices that every row passes: all its chips share them out.
_OF_EVERY_ROW = ("shared_mlp", "shared_d_out", "alone_d_out", "latent", "latent_d_out")


@dataclass(frozen=True, kw_only=True)
class MoeShard(Shard):
    """How a MoE block splits its group.

    Experts over `expert`, their columns over `tensor`, copies over `replica`.

    A chip has `slots`, each of which multiplies `capacity` rows by one expert; an expert takes as
    many slots as its rows fill. None: as many slots as `slot_rule` says, with the number of rows
    that is fastest; slots alone have room for all rows. A step overflows with a probability below
    `overflow`, or as often as the number of slots makes it, and then runs the rest of the worst
    case too: no row is ever left out, and no bit depends on slots or capacity.

    `dispatch` says whether every chip has every row, or rows travel to their experts. Whatever is
    given, one chip that holds the whole block has all columns, and rows do not travel where there
    is one way over experts.
    """

    part, letter, title = "moe", "m", "experts"

    expert: int = _axis("e", "experts", *_OF_EVERY_ROW, pieces="experts", sums=True)
    tensor: int = _axis("t", "expert_mlp", "d_out", "once", *_OF_EVERY_ROW, sums=True)
    replica: int = _axis("r")
    split: Split = Split.ROW
    slots: int | None = None
    capacity: int | None = None
    slot_rule: SlotRule = SlotRule.CAPACITY
    overflow: float = 1e-3
    dispatch: Dispatch = Dispatch.REPLICATED
    order: tuple[str, ...] = ("replica", "expert", "tensor")

    def __post_init__(self) -> None:
        super().__post_init__()
        _take_degrees(
            self.part, self, *(n for n in ("slots", "capacity") if getattr(self, n) is not None)
        )
        self._take_word("slot_rule", SlotRule)
        if not is_number(self.overflow) or not LEAST_OVERFLOW <= self.overflow <= MOST_OVERFLOW:
            raise PlanError(
                f"moe overflow is {described(self.overflow)}; it must be a probability from "
                f"{LEAST_OVERFLOW} to {MOST_OVERFLOW}."
            )
        object.__setattr__(self, "overflow", float(self.overflow))
        self._take_word("dispatch", Dispatch)
        if self.order[1] == "replica":
            raise PlanError(
                f"moe order is {', '.join(self.order)}; replica must be its first or last axis, "
                "because results are added over expert and tensor together."
            )
        if self.expert == 1:  # all experts are where the rows are
            object.__setattr__(self, "dispatch", Dispatch.REPLICATED)


@dataclass(frozen=True, kw_only=True)
class VocabShard(Shard):
    """How embedding and head split their group: words over `tensor`, copies over `replica`."""

    part, letter, title = "vocab", "v", "embedding and head"

    tensor: int = _axis("t", "vocab", pieces="words")
    replica: int = _axis("r")
    split: Split = Split.COLUMN
    order: tuple[str, ...] = ("replica", "tensor")


#: The parts of a plan, in the order of its name.
PARTS: Mapping[str, type[Shard]] = MappingProxyType(
    {shard.part: shard for shard in (AttentionShard, MlpShard, MoeShard, VocabShard)}
)
#: Parts that a plan may leave out.
OPTIONAL_PARTS = frozenset({"moe", "vocab"})
#: The axes of each part, in the order of its name: the degrees of its class, each with its name.
AXES: Mapping[str, tuple[PlanAxis, ...]] = MappingProxyType(
    {
        name: tuple(
            replace(degree.metadata[_METADATA_KEY], name=degree.name)
            for degree in fields(part)
            if _METADATA_KEY in degree.metadata
        )
        for name, part in cast(Mapping[str, Any], PARTS).items()
    }
)


def check_are_plans(caller: str, plans: Any) -> None:
    """Refuse what is no list of plans, or an empty one; `caller` goes into the message.

    Raises:
        PlanError: says what was given.
    """
    if not isinstance(plans, Sequence) or isinstance(plans, str | bytes):
        raise PlanError(f"{caller}: plans is {described(plans)}; it must be a list of Plan.")
    if not plans:
        raise PlanError(f"{caller}: no plan was given; at least one is needed.")
    for plan in plans:
        check_is_plan(caller, plan)


def check_is_plan(caller: str, plan: Any) -> None:
    """Refuse what is no plan; `caller` goes into the message.

    Raises:
        PlanError: says what was given, and how plans are made.
    """
    if not isinstance(plan, Plan):
        raise PlanError(
            f"{caller}: {described(plan)} was given as a plan; it must be a Plan, such as one of a "
            "comparison's rows, or read_plan(path)."
        )


def legend() -> str:
    """Say what the letters of a plan's name mean."""
    parts = ", ".join(f"{part.letter}:{part.title}" for part in PARTS.values())
    axes = {axis.letter: axis.name for axes in AXES.values() for axis in axes}
    ways = ", ".join(f"{letter} {name}" for letter, name in axes.items())
    return f"stages x chips of a stage, then ways of {parts} over {ways}"


#: Parts whose blocks may lie in a pool of their own.
FFN_PARTS = ("mlp", "moe")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Stages of so many chips each that serve some of the kinds of blocks."""

    stages: int = 1
    group_chips: int

    def __post_init__(self) -> None:
        _take_degrees("pool", self, "stages", "group_chips")

    @property
    def n_chips(self) -> int:
        """Chips of all its stages."""
        return self.stages * self.group_chips


#: Hexadecimal digits of a plan's digest.
_DIGEST_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages of `group_chips` chips each, and the split of every kind of block.

    Without a part `vocab` the embedding and the head split the vocabulary over the whole group.
    `collective` is the algorithm of every collective, such as `direct` or `direct+pipelined`;
    `auto` takes the fastest legal one, and is what a group of one chip has.

    With `ffn`, dense MLPs and experts lie in a pool of their own: its stages hold no other blocks,
    and a token crosses between the pools before and after each of them. Micro-batches alternate.
    """

    stages: int = 1
    group_chips: int
    attention: AttentionShard
    mlp: MlpShard
    moe: MoeShard | None = None
    vocab: VocabShard | None = None
    ffn: Pool | None = None
    collective: str = "auto"

    def __post_init__(self) -> None:
        _take_degrees("plan", self, "stages", "group_chips")
        if self.ffn is not None and not isinstance(self.ffn, Pool):
            raise PlanError(
                f"plan ffn is {described(self.ffn)}; it must be of type Pool, such as "
                "Pool(stages=2, group_chips=4)."
            )
        for name, part in PARTS.items():
            given = getattr(self, name)
            if not isinstance(given, part) and not (given is None and name in OPTIONAL_PARTS):
                raise PlanError(
                    f"plan {name} is {described(given)}; it must be of type {part.__name__}, such "
                    f"as {part.__name__}(tensor=2)."
                )
        check_algorithm(self.collective)
        if self.vocab == VocabShard(tensor=self.group_chips):  # the whole group is the default
            object.__setattr__(self, "vocab", None)
        if all(pool.group_chips == 1 for pool in self.pools):  # there is nothing to join
            object.__setattr__(self, "collective", type(self).collective)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Its pools: one that serves all blocks, or that of attention and then that of FFNs."""
        first = Pool(stages=self.stages, group_chips=self.group_chips)
        return (first,) if self.ffn is None else (first, self.ffn)

    def pool_of(self, part: str) -> int:
        """Return the number of the pool that serves a part."""
        return int(self.ffn is not None and part in FFN_PARTS)

    @property
    def n_stages(self) -> int:
        """Stages of all pools."""
        return sum(pool.stages for pool in self.pools)

    @property
    def n_chips(self) -> int:
        """Chips of all stages."""
        return sum(pool.n_chips for pool in self.pools)

    @property
    def parts(self) -> dict[str, Shard]:
        """The parts that it has, by name; a plan for dense models has no `moe`."""
        given = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in given.items() if part is not None}

    @property
    def name(self) -> str:
        """What it is called: stages x chips, degrees above one of every part, then the rest.

        Equal plans have one name, different plans different names: `docs/notation.md`.
        """
        return name_of(self)

    @classmethod
    def parse(cls, name: str) -> "Plan":
        """Return the plan of a name.

        Raises:
            PlanError: says which word of the name is not understood, and what is allowed.

        Example:
            >>> Plan.parse("8x64 a:16t.4r f:64t row").attention.replica
            4
        """
        plan: Plan = plan_named(name, cls, PARTS, Pool)
        return plan

    @property
    def digest(self) -> str:
        """A short hash of its name: stable across processes, and versions with the same names."""
        return sha256(self.name.encode()).hexdigest()[:_DIGEST_DIGITS]

    @property
    def with_ruled_slots(self) -> "Plan":
        """This plan without numbers of slots and rows: those of one step do not suit another."""
        if self.moe is None or (self.moe.slots is None and self.moe.capacity is None):
            return self
        return replace(self, moe=replace(self.moe, slots=None, capacity=None))

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return asdict(self)
