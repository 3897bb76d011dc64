"""A plan is a value: stages, chips in each, and how each kind of block splits them.

Read from and written to TOML or JSON. Whether a plan is legal for a model and a machine is
`legal`'s question.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from lpu_jax.cost.collectives.links import ALGORITHMS
from lpu_jax.errors import PlanError, unknown
from models.layers.dispatch import Dispatch
from models.layers.linear import Split


def _positive(owner: str, **degrees: int | None) -> None:
    for name, degree in degrees.items():
        if degree is not None and (not isinstance(degree, int) or degree < 1):
            raise PlanError(
                f"{owner} {name} is {degree!r}; it must be a whole number of at least 1."
            )


def _word(owner: str, shard: Any, name: str, words: type[StrEnum]) -> None:
    """Take a choice given as a plain word for the word of its enumeration."""
    given = getattr(shard, name)
    if given not in list(words):
        raise unknown(f"{owner} {name}", str(given), [str(word) for word in words])
    object.__setattr__(shard, name, words(given))


def _settle_split(shard: "AttentionShard | MlpShard | MoeShard") -> None:
    """Take an output projection that one chip holds whole for one split by columns.

    So it is: the chip holds all columns. Plans that differ only in the split of what is not split
    are one plan, with one program, one time and the same bits.
    """
    if shard.output_ways == 1:
        object.__setattr__(shard, "split", Split.COLUMN)


def _check_order(owner: str, order: tuple[str, ...], default: tuple[str, ...]) -> None:
    if sorted(order) != sorted(default):
        raise PlanError(
            f"{owner} order is {', '.join(order) or 'empty'}; it must name each of "
            f"{', '.join(default)} once, outermost first."
        )


@dataclass(frozen=True, kw_only=True)
class AttentionShard:
    """How an attention block splits its group.

    Heads over `tensor`, positions of the cache over `context`, sequences over `data`, copies over
    `replica`. Whatever `split` is given, one chip that holds all heads has all columns: `column`.
    Chips along the last axis of `order` are neighbours; an order without `context` has
    it just outside `tensor`. Sliding layers have short caches: `context` copies them.
    """

    tensor: int = 1
    data: int = 1
    context: int = 1
    replica: int = 1
    split: Split = Split.ROW
    order: tuple[str, ...] = ("replica", "data", "context", "tensor")

    def __post_init__(self) -> None:
        _positive(
            "attention",
            tensor=self.tensor,
            data=self.data,
            context=self.context,
            replica=self.replica,
        )
        if "context" not in self.order and "tensor" in self.order:
            at = self.order.index("tensor")
            order = (*self.order[:at], "context", *self.order[at:])
            object.__setattr__(self, "order", order)
        _check_order("attention", self.order, AttentionShard.order)
        _word("attention", self, "split", Split)
        _settle_split(self)

    @property
    def output_ways(self) -> int:
        """Chips that share out the output projection."""
        return self.tensor

    @property
    def n_chips(self) -> int:
        """Chips of the group it needs."""
        return self.tensor * self.data * self.context * self.replica


@dataclass(frozen=True, kw_only=True)
class MlpShard:
    """How a dense MLP splits its group: columns over `tensor`, copies over `replica`.

    Whatever `split` is given, one chip that holds the whole MLP has all columns: `column`.
    """

    tensor: int = 1
    replica: int = 1
    split: Split = Split.ROW
    order: tuple[str, ...] = ("replica", "tensor")

    def __post_init__(self) -> None:
        _positive("mlp", tensor=self.tensor, replica=self.replica)
        _check_order("mlp", self.order, MlpShard.order)
        _word("mlp", self, "split", Split)
        _settle_split(self)

    @property
    def output_ways(self) -> int:
        """Chips that share out the output projection."""
        return self.tensor

    @property
    def n_chips(self) -> int:
        """Chips of the group it needs."""
        return self.tensor * self.replica


@dataclass(frozen=True, kw_only=True)
class MoeShard:
    """How a MoE block splits its group.

    Experts over `expert`, their columns over `tensor`, copies over `replica`.

    `slots` are the experts a chip runs for one token batch; None is the worst case, which cannot
    overflow. `dispatch` says whether every chip has every row, or rows travel to their experts.
    Whatever is given, one chip that holds the whole block has all columns, and rows do not travel
    where there is one way over experts.
    """

    expert: int = 1
    tensor: int = 1
    replica: int = 1
    split: Split = Split.ROW
    slots: int | None = None
    dispatch: Dispatch = Dispatch.REPLICATED
    order: tuple[str, ...] = ("replica", "expert", "tensor")

    def __post_init__(self) -> None:
        _positive(
            "moe", expert=self.expert, tensor=self.tensor, replica=self.replica, slots=self.slots
        )
        _check_order("moe", self.order, MoeShard.order)
        _word("moe", self, "split", Split)
        _word("moe", self, "dispatch", Dispatch)
        if self.order[1] == "replica":
            raise PlanError(
                f"moe order is {', '.join(self.order)}; replica must be its first or last axis, "
                "because results are added over expert and tensor together."
            )
        _settle_split(self)
        if self.expert == 1:  # all experts are where the rows are
            object.__setattr__(self, "dispatch", Dispatch.REPLICATED)

    @property
    def output_ways(self) -> int:
        """Chips that share out the experts' output projections: their results are added."""
        return self.expert * self.tensor

    @property
    def n_chips(self) -> int:
        """Chips of the group it needs."""
        return self.expert * self.tensor * self.replica


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Stages of `group_chips` chips each, and the split of every kind of block.

    The embedding and the head split the vocabulary over the whole group. `collective` is the
    algorithm of every collective: `auto` takes the fastest legal one.
    """

    stages: int = 1
    group_chips: int
    attention: AttentionShard
    mlp: MlpShard
    moe: MoeShard | None = None
    collective: str = "auto"

    def __post_init__(self) -> None:
        _positive("plan", stages=self.stages, group_chips=self.group_chips)
        if self.collective not in ("auto", *ALGORITHMS):
            raise unknown("collective", self.collective, ("auto", *ALGORITHMS))

    @property
    def n_chips(self) -> int:
        """Chips of all stages."""
        return self.stages * self.group_chips

    @property
    def name(self) -> str:
        """A short name: stages x chips, then degrees above one; `a` attention, `f` MLP, `m` MoE.

        Then the split of output projections, or one for each part if they differ; parts that no
        chips split have none. Last the slots, the dispatch, the orders of axes and the collective
        if they are not the default.
        """
        attention = _degrees(
            "a",
            t=self.attention.tensor,
            d=self.attention.data,
            c=self.attention.context,
            r=self.attention.replica,
        )
        mlp = _degrees("f", t=self.mlp.tensor, r=self.mlp.replica)
        moe = (
            []
            if self.moe is None
            else [_degrees("m", e=self.moe.expert, t=self.moe.tensor, r=self.moe.replica)]
        )
        parts = [part for part in (self.attention, self.mlp, self.moe) if part is not None]
        splits = [part.split for part in parts if part.output_ways > 1]
        split = splits[:1] if len(set(splits)) == 1 else ["/".join(splits)] * bool(splits)
        rest = [f"slots {self.moe.slots}"] if self.moe and self.moe.slots else []
        if self.moe and self.moe.dispatch is not Dispatch.REPLICATED:
            rest.append(self.moe.dispatch)
        for part in parts:
            if part.order != type(part).order:
                named = (
                    axis for axis in part.order if getattr(part, axis) > 1 or axis != "context"
                )
                rest.append(">".join(named))
        rest += [self.collective] if self.collective != "auto" else []
        return " ".join([f"{self.stages}x{self.group_chips}", attention, mlp, *moe, *split, *rest])

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return asdict(self)


def _degrees(kind: str, **degrees: int) -> str:
    return f"{kind}:" + ("·".join(f"{n}{name}" for name, n in degrees.items() if n > 1) or "1")


_PARTS: dict[str, Any] = {"attention": AttentionShard, "mlp": MlpShard, "moe": MoeShard}


def plan_from_dict(data: Any, where: str = "plan") -> Plan:
    """Read a plan from plain values.

    Args:
        data: as `Plan.as_dict` writes it.
        where: named in errors, such as a file.

    Raises:
        PlanError: a key is unknown, missing or of the wrong type: the sentence names it.
    """
    if not isinstance(data, dict):
        raise PlanError(f"{where}: expected a table of plan fields, got {type(data).__name__}.")
    _known_keys(where, data, Plan)
    values = dict(data)
    for name in ("group_chips", "stages"):
        if name in values or name == "group_chips":
            _whole_number(where, name, values.get(name))
    for name, part in _PARTS.items():
        given = values.get(name)
        if given is not None or name != "moe":
            values[name] = _read_part(where, name, given, part)
    if not isinstance(values.get("collective", "auto"), str):
        raise PlanError(f"{where}: key 'collective' must be a name, got {values['collective']!r}.")
    return Plan(**values)


def _read_part(where: str, name: str, given: Any, part: Any) -> Any:
    """Read the split of one kind of block."""
    if not isinstance(given, dict):
        raise PlanError(f"{where}: key {name!r} must be a table of degrees, got {given!r}.")
    _known_keys(f"{where}, {name}", given, part)
    values = dict(given)
    for key, degree in given.items():
        if key not in ("split", "order", "dispatch") and not (key == "slots" and degree is None):
            _whole_number(where, f"{name}.{key}", degree)
    order = values.get("order", part.order)
    if not isinstance(order, list | tuple) or not all(isinstance(axis, str) for axis in order):
        raise PlanError(f"{where}: key '{name}.order' must be a list of axes, got {order!r}.")
    values["order"] = tuple(order)
    for key, words in (("split", Split), ("dispatch", Dispatch)):
        if key in values and values[key] not in list(words):
            raise PlanError(
                f"{where}: key '{name}.{key}' must be one of {', '.join(words)}, got "
                f"{values[key]!r}."
            )
        if key in values:
            values[key] = words(values[key])
    return part(**values)


def _whole_number(where: str, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(
            f"{where}: key {key!r} must be a whole number of at least 1, got {value!r}."
        )


def _known_keys(where: str, data: dict[str, Any], owner: Any) -> None:
    known = [field.name for field in fields(owner)]
    for key in data:
        if key not in known:
            raise unknown(f"key in {where}", key, known)


def read_plan(path: str | Path) -> Plan:
    """Read a plan from a TOML or JSON file.

    Raises:
        PlanError: the file cannot be read or is not a plan; one sentence names the file and the
            place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"plan file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise PlanError(f"plan file {path} cannot be read: it is not UTF-8 text.") from None
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both readers' errors are ValueErrors
        raise PlanError(f"plan file {path} is malformed: {error}.") from None
    return plan_from_dict(data, f"plan file {path}")
