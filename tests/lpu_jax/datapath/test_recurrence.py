"""Recurrences of the vector unit against float64 NumPy, token after token; what does not count."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lpu_jax.cost.placed_machine import one_group
from lpu_jax.cost.program import read
from lpu_jax.cost.schedule import schedule
from lpu_jax.datapath import recurrence
from lpu_jax.datapath.work import Unit
from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import system
from lpu_jax.mesh import ChipMesh, run_devices, run_virtual

GROQ = one_group(system("groq-node"), 1)
#: Sequences, groups of each, width of keys and of values, tokens.
B, G, K, V, T = 2, 3, 8, 5, 7
#: A few hundred fp32 operations in a row, each of them rounded once.
FP32 = 2e-6


def drawn(seed: int = 0, channels: int = 1, tokens: int = T, groups: int = B * G) -> dict[str, Any]:
    """Operands of the delta rule: keys of about length one, decays and rates from 0 to 1."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "state": normal(groups, K, V),
        "queries": normal(K, tokens, groups),
        "keys": normal(K, tokens, groups) / np.float32(K**0.5),
        "values": normal(groups, tokens, V),
        "decay": rng.uniform(0.3, 1, (channels, tokens, groups)).astype(np.float32),
        "rates": rng.uniform(0, 1, (1, tokens, groups)).astype(np.float32),
    }


def twin(
    x: dict[str, Any], counts: list[int], corrects: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The rule of the docstring, group by group, in float64; results of what does not count: NaN"""
    x = {name: np.asarray(values, np.float64) for name, values in x.items()}
    groups = len(x["values"])
    states, read_out = x["state"].copy(), np.full(x["values"].shape, np.nan)
    for group in range(groups):
        for t in range(counts[group * len(counts) // groups]):
            query, key = x["queries"][:, t, group], x["keys"][:, t, group]
            faded = x["decay"][:, t, group][:, None] * states[group]
            held = key @ faded if corrects else 0.0
            change = x["rates"][0, t, group] * (x["values"][group, t] - held)
            states[group] = faded + np.outer(key, change)
            read_out[group, t] = query @ states[group]
    return read_out, states


def run(
    x: dict[str, Any], counts: list[int], corrects: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    given = {name: jnp.asarray(values) for name, values in x.items()}
    given["counts"] = jnp.asarray(counts, jnp.int32)
    found = recurrence.linear_recurrence(**given, corrects=corrects)
    return np.asarray(found[0]), np.asarray(found[1])


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("channels", [1, K])
def test_a_recurrence_is_that_of_its_docstring(channels: int, corrects: bool) -> None:
    x, counts = drawn(channels=channels), [T, 3]
    (results, states), (expected, last) = (way(x, counts, corrects) for way in (run, twin))
    is_told = ~np.isnan(expected)
    np.testing.assert_allclose(results[is_told], expected[is_told], rtol=0, atol=FP32)
    np.testing.assert_allclose(states, last, rtol=0, atol=FP32)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("decay", lambda decay: decay**2),
        ("rates", lambda rates: rates * 0.99),
        ("keys", lambda keys: keys[::-1]),
        ("queries", lambda queries: queries * 1.01),
    ],
)
def test_a_wrong_operand_is_seen(name: str, change: Callable[[Any], Any]) -> None:
    x = drawn()
    wrong, _ = run(x | {name: change(x[name])}, [T, T])
    assert np.abs(wrong - twin(x, [T, T])[0]).max() > 100 * FP32


@pytest.mark.parametrize("corrects", [True, False])
def test_tokens_one_by_one_give_the_bits_of_all_at_once(corrects: bool) -> None:
    x, counts = drawn(seed=1), [T, 4]
    results, states = run(x, counts, corrects)
    state = x["state"]
    for t in range(T):
        one = {name: values[:, t : t + 1] for name, values in x.items() if name != "state"}
        now = [int(t < count) for count in counts]
        result, state = run(one | {"state": state}, now, corrects)
        np.testing.assert_array_equal(result[:, 0], results[:, t])
    np.testing.assert_array_equal(state, states)


def test_what_does_not_count_changes_no_bit_whatever_it_is() -> None:
    x, counts = drawn(seed=2), [T - 2, 0]
    _, states = run(x, counts)
    noise = {name: values.copy() for name, values in x.items()}
    noise["keys"][:, T - 2 :], noise["values"][:, T - 2 :] = np.inf, np.nan
    _, same = run(noise, counts)
    np.testing.assert_array_equal(same, states)
    np.testing.assert_array_equal(states[G:], x["state"][G:])


@pytest.mark.slow
def test_batches_and_jit_give_the_same_bits_and_stay_one_operation() -> None:
    many = [drawn(seed=seed) for seed in (3, 4)]
    stacked = {name: jnp.stack([x[name] for x in many]) for name in many[0]}
    counts = jnp.asarray([T, 5], jnp.int32)

    def rule(x: dict[str, Any]) -> Any:
        return recurrence.linear_recurrence(**x, counts=counts, corrects=True)

    batched = jax.jit(jax.vmap(rule))(stacked)
    for i, x in enumerate(many):
        for found, expected in zip(batched, run(x, [T, 5]), strict=True):
            np.testing.assert_array_equal(found[i], expected)
    names = [equation.primitive.name for equation in jax.make_jaxpr(jax.vmap(rule))(stacked).eqns]
    assert names == ["vxm_linear_recurrence"]


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 8])
def test_groups_shared_out_to_chips_give_the_bits_of_one(n: int) -> None:
    """Virtual chips and devices; a product before, so that it could be fused into a sum."""
    x = drawn(seed=5, groups=24)
    whole, states = run(x | {"values": x["values"] * x["values"]}, [T])
    mesh = ChipMesh(axes=(("tensor", n),), topology=system("groq-node").topology, algorithm="auto")
    # The number of the groups' dimension of each operand.
    at = {"state": 0, "queries": 2, "keys": 2, "values": 0, "decay": 2, "rates": 2}
    specs = tuple(P(*(None,) * place, "tensor") for place in at.values())

    def program(*operands: Any, axes: Any) -> Any:
        given = dict(zip(at, operands, strict=True))
        given["values"] = given["values"] * given["values"]
        given["counts"] = jnp.asarray([T], jnp.int32)
        return recurrence.linear_recurrence(**given, corrects=True)

    for way in (run_virtual, run_devices):
        found = jax.jit(way(program, mesh, specs, (P("tensor"), P("tensor"))))(*x.values())
        np.testing.assert_array_equal(found[0], whole)
        np.testing.assert_array_equal(found[1], states)


def test_a_convolution_is_that_of_its_docstring_and_keeps_what_counts() -> None:
    rng = np.random.default_rng(6)
    before, x, taps = (
        rng.normal(size=shape).astype(np.float16) for shape in ((2, 3, 4), (2, 5, 4), (4, 4))
    )
    taps, counts = taps.astype(np.float32), np.array([5, 2], np.int32)
    y, kept = recurrence.short_convolution(*map(jnp.asarray, (before, x, taps, counts)))
    row = np.concatenate([before, x], axis=1)
    for t in range(5):
        terms = [row[:, t + i].astype(np.float64) * taps[i] for i in range(4)]
        np.testing.assert_allclose(y[:, t], sum(terms), rtol=0, atol=FP32)
    np.testing.assert_array_equal(kept[0], row[0, 5:8])
    np.testing.assert_array_equal(kept[1], row[1, 2:5])
    # One by one, as it decodes.
    kept, made = jnp.asarray(before), []
    for t in range(5):
        one = jnp.asarray(x[:, t : t + 1])
        now = jnp.asarray(t < counts, jnp.int32)
        part, kept = recurrence.short_convolution(kept, one, jnp.asarray(taps), now)
        made.append(part)
    np.testing.assert_array_equal(np.concatenate(made, axis=1)[0], y[0])
    np.testing.assert_array_equal(kept[1], row[1, 2:5])


# --- time ---------------------------------------------------------------------------------------


def busy(function: Callable[..., Any], *args: Any) -> float:
    timing = schedule(read(jax.make_jaxpr(function)(*args), strict=True), GROQ)
    assert {unit for unit, cycles in timing.busy_cycles.items() if cycles} == {Unit.VXM}
    return float(timing.busy_cycles[Unit.VXM])


def updates(groups: int, key: int, value: int, tokens: int, corrects: bool = True) -> float:
    shapes = {
        "state": (groups, key, value),
        "queries": (key, tokens, groups),
        "keys": (key, tokens, groups),
        "values": (groups, tokens, value),
        "decay": (1, tokens, groups),
        "rates": (1, tokens, groups),
    }
    given = [jnp.zeros(shape, jnp.float32) for shape in shapes.values()]
    rule = partial(recurrence.linear_recurrence, corrects=corrects)
    return busy(rule, *given, jnp.zeros(1, jnp.int32))


def test_the_time_of_states_is_that_of_their_streams() -> None:
    # 512 vectors of state, each with three streams in, then with five: over eight groups of streams
    assert updates(4, 128, 320, 1) == 512 * 8 / 8
    # Token after token: nothing of the next begins before.
    assert updates(4, 128, 320, 9) == 9 * 512
    # Without the delta rule a state is read once.
    assert updates(4, 128, 320, 9, corrects=False) == 9 * 512 * 5 / 8


def test_a_lone_state_waits_for_itself() -> None:
    # 1024 values are 3.2 vectors; then two entries of 5 cycles, and nine ALUs in a row at 3 each
    assert updates(1, 32, 32, 3) == pytest.approx(3 * (3.2 + 10 + 27))
    # One entry and six ALUs, behind two vectors a cycle of five streams from eight groups.
    assert updates(1, 32, 32, 3, corrects=False) == pytest.approx(3 * (2.0 + 5 + 18))


def test_the_time_of_a_convolution_is_that_of_its_taps() -> None:
    given = [jnp.zeros(shape, jnp.float32) for shape in ((1, 3, 640), (1, 10, 640), (4, 640))]
    # 20 vectors of four taps, each with its token: eight streams in, over eight groups
    assert busy(recurrence.short_convolution, *given, jnp.zeros(1, jnp.int32)) == 20


# --- refusals -----------------------------------------------------------------------------------


def test_operands_that_do_not_go_together_are_named() -> None:
    x = {name: jnp.asarray(values) for name, values in drawn().items()}
    rule = partial(recurrence.linear_recurrence, corrects=True)
    counts = jnp.zeros(B, jnp.int32)
    with pytest.raises(LpuError, match="6 groups of states were given for 4 sequences"):
        rule(**x, counts=jnp.zeros(4, jnp.int32))
    with pytest.raises(LpuError, match="it must have one channel or as many as the keys"):
        rule(**x | {"decay": jnp.ones((3, T, B * G))}, counts=counts)
    with pytest.raises(LpuError, match="state"):
        rule(**x | {"state": x["state"].astype(jnp.float16)}, counts=counts)
    before, new, taps = jnp.zeros((B, 2, 4)), jnp.zeros((B, 1, 4)), jnp.zeros((4, 4))
    with pytest.raises(LpuError, match="one token fewer than taps, of the same type"):
        recurrence.short_convolution(before, new, taps, counts)
    before = jnp.zeros((B, 3, 4), jnp.float16)
    with pytest.raises(LpuError, match="one token fewer than taps, of the same type"):
        recurrence.short_convolution(before, new, taps, counts)
