"""A plan is read and written without loss, and every malformed file gets one clear sentence."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from lpu_jax.errors import PlanError, UnknownNameError
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.plan_file import plan_from_dict, read_plan
from sharding.rank.choose import split_by

PLAN = Plan(
    stages=61,
    group_chips=32,
    attention=AttentionShard(tensor=16, replica=2),
    mlp=MlpShard(tensor=32),
    moe=MoeShard(expert=2, tensor=16, slots=8),
)
DENSE = replace(PLAN, moe=None)
TOML = """
stages = 61
group_chips = 32
[attention]
tensor = 16
replica = 2
[mlp]
tensor = 32
[moe]
expert = 2
tensor = 16
slots = 8
"""


def test_toml_and_json_say_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(TOML)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN.as_dict()))
    assert read_plan(tmp_path / "plan.toml") == PLAN
    assert read_plan(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize("plan", [PLAN, DENSE, replace(PLAN, collective="flat3+pipelined")])
def test_a_plan_survives_json(plan: Plan) -> None:
    again = plan_from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again == plan
    assert isinstance(again.attention.split, Split)


def test_the_context_is_read_named_and_ordered(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(TOML.replace("replica = 2", "context = 2"))
    read = read_plan(tmp_path / "plan.toml")
    assert read.attention == AttentionShard(tensor=16, context=2)
    assert read.n_chips == PLAN.n_chips
    assert read.name == "61x32 a:16t·2c f:32t m:2e·16t row slots 8"
    inside = replace(read.attention, order=("replica", "data", "tensor", "context"))
    assert replace(read, attention=inside).name.startswith("61x32 a:16t>2c f:32t")
    # Plans from before there was a context axis have orders without it.
    completed = AttentionShard(tensor=2, context=2, order=("tensor", "data", "replica")).order
    assert completed == ("replica", "data", "context", "tensor")
    completed = AttentionShard(tensor=2, context=2, data=2, order=("tensor", "data")).order
    assert completed == ("replica", "context", "tensor", "data")
    with pytest.raises(PlanError, match="attention context is 0"):
        AttentionShard(context=0)


def test_name_and_chips() -> None:
    assert PLAN.n_chips == 61 * 32
    assert PLAN.name == "61x32 a:16t·2r f:32t m:2e·16t row slots 8"
    mixed = replace(PLAN, mlp=replace(PLAN.mlp, split=Split.COLUMN))
    assert mixed.name.endswith("m:2e·16t row/column/row slots 8")
    # A tree and wide sums are rules of one chip too: where one is named, all parts are.
    alone = Plan(group_chips=1, attention=AttentionShard(split=Split.TREE), mlp=MlpShard())
    assert alone.name == "1x1 a:1 f:1 tree/column"
    assert replace(alone, mlp=MlpShard(split=Split.TREE)).name == "1x1 a:1 f:1 tree"
    assert split_by(PLAN, Split.WIDE).name == "61x32 a:16t·2r f:32t m:2e·16t wide slots 8"
    swapped = replace(PLAN, attention=replace(PLAN.attention, order=("tensor", "data", "replica")))
    assert swapped.name == "61x32 a:16t>2r f:32t m:2e·16t row slots 8"


def test_the_dispatch_is_part_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(TOML + 'dispatch = "all_to_all"\n')
    read = read_plan(file)
    assert read.moe is not None
    assert read.moe.dispatch is Dispatch.ALL_TO_ALL
    assert read.name == "61x32 a:16t·2r f:32t m:2e·16t row slots 8 all_to_all"
    assert read != PLAN
    assert read == plan_from_dict(json.loads(json.dumps(read.as_dict())))
    for given in ('"broadcast"', "1", "[]"):
        file.write_text(TOML + f"dispatch = {given}\n")
        with pytest.raises(
            PlanError, match=r"key 'moe\.dispatch' must be one of replicated, all_to_all, got"
        ):
            read_plan(file)


def test_the_order_of_axes_is_part_of_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(TOML + 'order = ["replica", "tensor", "expert"]\n')
    read = read_plan(file)
    assert read.moe is not None
    assert read.moe.order == ("replica", "tensor", "expert")
    assert read == plan_from_dict(json.loads(json.dumps(read.as_dict())))
    for order, said in (
        (
            '["tensor", "tensor", "expert"]',
            "moe order is tensor, tensor, expert; it must name each",
        ),
        ('["tensor", "copies", "expert"]', "moe order is tensor, copies, expert; it must name"),
        ('["replica", "expert"]', "moe order is replica, expert; it must name each"),
        ("[]", "moe order is empty; it must name each of replica, expert, tensor once"),
        ('"tensor"', "key 'moe.order' must be a list of axes, got 'tensor'"),
        ("[1, 2, 3]", r"key 'moe.order' must be a list of axes, got \[1, 2, 3\]"),
    ):
        file.write_text(TOML + f"order = {order}\n")
        with pytest.raises(PlanError, match=said):
            read_plan(file)
    with pytest.raises(PlanError, match="replica must be its first or last axis"):
        MoeShard(expert=2, replica=2, tensor=2, order=("expert", "replica", "tensor"))


def test_where_an_axis_of_one_chip_stands_is_nothing() -> None:
    for order in permutations(("replica", "expert", "tensor")):
        turned = order.index("tensor") < order.index("expert")
        found = MoeShard(expert=2, tensor=2, order=order)
        assert (found == MoeShard(expert=2, tensor=2)) is not turned
        assert MoeShard(expert=2, order=order) == MoeShard(expert=2)
    short = MoeShard(expert=2, tensor=2, order=("tensor", "expert"))
    assert short == MoeShard(expert=2, tensor=2, order=("tensor", "replica", "expert"))
    assert short.order == ("replica", "tensor", "expert")


def test_one_chip_has_no_collectives() -> None:
    one = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), collective="ring")
    assert one == replace(one, collective="direct+pipelined")
    assert one.collective == "auto"
    with pytest.raises(UnknownNameError, match="unknown collective 'rings'"):
        replace(one, collective="rings")


def test_degrees_below_one_are_refused_in_python() -> None:
    with pytest.raises(PlanError, match="moe slots is 0; it must be a whole number of at least 1"):
        MoeShard(slots=0)
    with pytest.raises(PlanError, match="plan stages is -3"):
        replace(PLAN, stages=-3)


@pytest.mark.parametrize("degree", [0, -1, 2.0, "2"])
def test_degrees_are_whole_and_positive(degree: Any) -> None:
    with pytest.raises(PlanError, match="whole number of at least 1"):
        plan_from_dict(PLAN.as_dict() | {"stages": degree})
    with pytest.raises(PlanError, match=r"'attention.tensor' must be"):
        plan_from_dict(PLAN.as_dict() | {"attention": {"tensor": degree}})


def _changed(**changes: Any) -> dict[str, Any]:
    data = PLAN.as_dict() | changes
    return {key: value for key, value in data.items() if value != "absent"}


MALFORMED = [
    ([1, 2], PlanError, "expected a table of plan fields, got list"),
    (
        _changed(group_chips="absent"),
        PlanError,
        "'group_chips' must be a whole number of at least 1, got None",
    ),
    (
        _changed(group_chips="32"),
        PlanError,
        "'group_chips' must be a whole number of at least 1, got '32'",
    ),
    (_changed(group_chips=True), PlanError, "whole number"),
    (_changed(attention="absent"), PlanError, "'attention' must be a table of degrees, got None"),
    (_changed(mlp=[8]), PlanError, r"'mlp' must be a table of degrees, got \[8\]"),
    (_changed(moe=3), PlanError, "'moe' must be a table of degrees, got 3"),
    (_changed(stagez=2), UnknownNameError, "unknown key in .* 'stagez'; nearest: stages"),
    (_changed(attention={"tenser": 2}), UnknownNameError, "attention 'tenser'; nearest: tensor"),
    (
        _changed(mlp={"split": "rows"}),
        PlanError,
        "'mlp.split' must be one of row, column, tree, wide, got 'ro",
    ),
    (_changed(mlp={"split": ["row"]}), PlanError, "'mlp.split' must be one of row, column"),
    (_changed(mlp={"tensor": None}), PlanError, "'mlp.tensor' must be a whole number"),
    (_changed(collective="rings"), UnknownNameError, "unknown collective 'rings'; nearest: ring"),
    (_changed(collective=3), PlanError, "'collective' must be a name, got 3"),
]


@pytest.mark.parametrize(("data", "error", "sentence"), MALFORMED)
def test_malformed_plans_name_file_and_key(
    data: Any, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(error, match=sentence) as caught:
        read_plan(path)
    assert "bad.json" in str(caught.value) or "collective" in sentence
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", b"stages = = 3"),
        ("a.json", b"{"),
        ("a.toml", b"\xff\xfe"),
        ("a.json", b""),
        ("a.json", b"[" * 100_000),
    ],
)
def test_unreadable_text(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PlanError, match=rf"plan file .*{name} (is malformed|cannot be read)"):
        read_plan(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none.toml cannot be read"):
        read_plan(tmp_path / "none.toml")
