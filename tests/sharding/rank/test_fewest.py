"""The smallest part of a machine: what is asked for fits on it, and on no smaller one."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from brute_force import EveryPlan
from random_scenarios import random_mixed_scenario

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.mixed import MixedSystem, Split
from models.zoo import model
from sharding.rank.compare import compare
from sharding.rank.fewest import on_fewest_chips
from sharding.request import Request, decode_request
from sharding.scenario import Scenario
from sharding.search.fewest import smallest_part

NODE, SMOLLM = system("groq-node"), model("smollm2-135m")
#: Three chips share out its heads and so its cache; two have no room.
SMALL = replace(SMOLLM, n_layers=1)
ASKED = decode_request(batch=64, context=6000, draft_tokens=2, acceptance=0.5)
DRAFTS = replace(SMALL, name="drafts", attention=replace(SMALL.attention, n_kv_heads=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "n_chips"),
    [
        ({}, 3),
        ({"invariant": "tree"}, 4),  # a tree is over a power of two
        ({"draft_model": DRAFTS}, 5),
        ({"draft_model": DRAFTS, "invariant": "tree"}, 6),
        # A draft model gets a power of two, and at most half.
        ({"draft_model": SMALL}, 8),
    ],
)
def test_all_that_is_asked_for_fits(options: Any, n_chips: int) -> None:
    found = on_fewest_chips(SMALL, NODE, ASKED, **options)
    assert (found.n_chips, found.name) == (n_chips, f"{n_chips} of groq-node")
    for n, fits in ((n_chips - 1, False), (n_chips, True)):
        part = replace(NODE, n_chips=n)
        assert (compare(SMALL, part, ASKED, **options, top=1).fitting > 0) is fits


def test_what_fits_nowhere_is_said() -> None:
    four = replace(NODE, n_chips=4)
    with pytest.raises(LpuError, match=r"fits beside draft model .* on no number of the 4 chips"):
        on_fewest_chips(SMALL, four, ASKED, draft_model=SMALL)
    with pytest.raises(LpuError, match="unknown invariant 'trees'"):
        on_fewest_chips(SMALL, NODE, ASKED, invariant="trees")


def _fits(asked: Scenario, mixed: MixedSystem, gpus: int, lpus: int) -> bool:
    """By trial: whether a plan fits on the first chips of both machines."""
    parts = replace(
        mixed,
        gpus=replace(mixed.gpus, n_chips=gpus),
        lpus=replace(mixed.lpus, n_chips=lpus),
    )
    return bool(len(EveryPlan(asked.on(parts)).kept()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 5, 7, 13, 15, 24])
def test_of_two_machines_the_fewest_lpus_and_gpus_beside_them_are_taken(seed: int) -> None:
    asked = random_mixed_scenario(Random(seed), 400)
    mixed = asked.mixed
    assert mixed is not None
    most, lpus = mixed.gpus.n_chips, range(1, mixed.lpus.n_chips + 1)
    few = next((n for n in lpus if _fits(asked, mixed, most, n)), None)
    found = smallest_part(asked)
    if few is None:
        assert found is None
        return
    gpus = next(n for n in range(1, most + 1) if _fits(asked, mixed, n, few))
    assert isinstance(found, MixedSystem)
    assert (found.gpus.n_chips, found.lpus.n_chips) == (gpus, few)
    assert found.split is Split.ATTENTION_FFN
    assert found.is_chosen


@pytest.mark.slow
def test_machines_with_plans_of_their_own_are_as_small_as_either_alone() -> None:
    mixed = any_system("h100-lpx-1")
    assert isinstance(mixed, MixedSystem)
    chip = replace(mixed.gpus.chip, memory_bytes=200_000_000)  # type: ignore[call-arg]
    mixed = replace(mixed, gpus=replace(mixed.gpus, chip=chip))
    asked, formats = Request(context=64), {"policy": "fp16"}
    alone = [on_fewest_chips(SMOLLM, own, asked, **formats) for own in mixed.pools.values()]
    assert [own.n_chips for own in alone] == [2, 1]
    found = on_fewest_chips(SMOLLM, mixed.split_as(Split.PREFILL_DECODE), asked, **formats)
    assert found.name == "2 of h100x8 and 1 of lpx-1:prefill-decode"
    assert isinstance(found, MixedSystem)
    assert [own.n_chips for own in found.pools.values()] == [2, 1]
    drafted = decode_request(context=64, draft_tokens=2, acceptance=0.5)
    found = on_fewest_chips(
        SMOLLM, mixed.split_as(Split.DRAFT_VERIFY), drafted, draft_model=SMOLLM, **formats
    )
    assert isinstance(found, MixedSystem)
    assert [own.n_chips for own in found.pools.values()] == [2, 1]
