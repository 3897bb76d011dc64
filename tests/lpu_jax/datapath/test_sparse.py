"""Sparse attention's operations against plain Python: what is chosen, read and masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_machines import NODE

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath import masks, sparse
from lpu_jax.errors import LpuError

#: Few distinct scores, so that many are equal; both zeros; and keys that are not seen.
SCORES = st.sampled_from([-np.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 3.0])


def best(row: list[float], k: int) -> list[int]:
    """The places of the `k` largest, first places first, ascending; -1 behind them."""
    seen = [place for place, score in enumerate(row) if score > -np.inf]
    ranked = sorted(seen, key=lambda place: (-row[place], place))[:k]
    return sorted(ranked) + [-1] * (k - len(ranked))


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 40), rows=st.integers(1, 3))
def test_the_best_positions_are_those_of_a_stable_sort(data, n, rows):
    scores = data.draw(
        st.lists(st.lists(SCORES, min_size=n, max_size=n), min_size=rows, max_size=rows)
    )
    k = data.draw(st.integers(1, n))
    found = sparse.best_positions(jnp.asarray(scores, jnp.float32), k)
    assert found.tolist() == [best(row, k) for row in scores]


@settings(max_examples=60)
@given(data=st.data(), n_chips=st.integers(1, 4), run=st.integers(1, 8))
def test_chips_hold_every_chosen_position_once(data, n_chips, run):
    positions = range(n_chips * run)
    k = data.draw(st.integers(1, n_chips * run))
    chosen = sorted(data.draw(st.sets(st.sampled_from(positions), max_size=k)))
    padded = jnp.asarray([chosen + [-1] * (k - len(chosen))], jnp.int32)
    held = []
    for chip in range(n_chips):
        first = jnp.full(1, chip * run, jnp.int32)
        (addresses,) = sparse.held_addresses(padded, first, run).tolist()
        assert len(addresses) == min(k, run)
        there = [address for address in addresses if address >= 0]
        assert addresses == there + [-1] * (len(addresses) - len(there))
        held += [chip * run + address for address in there]
    assert held == chosen


def blocks_in_python(
    row: list[float], last: int, block: int, n_local: int, k: int
) -> tuple[list[float], list[int]]:
    """Scores of blocks, and the positions of the best ones that a token sees."""
    parts = [row[i : i + block] for i in range(0, len(row), block)]
    own = last // block
    scores = [
        float("inf") if own - n_local < i <= own else max(part) for i, part in enumerate(parts)
    ]
    chosen = best(scores, k)
    found = [i * block + j for i in chosen if i >= 0 for j in range(block)]
    seen = [at for at in found if at <= last]
    return scores, seen + [-1] * (k * block - len(seen))


@settings(max_examples=60)
@given(data=st.data(), block=st.integers(1, 7), n_new=st.integers(1, 3), groups=st.integers(1, 2))
def test_blocks_are_those_of_plain_python(data, block, n_new, groups):
    """Two sequences at different positions, with one or two heads each, two rows of each token."""
    n = data.draw(st.integers(n_new, 40))
    starts = [data.draw(st.integers(0, n - n_new)) for _ in range(2)]
    n_blocks = -(-n // block)
    k = data.draw(st.integers(1, n_blocks))
    n_local = data.draw(st.integers(1, k))
    scores = np.full((2 * groups, 2 * n_new, n), -np.inf, np.float32)
    for group, row in np.ndindex(scores.shape[:2]):
        last = starts[group // groups] + row % n_new
        drawn = data.draw(st.lists(SCORES, min_size=last + 1, max_size=last + 1))
        scores[group, row, : last + 1] = drawn
    positions = jnp.asarray(starts, jnp.int32)
    of_blocks = sparse.block_scores(jnp.asarray(scores), positions, n_new, block, n_local)
    chosen = sparse.best_positions(of_blocks, k)
    found = sparse.positions_of_blocks(chosen, positions, n_new, block)
    for group, row in np.ndindex(scores.shape[:2]):
        last = starts[group // groups] + row % n_new
        told = blocks_in_python(scores[group, row].tolist(), last, block, n_local, k)
        assert (of_blocks[group, row].tolist(), found[group, row].tolist()) == told


def test_gathered_entries_are_those_at_the_addresses():
    cache = np.arange(2 * 7 * 3, dtype=np.float32).reshape(2, 7, 3)
    at = np.array([[[0, 3, -1], [6, -1, -1]], [[1, 2, 5], [0, 4, 6]]], np.int32)
    found = np.asarray(sparse.gather(jnp.asarray(cache), jnp.asarray(at)))
    assert found.shape == (2, 2, 3, 3)
    for b, t, place in np.ndindex(at.shape):
        np.testing.assert_array_equal(found[b, t, place], cache[b, max(at[b, t, place], 0)])
    masked = masks.address_mask(jnp.ones((2, 5, 3)), jnp.asarray(at[0]))
    np.testing.assert_array_equal(np.asarray(masked) == 1, np.repeat(at[0][:, None] >= 0, 5, 1))


def test_scores_of_heads_are_rectified_weighed_and_added_in_order():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 5, 3, 330)).astype(np.float32)
    weights = rng.normal(size=(2, 5, 3, 1)).astype(np.float32)
    found = np.asarray(sparse.index_scores(jnp.asarray(scores), jnp.asarray(weights)))
    total = np.zeros((2, 3, 330), np.float32)
    for head in range(5):
        total = total + weights[:, head] * np.maximum(scores[:, head], 0)
    np.testing.assert_array_equal(found, total)


def test_chips_are_a_batch():
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.integers(-3, 3, (4, 2, 50)).astype(np.float32))
    together = jax.vmap(lambda row: sparse.best_positions(row, 7))(scores)
    np.testing.assert_array_equal(together, sparse.best_positions(scores, 7))
    cache = jnp.asarray(rng.normal(size=(4, 2, 50, 3)).astype(np.float32))
    at = together[:, :, None]
    read_together = jax.vmap(sparse.gather)(cache, at)
    for chip in range(4):
        np.testing.assert_array_equal(read_together[chip], sparse.gather(cache[chip], at[chip]))


def cycles(program, *shapes):
    jaxpr = jax.make_jaxpr(program)(*(jax.ShapeDtypeStruct(s, d) for s, d in shapes))
    return float(schedule(read(jaxpr, strict=True), one_group(NODE, 1)).cycles)


def test_reading_takes_an_access_for_each_position_whatever_the_context():
    """576 values of 16 bits lie in four vectors, which one address reaches; two a cycle."""
    times = {
        (s, k): cycles(sparse.gather, ((1, s, 576), jnp.float16), ((1, 1, k), jnp.int32))
        for s in (4096, 131072)
        for k in (64, 2048)
    }
    assert times[4096, 2048] == times[131072, 2048]
    assert times[4096, 2048] - times[4096, 64] == (2048 - 64) / 2


def test_choosing_takes_longer_among_more_and_as_long_for_any_scores():
    times = [
        cycles(lambda x: sparse.best_positions(x, 64), ((1, s), jnp.float32))
        for s in (320, 4096, 32768, 131072)
    ]
    assert times == sorted(set(times))
    # At least each score is read once for every four bits of a threshold: 8 passes.
    assert times[-1] > 8 * 131072 / 320 / NODE.chip.vxm_stream_groups


def test_blocks_take_longer_among_more_and_as_long_wherever_the_token_is():
    def choice(scores, positions):
        blocks = sparse.best_positions(sparse.block_scores(scores, positions, 1, 128, 1), 2)
        return sparse.positions_of_blocks(blocks, positions, 1, 128)

    times = [
        cycles(choice, ((4, 1, s), jnp.float32), ((1,), jnp.int32)) for s in (320, 4096, 131072)
    ]
    assert times == sorted(set(times))
    # Seven steps fold 128 lanes, each a rotation of every vector.
    assert times[-1] > 7 * 4 * 131072 / 320 / NODE.chip.sxm_vectors_per_cycle
    # Choosing among blocks is cheaper than among their positions.
    alone = cycles(lambda x: sparse.best_positions(x, 256), ((4, 1, 131072), jnp.float32))
    assert times[-1] < alone


def test_impossible_choices_are_refused():
    with pytest.raises(LpuError, match=r"k=5 was given for rows of 4 scores; it must be 1 to 4"):
        sparse.best_positions(jnp.zeros((1, 4)), 5)
    with pytest.raises(LpuError, match=r"addresses 4 was given; it must be -1 to 3 for the cache"):
        sparse.gather(jnp.zeros((1, 4, 2)), jnp.full((1, 1, 1), 4, jnp.int32))
    with pytest.raises(LpuError, match=r"must be an int32 array \[b, t, k\] with b=2"):
        sparse.gather(jnp.zeros((2, 4, 2)), jnp.zeros((1, 1, 1), jnp.int32))
