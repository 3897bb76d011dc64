"""A plan is a value: stages, chips in each, and how each kind of block splits them.

Files of plans are read in `plan_file`. Whether a plan is legal for a model and a machine is
`legal`'s question.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
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
    order: tuple[str, ...]  #: mesh axes, outermost first
    split: Split  #: of the output projection

    def __post_init__(self) -> None:
        _take_degrees(self.part, self, *self.degrees)
        self._take_order()
        self._take_word("split", Split)
        if self.output_ways == 1:
            # The chip holds all columns. Plans that differ only in the split of what is not split
            # are one plan, with one program, one time and the same bits.
            object.__setattr__(self, "split", Split.COLUMN)

    def _take_order(self) -> None:
        """Refuse an order that is none of the axes; add those that it may leave out."""
        default = type(self).order
        if not (
            isinstance(self.order, list | tuple)
            and all(isinstance(name, str) for name in self.order)
        ):
            raise PlanError(
                f"{self.part} order is {described(self.order)}; it must be a tuple of axes, such "
                f"as {default}."
            )
        object.__setattr__(self, "order", tuple(self.order))
        for axis in self.axes:
            if axis.name not in self.order and axis.outside in self.order:
                at = self.order.index(axis.outside)
                order = (*self.order[:at], axis.name, *self.order[at:])
                object.__setattr__(self, "order", order)
        if sorted(self.order) != sorted(default):
            raise PlanError(
                f"{self.part} order is {', '.join(self.order) or 'empty'}; it must name each of "
                f"{', '.join(default)} once, outermost first."
            )

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
    def output_ways(self) -> int:
        """Chips that share out the output projection: their results are added, or gathered."""
        return prod(getattr(self, axis.name) for axis in self.axes if axis.sums)

    @property
    def name(self) -> str:
        """A short name: its letter, then degrees above one."""
        ways = ((getattr(self, axis.name), axis.letter) for axis in self.axes)
        return f"{self.letter}:" + ("·".join(f"{n}{letter}" for n, letter in ways if n > 1) or "1")

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
    `replica`. Whatever `split` is given, one chip that holds all heads has all columns: `column`.
    Chips along the last axis of `order` are neighbours; an order without `context` has
    it just outside `tensor`. Sliding layers have short caches: `context` copies them.
    """

    part, letter, title = "attention", "a", "attention"

    tensor: int = _axis(
        "t",
        *("kv_heads", "heads", "d_out", "once"),
        pieces="heads",
        sums=True,
        inner=PlanAxis(
            name="query", letter="", splits=("heads", "q_per_kv", "d_out", "once"), sums=True
        ),
    )
    data: int = _axis("d", "batch_local", pieces="sequences")
    context: int = _axis("c", "kv_length", moves=_merge_in_words, outside="tensor")
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

    expert: int = _axis("e", "experts", "shared_mlp", "shared_d_out", pieces="experts", sums=True)
    tensor: int = _axis(
        "t", *("expert_mlp", "d_out", "once", "shared_mlp", "shared_d_out"), sums=True
    )
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

    @property
    def slots_in_words(self) -> list[str]:
        """What it says of slots, where that is not the default."""
        words = []
        if self.slots is not None:
            words.append(f"slots {self.slots}")
        elif self.slot_rule is not SlotRule.CAPACITY:
            words.append(f"{self.slot_rule} slots")
        if self.capacity is not None:
            words.append(f"capacity {self.capacity}")
        if self.overflow != type(self).overflow:
            words.append(f"overflow {self.overflow:g}")
        return words


#: The parts of a plan, in the order of its name.
PARTS: Mapping[str, type[Shard]] = MappingProxyType(
    {shard.part: shard for shard in (AttentionShard, MlpShard, MoeShard)}
)
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
    if not isinstance(plans, list | tuple):
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


#: The vocabulary of embedding and head is split over the whole group.
GROUP_AXES = (PlanAxis(name="tensor", letter="t", splits=("vocab",)),)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages of `group_chips` chips each, and the split of every kind of block.

    The embedding and the head split the vocabulary over the whole group. `collective` is the
    algorithm of every collective, such as `direct` or `direct+pipelined`; `auto` takes the fastest
    legal one.
    """

    stages: int = 1
    group_chips: int
    attention: AttentionShard
    mlp: MlpShard
    moe: MoeShard | None = None
    collective: str = "auto"

    def __post_init__(self) -> None:
        _take_degrees("plan", self, "stages", "group_chips")
        for name, part in PARTS.items():
            given = getattr(self, name)
            if not isinstance(given, part) and not (given is None and name == "moe"):
                raise PlanError(
                    f"plan {name} is {described(given)}; it must be of type {part.__name__}, such "
                    f"as {part.__name__}(tensor=2)."
                )
        check_algorithm(self.collective)

    @property
    def n_chips(self) -> int:
        """Chips of all stages."""
        return self.stages * self.group_chips

    @property
    def parts(self) -> dict[str, Shard]:
        """Its parts by name; a plan for dense models has no `moe`."""
        given = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in given.items() if part is not None}

    @property
    def name(self) -> str:
        """A short name: stages x chips, then degrees above one; `a` attention, `f` MLP, `m` MoE.

        Then the split of output projections, or one for each part if they differ; parts that no
        chips split have none. Last the slots, the dispatch, the orders of axes and the collective
        if they are not the default.
        """
        parts = self.parts.values()
        splits = [part.split for part in parts if part.output_ways > 1]
        split = splits[:1] if len(set(splits)) == 1 else ["/".join(splits)] * bool(splits)
        rest = self.moe.slots_in_words if self.moe else []
        if self.moe and self.moe.dispatch is not Dispatch.REPLICATED:
            rest.append(self.moe.dispatch)
        for part in parts:
            if part.order != type(part).order:
                rest.append(">".join(axis for axis in part.order if axis in part.named_axes))
        rest += [self.collective] if self.collective != "auto" else []
        names = (part.name for part in parts)
        return " ".join([f"{self.stages}x{self.group_chips}", *names, *split, *rest])

    @property
    def with_ruled_slots(self) -> "Plan":
        """This plan without numbers of slots and rows: those of one step do not suit another."""
        if self.moe is None or (self.moe.slots is None and self.moe.capacity is None):
            return self
        return replace(self, moe=replace(self.moe, slots=None, capacity=None))

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return asdict(self)
