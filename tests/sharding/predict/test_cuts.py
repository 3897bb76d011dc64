"""Chains of blocks cut into stages, against all cuts and all numbers of micro-batches in flight."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from sharding.predict.cuts import Chain, Cuts

#: Bisection ends at one part in 10^9.
PRECISION = 3e-9


def every_cut(n_blocks: int, n_stages: int) -> Iterator[list[range]]:
    """All ways to cut a chain into at most so many stages."""
    for n in range(1, n_stages + 1):
        for places in combinations(range(1, n_blocks), n - 1):
            yield [range(a, b) for a, b in pairwise([0, *places, n_blocks])]


def best_of_every_cut(
    blocks: list[Any], n_stages: int, room: float, latency: float, hop: float
) -> tuple[float, float]:
    """The shortest period over all cuts that fit, and all numbers in flight that have room.

    Of equals the one with the shortest slowest stage.

    Args:
        blocks: weights, cache and cycles of each.
        n_stages: at most.
        room: bytes of a chip.
        latency: cycles of a token.
        hop: cycles of the slowest hand-over.

    Returns:
        The period, and the cycles of the slowest stage without its hand-over.
    """
    best = np.inf, np.inf
    for cut in every_cut(len(blocks), n_stages):
        weights, cache, cycles = (
            np.array([sum(blocks[i][what] for i in stage) for stage in cut]) for what in range(3)
        )
        for flying in range(1, len(cut) + 1):
            if np.all(weights + flying * cache <= room):
                best = min(best, (max(cycles.max() + hop, latency / flying), cycles.max()))
    return best


def cut_of(blocks: list[Any], n_stages: int, room: float, latency: float, hop: float) -> Cuts:
    """The product's cut of one plan."""
    return chain_of(blocks, n_stages, room, latency, hop).cut()


def chain_of(blocks: list[Any], n_stages: int, room: float, latency: float, hop: float) -> Chain:
    return Chain.of(
        *([float(block[what]) for block in blocks] for what in range(3)),
        np.array([n_stages]),
        room_bytes=float(room),
        latency_cycles=np.array([float(latency)]),
        hop_cycles=np.array([float(hop)]),
    )


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Any], int, int, int, int]:
    """Blocks, stages, room, latency and hop."""
    few = st.sampled_from([0, 1, 1, 2, 5, 9])
    blocks = draw(st.lists(st.tuples(st.integers(0, 9), few, few), min_size=1, max_size=7))
    n_stages = draw(st.integers(1, len(blocks)))
    room = draw(st.integers(1, 60))
    hop = draw(st.integers(0, 6))
    # A token's way is at least all blocks and hand-overs; the host may add to it.
    hops = (n_stages - 1) * hop if n_stages > 1 else 0
    latency = sum(block[2] for block in blocks) + hops + draw(st.integers(0, 20)) + 1
    return blocks, n_stages, room, latency, hop


@given(chains())
# Two stages would do for the time, but three micro-batches are in flight in three stages only.
@example(([(1, 0, 0), (1, 0, 10), (1, 0, 10), (1, 0, 0)], 3, 60, 35, 5))
def test_the_period_is_the_shortest_of_every_cut(
    given: tuple[list[Any], int, int, int, int],
) -> None:
    blocks, n_stages, room, latency, hop = given
    (best, slowest), found = best_of_every_cut(*given), cut_of(*given)
    stage = found.stage_of_block[:, 0]
    held = np.bincount(stage, weights=[w + c for w, c, _ in blocks])
    least = min(
        max(sum(blocks[i][0] + blocks[i][1] for i in one) for one in cut)
        for cut in every_cut(len(blocks), n_stages)
    )
    np.testing.assert_allclose(found.least_bytes[0], least, rtol=PRECISION)
    if least > room:
        assert best == np.inf
        np.testing.assert_allclose(held.max(), least, rtol=PRECISION)
        return
    in_flight = min(found.cached_batches[0], stage[-1] + 1)
    period = max(found.slowest_cycles[0] + hop, latency / in_flight)
    np.testing.assert_allclose(period, best, rtol=PRECISION)
    np.testing.assert_allclose(found.slowest_cycles[0], slowest, rtol=PRECISION)
    chain = chain_of(*given)
    np.testing.assert_allclose(chain.shortest_period[0], best, rtol=PRECISION)
    # Bounds, and what a search asks of a period before it cuts.
    assert chain.least_period[0] <= best * (1 + PRECISION)
    assert chain.fits[0]
    assert chain.allows(np.array([best * (1 + PRECISION)]))[0]
    assert not chain.allows(np.array([best * (1 - PRECISION)]))[0]


@given(chains())
def test_cuts_lose_nothing_and_count_what_they_hold(
    given: tuple[list[Any], int, int, int, int],
) -> None:
    blocks, n_stages, room, _, _ = given
    found = cut_of(*given)
    stage = found.stage_of_block[:, 0]
    assert stage[0] == 0
    assert set(np.diff(stage)) <= {0, 1}
    assert stage[-1] + 1 == n_stages  # none is empty
    weights, cache, cycles = (
        np.bincount(stage, weights=[block[what] for block in blocks]) for what in range(3)
    )
    assert found.fullest_bytes[0] == (weights + cache).max()
    fullest = int((weights + cache).argmax())
    assert found.fullest_stage_cache_bytes[0] == cache[fullest]
    assert found.slowest_cycles[0] == cycles.max()
    if (weights + cache).max() <= room:
        more = [(room - w - c) // c for w, c in zip(weights, cache, strict=True) if c]
        assert found.cached_batches[0] == 1 + min(more, default=1 << 30)


@given(st.lists(chains(), min_size=1, max_size=4))
def test_a_plan_is_cut_as_if_it_were_alone(
    given: list[tuple[list[Any], int, int, int, int]],
) -> None:
    n_blocks = len(given[0][0])
    alike = [one for one in given if len(one[0]) == n_blocks]
    together = Chain.of(
        *(
            [np.array([float(one[0][i][what]) for one in alike]) for i in range(n_blocks)]
            for what in range(3)
        ),
        np.array([one[1] for one in alike]),
        room_bytes=np.array([float(one[2]) for one in alike]),
        latency_cycles=np.array([float(one[3]) for one in alike]),
        hop_cycles=np.array([float(one[4]) for one in alike]),
    ).cut()
    for i, one in enumerate(alike):
        alone = cut_of(*one)
        for name, values in vars(alone).items():
            np.testing.assert_array_equal(getattr(together, name)[..., i], values[..., 0])


def test_a_boundary_may_fall_between_any_two_blocks() -> None:
    for boundary in range(1, 5):
        blocks = [(1, 0, 1)] * 5
        blocks[boundary - 1] = blocks[boundary] = (100, 0, 100)
        stage = cut_of(blocks, 2, 1000, 203, 0).stage_of_block[:, 0]
        assert stage[boundary - 1] != stage[boundary]
