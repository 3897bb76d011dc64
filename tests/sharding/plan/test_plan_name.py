"""A plan's name is its syntax: each plan has one, it is read as that plan, and the rest refused."""

import re
import subprocess
import sys
from dataclasses import fields, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from jaxtyping import config

from lpu_jax.datapath.axis import ALGORITHM_NAMES, PIPELINED
from lpu_jax.errors import PlanError
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from sharding.plan import PARTS, AttentionShard, MlpShard, MoeShard, Plan, Shard, SlotRule
from sharding.plan_name import begins_as_name

#: Every kind of word, each plan written by hand.
NAMED = {
    "1x1 a:1 f:1": Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard()),
    "61x32 a:16t·2r f:32t m:2e·16t row": Plan(
        stages=61,
        group_chips=32,
        attention=AttentionShard(tensor=16, replica=2),
        mlp=MlpShard(tensor=32),
        moe=MoeShard(expert=2, tensor=16),
    ),
    # All layers are mixtures: the dense MLP, which there is none of, is copied.
    "1x8 a:8t f:8r m:8e row/column all_to_all": Plan(
        group_chips=8,
        attention=AttentionShard(tensor=8),
        mlp=MlpShard(replica=8),
        moe=MoeShard(expert=8, split=Split.COLUMN, dispatch=Dispatch.ALL_TO_ALL),
    ),
    "2x24 a:2r>3t>2d>2c f:4t>6r column direct+pipelined": Plan(
        stages=2,
        group_chips=24,
        attention=AttentionShard(
            tensor=3,
            data=2,
            context=2,
            replica=2,
            split=Split.COLUMN,
            order=("replica", "tensor", "data", "context"),
        ),
        mlp=MlpShard(tensor=4, replica=6, split=Split.COLUMN, order=("tensor", "replica")),
        collective="direct+pipelined",
    ),
    "1x8 a:8r f:8r m:4e·2r row slots 8 worst slots capacity 2 overflow 1e-06": Plan(
        group_chips=8,
        attention=AttentionShard(replica=8),
        mlp=MlpShard(replica=8),
        moe=MoeShard(
            expert=4, replica=2, slots=8, slot_rule=SlotRule.WORST, capacity=2, overflow=1e-6
        ),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_names_written_by_hand(name: str) -> None:
    assert NAMED[name].name == name
    assert Plan.parse(name) == NAMED[name]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("61x32 a:16t.2r f:32t m:2e*16t row", "61x32 a:16t·2r f:32t m:2e·16t row"),
        ("  61 x 32  a: 16t . 2r\tf:32t\nm :2e * 16t ", "61x32 a:16t·2r f:32t m:2e·16t row"),
        ("61x32 row m:16t·2e f:32t a:2r·1d·16t", "61x32 a:16t·2r f:32t m:2e·16t row"),
        ("61x32 a:2r>16t f:32t m:1r>2e>16t auto", "61x32 a:16t·2r f:32t m:2e·16t row"),
        ("061x32 a:16t>2r f:32t", "61x32 a:16t>2r f:32t row"),
        ("1x8 a:8r f:8r column", "1x8 a:8r f:8r"),
        ("1x8 a:8r f:8t m:8e column / row", "1x8 a:8r f:8t m:8e column/row"),
        ("1x8 a:8r f:8t m:8e row/row", "1x8 a:8r f:8t m:8e row"),
        (
            "1x8 a:8r f:8r m:8e capacity slots overflow .001 replicated capacity 3",
            "1x8 a:8r f:8r m:8e row capacity 3",
        ),
        ("1x1 a:1 f:1t ring", "1x1 a:1 f:1"),
    ],
)
def test_other_spellings(spelling: str, name: str) -> None:
    assert Plan.parse(spelling).name == name


# --- every plan -----------------------------------------------------------------------------------


def _fields(part: type[Shard]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw every field of a part by its type: a new one is drawn without a change here."""
    degree = st.integers(1, 3) | st.integers(1, 10**12)
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        int: degree,
        int | None: st.none() | degree,
        float: st.sampled_from([1e-3, 1e-6, 0.1]) | st.floats(1e-9, 0.5),
    }
    drawn = {}
    for field in fields(part):
        if field.name == "order":
            drawn["order"] = st.permutations(field.default).map(tuple)
        elif isinstance(field.type, type) and issubclass(field.type, StrEnum):
            drawn[field.name] = st.sampled_from(field.type)
        else:
            drawn[field.name] = by_type[field.type]
    return st.fixed_dictionaries(drawn)


GROUPS = st.integers(1, 2) | st.integers(1, 10**12)
COLLECTIVES = ["auto", *ALGORITHM_NAMES[1:], *(name + PIPELINED for name in ALGORITHM_NAMES[1:])]
#: The fields of a plan that is well formed; whether a model could have it is not asked.
PLANS = st.fixed_dictionaries(
    {
        "stages": GROUPS,
        "group_chips": GROUPS,
        "collective": st.sampled_from(COLLECTIVES),
        **{
            name: _fields(part) if name in ("attention", "mlp") else st.none() | _fields(part)
            for name, part in PARTS.items()
        },
    }
)


def _made(drawn: dict[str, Any]) -> Plan:
    parts = {name: part(**drawn[name]) for name, part in PARTS.items() if drawn[name] is not None}
    return Plan(**(drawn | parts))


def _plan(drawn: dict[str, Any]) -> Plan:
    try:
        return _made(drawn)
    except PlanError:  # an order that a mixture cannot have
        reject()


@given(PLANS)
def test_a_name_is_read_as_its_plan(drawn: dict[str, Any]) -> None:
    plan = _plan(drawn)
    again = Plan.parse(plan.name)
    assert again == plan
    assert again.name == plan.name
    assert hash(again) == hash(plan)
    assert begins_as_name(plan.name)
    for join in (".", "*", " . "):
        assert Plan.parse(plan.name.replace("·", join)) == plan
    assert Plan.parse("  ".join(plan.name.split())) == plan


@given(PLANS, st.data())
def test_plans_that_differ_in_a_field_differ_in_name(
    drawn: dict[str, Any], data: st.DataObject
) -> None:
    part = data.draw(st.sampled_from([name for name in PARTS if drawn[name] is not None]))
    field = data.draw(st.sampled_from(sorted(drawn[part])))
    value = data.draw(_fields(PARTS[part]))[field]
    plan = _plan(drawn)
    other = _plan(drawn | {part: drawn[part] | {field: value}})
    assert (other == plan) == (other.name == plan.name) == (other.digest == plan.digest)


def test_a_name_ends_where_python_does() -> None:
    """The longest whole numbers that Python writes are read."""
    longest = replace(NAMED["1x1 a:1 f:1"], stages=10**4299)
    assert Plan.parse(longest.name) == longest


def test_no_word_means_two_things() -> None:
    words = [*Split, *Dispatch, *ALGORITHM_NAMES, "slots", "overflow"]
    assert len(set(words)) == len(words)
    assert set(SlotRule) & set(words) == set()


# --- a stable hash --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_digest_is_that_of_the_name_in_every_process() -> None:
    name = "61x32 a:16t·2r f:32t m:2e·16t row"
    assert Plan.parse(name).digest == "8516cf1c115f08e5"  # printf %s "$name" | sha256sum
    assert sha256(name.encode()).hexdigest().startswith("8516cf1c115f08e5")
    program = f"from sharding import Plan; print(Plan.parse({name!r}).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "8516cf1c115f08e5"


# --- what is no name ------------------------------------------------------------------------------

BEGINS = "it must begin with the number of stages x chips of each, such as 61x32."
ATTENTION = "it must be a number and one of t tensor, d data, c context, r replica, with ·"
MALFORMED = {
    "": BEGINS,
    "a:8t f:8t": BEGINS,
    "plan.toml": BEGINS,
    "8 a:8t f:8t": BEGINS,
    "1X8 a:8t f:8t": BEGINS,
    "-1x8 a:8t f:8t": BEGINS,
    "1x8.5 a:8t f:8t": BEGINS,
    "٣x8 a:8t f:8t": BEGINS,
    f"1x{'8' * 5000} a:8t f:8t": BEGINS,
    "0x8 a:8t f:8t": "plan stages is 0; it must be a whole number of at least 1.",
    "1x0 a:8t f:8t": "plan group_chips is 0; it must be a whole number of at least 1.",
    "1x8": "attention is missing; it must have a part such as a:8t, or a:1 on one chip.",
    "1x8 a:8t": "mlp is missing; it must have a part such as f:8t, or f:1 on one chip.",
    "1x8 a:8t m:8e row": "mlp is missing; it must have a part such as f:8t",
    "1x8 f:8t a:": f"'' of 'a:' is not understood; {ATTENTION}",
    "1x8 a: f:8t": f"'f:8t' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:8 f:8t": f"'8' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:t f:8t": f"'t' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:8T f:8t": f"'8T' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:8e f:8t": f"'8e' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:8t f:8t m:8c": "'8c' of 'm:' is not understood; it must be a number and one of e exp",
    "1x8 a:4t·2r>1d f:8t": f"'4t·2r' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:4t,2r f:8t": f"'4t,2r' of 'a:' is not understood; {ATTENTION}",
    "1x8 a:4t·2t f:8t": "attention tensor is given twice; once is allowed.",
    "1x8 a:0t f:8t": "attention tensor is 0; it must be a whole number of at least 1.",
    "1x8 a:8t f:8t a:8r": "attention is given twice; once is allowed.",
    "1x8 a:8t f:8t row column": "split is given twice; once is allowed.",
    "1x8 a:8t f:8t ring direct": "collective is given twice; once is allowed.",
    "1x8 A:8t f:8t": "unknown part 'A:8t'; nearest: a:",
    "1x8 a:8t f:8t q:8t": "unknown part 'q:8t'; known: a:, f:, m:",
    "1x8 a:8t f:8t colum": "unknown word 'colum'; nearest: column",
    "1x8 a:8t f:8t ROW": "unknown word 'ROW'; nearest: row",
    "1x8 a:8t f:8t row/colum": "unknown word 'row/colum'; nearest: column",
    "1x8 a:8t f:8t rings": "unknown word 'rings'; nearest: ring",
    "1x8 a:8t f:8t ring+piped": "unknown word 'ring+piped'; nearest: ring",
    "1x8 a:8t f:8t auto+pipelined": "unknown collective 'auto+pipelined'",
    "1x8 a:8t f:8t 2x4": "unknown word '2x4'; known: all_to_all, auto,",
    "1x8 a:8t f:8t row/row/row": "row/row/row are 3 splits; it must be one, or one for each of the "
    "parts that chips split: attention, mlp.",
    "1x8 a:8r f:8r row/column": "row/column are 2 splits; it must be one, or one for each of the "
    "parts that chips split: none.",
    "1x8 a:8t f:8t m:8e slots": "nothing is behind 'slots'; it must be a whole number.",
    "1x8 a:8t f:8t m:8e slots row": "'row' is behind 'slots'; it must be a whole number.",
    "1x8 a:8t f:8t m:8e slots 2.5": "'2.5' is behind 'slots'; it must be a whole number.",
    "1x8 a:8t f:8t m:8e slots 0": "moe slots is 0; it must be a whole number of at least 1.",
    "1x8 a:8t f:8t m:8e capacity 1 capacity 2": "capacity is given twice; once is allowed.",
    "1x8 a:8t f:8t m:8e worst": "unknown word 'worst'; nearest: worst slots",
    "1x8 a:8t f:8t m:8e wurst slots": "unknown word 'wurst'; nearest: worst slots",
    "1x8 a:8t f:8t m:8e overflow much": "'much' is behind 'overflow'; it must be a number.",
    "1x8 a:8t f:8t m:8e overflow 1e": "'1e' is behind 'overflow'; it must be a number.",
    "1x8 a:8t f:8t m:8e overflow nan": "'nan' is behind 'overflow'; it must be a number.",
    "1x8 a:8t f:8t m:8e overflow 0.9": "moe overflow is 0.9; it must be a probability from",
    "1x8 a:8t f:8t slots 4": "slots is of moe, and there is no part m:.",
    "1x8 a:8t f:8t all_to_all": "dispatch is of moe, and there is no part m:.",
    "1x8 a:8t f:8t m:2e>2r>2t": "moe order is expert, replica, tensor; replica must be its first",
}


@pytest.mark.parametrize("name", MALFORMED, ids=lambda name: name[:40])
def test_what_is_not_understood_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users run
    with pytest.raises(PlanError, match=f"^plan '.*: {re.escape(MALFORMED[name])}") as refused:
        Plan.parse(name)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("name", [None, 3, b"1x1 a:1 f:1", NAMED["1x1 a:1 f:1"]])
def test_what_is_no_text(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(PlanError, match=r"^the name of a plan is .*; it must be a string\.$"):
        Plan.parse(name)


@given(PLANS, st.data())
def test_a_damaged_name_is_another_plan_or_refused(
    drawn: dict[str, Any], data: st.DataObject
) -> None:
    """Nothing but a `PlanError` leaves, and what is read has a name that means it."""
    text = list(_plan(drawn).name)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(text) - 1))
        text[where] = data.draw(st.sampled_from([*"atdcrfme10·.>/: x+", "", "row ", "slots "]))
    try:
        found = Plan.parse("".join(text))
    except PlanError:
        return
    assert Plan.parse(found.name) == found
