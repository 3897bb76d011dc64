"""The space of plans: every legal way to split a part, against every combination of degrees."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from math import prod

import pytest
from legal_plans import legal_plans, shapes, shards

from lpu_jax.machine.catalogue import system
from models.layers.dispatch import Dispatch
from models.layers.linear import Split
from models.policy import POLICIES
from models.zoo import model
from sharding.legal import check_plan, reasons
from sharding.plan import AXES, PARTS, MoeShard, Plan, Shard
from sharding.rank.choose import promises_its_rule, promises_one_chip_bits
from sharding.request import Request
from sharding.scenario import Scenario
from sharding.search.find import INVARIANT
from sharding.search.held import held_cores, space_size
from sharding.space.cores import EVERYTHING, Choices, cores, parts_of

KIMI = model("kimi-k2")
assert KIMI.moe is not None
#: Small enough to try everything: 6 blocks, 6 heads, 10 experts of 3 pieces, 20 words.
TINY = replace(
    KIMI,
    name="tiny",
    n_layers=2,
    vocab_size=20,
    attention=replace(KIMI.attention, n_heads=6),
    moe=replace(KIMI.moe, n_experts=10, top_k=2, n_groups=1, topk_groups=1, d_expert=96),
)
#: 3 key/value heads of 3 query heads each.
SMOL = replace(model("smollm2-135m"), n_layers=1)
GROUPS = (1, 2, 6, 8, 12)


def _scenario(name: str, batch: int, context: int = 700) -> Scenario:
    cfg = {"moe": TINY, "dense": SMOL}[name]
    request = Request(batch=batch, context=context)
    return Scenario(cfg, system("groq-24"), request, policy=POLICIES["int4"])


def _every_shard(part: str, chips: int, scenario: Scenario) -> Iterator[Shard]:
    """Try all degrees whose product is a group, in every order, with every split and dispatch."""
    axes = [axis.name for axis in AXES[part]]
    rows = scenario.request.batch * scenario.request.tokens
    ways = [n for n in range(1, chips + 1) if chips % n == 0]
    dispatches = [{"dispatch": way} for way in Dispatch] if part == "moe" else [{}]
    splits = (Split.ROW, Split.COLUMN)  # trees and wide sums are asked for by name
    for degrees in product(ways, repeat=len(axes)):
        if prod(degrees) != chips:
            continue
        for order, split, dispatch in product(permutations(axes), splits, dispatches):
            if part == "moe" and order[1] == "replica":
                continue
            named = dict(zip(axes, degrees, strict=True))
            shard = PARTS[part](**named, order=order, split=split, **dispatch)  # type: ignore[call-arg, arg-type]
            if any(reasons(shard, scenario)):
                continue
            # The rule of the space: rows travel where there is one for every chip.
            travels = isinstance(shard, MoeShard) and shard.dispatch is Dispatch.ALL_TO_ALL
            if not travels or named["expert"] <= rows:
                yield shard


def _in_short(shard: Shard) -> Shard:
    """Shards that differ in where axes of one chip stand are one."""
    active = [axis for axis in shard.order if getattr(shard, axis) > 1]
    order = (*(axis for axis in type(shard).order if axis not in active), *active)
    if isinstance(shard, MoeShard) and order[1] == "replica":
        order = (order[1], order[0], order[2])  # the axis before it has no chips
    return replace(shard, order=order)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "batch"), [("moe", 1), ("moe", 6), ("dense", 6)])
def test_the_space_has_every_legal_split_once_and_no_other(name: str, batch: int) -> None:
    scenario = _scenario(name, batch)
    for part, chips in product(parts_of(scenario), GROUPS):
        table = shards(part, chips, scenario)
        listed = Counter(_in_short(table.shard(i)) for i in range(len(table)))
        assert set(listed.values()) == {1}, (part, chips)
        assert set(listed) == {_in_short(one) for one in _every_shard(part, chips, scenario)}


def test_refused_degrees_are_counted_by_rule() -> None:
    # Of 8 chips 4 to 8 are no 3 key/value heads, nor 3 times a divisor of 3 query heads each.
    _, refused = cores("attention", _scenario("dense", 1, context=64), 8, EVERYTHING)
    assert refused == {"attention: more ways than heads, or heads not divisible": 5}
    # One run of positions and one sequence were not tried any further.
    _, refused = cores("mlp", _scenario("dense", 1), 8, EVERYTHING)
    assert refused == {}


def test_a_space_of_bits_has_the_plans_that_promise_them() -> None:
    scenario = replace(_scenario("moe", 2), system=system("groq-node"))
    some = [(1, 2), (2, 3)]
    every = legal_plans(scenario, some)
    promised = {plan for plan in every if promises_one_chip_bits(plan)}
    assert set(legal_plans(scenario, some, choices=INVARIANT["certified"])) == promised
    assert 0 < len(promised) < len(every)


@pytest.mark.parametrize("split", [Split.TREE, Split.WIDE])
def test_a_space_of_a_rule_has_the_plans_that_promise_its_bits(split: Split) -> None:
    scenario = replace(_scenario("moe", 2), system=system("groq-node"))
    plans = legal_plans(scenario, [(1, 2), (1, 4), (1, 6)], most=400, choices=INVARIANT[split])
    assert plans
    for plan in plans:
        assert promises_its_rule(plan)
        assert {part.split for name, part in plan.parts.items() if name != "vocab"} == {split}
        assert plan.name.endswith(f" {split}")
        assert Plan.parse(plan.name) == plan


def test_what_must_be_split_is_split() -> None:
    scenario = _scenario("moe", 1)
    found = legal_plans(scenario, [(1, 4)], most=500, choices=Choices(splits_all=True))
    assert found
    for plan in found:
        assert all(plan.parts[part].output_ways > 1 for part in ("attention", "mlp", "moe"))
        assert plan.vocab is None or plan.vocab.tensor < 4


@pytest.mark.parametrize("name", ["moe", "dense"])
def test_the_size_of_a_space_is_the_number_of_its_plans(name: str) -> None:
    scenario = replace(_scenario(name, 2), system=system("groq-6"))
    per_group = {
        chips: prod(len(shards(part, chips, scenario)) for part in parts_of(scenario))
        for chips in range(1, 7)
    }
    size = space_size(held_cores(scenario, EVERYTHING), scenario, EVERYTHING)
    assert size.one_pool == sum(per_group[chips] for _, chips in shapes(scenario))


@pytest.mark.parametrize(
    ("name", "machine", "policy", "batch"),
    [
        ("kimi-k2", "lpx-9", "int4", 6),
        ("deepseek-v3", "groq-40", "fp8", 1),
        ("llama-2-70b", "lpx-1", "int8", 12),
        ("gpt-oss-120b", "h100x8", "mxfp4", 4),
    ],
)
def test_whatever_is_listed_is_legal(name: str, machine: str, policy: str, batch: int) -> None:
    request = Request(batch=batch, context=4096)
    scenario = Scenario(model(name), system(machine), request, policy=POLICIES[policy])
    every = shapes(scenario)
    plans = legal_plans(scenario, every[:: len(every) // 12 + 1], most=20)
    assert len(plans) > 20
    for plan in plans:
        check_plan(plan, scenario)
