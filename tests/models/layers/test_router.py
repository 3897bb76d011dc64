"""Every router against one written in NumPy float64: choices, ties, groups and weights."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.config import MoeConfig
from models.layers.router import route, router_logits
from models.policy import FLOAT32
from sharding.verify.routing import router_margin

N_EXPERTS, TOP_K = 16, 4
BASE = MoeConfig(n_experts=N_EXPERTS, top_k=TOP_K, n_shared=0, d_expert=8, correction_bias=False)
ROUTERS = {
    "deepseek-v3": replace(
        BASE, n_groups=4, topk_groups=2, routed_scaling=2.5, correction_bias=True
    ),
    "kimi-k2": replace(BASE, routed_scaling=2.827, correction_bias=True),
    "sigmoid": BASE,
    "sigmoid as it is": replace(BASE, normalise=False),
    "mixtral, qwen3": replace(BASE, scoring="softmax"),
    "softmax as it is": replace(BASE, scoring="softmax", normalise=False, routed_scaling=1.5),
    "gpt-oss": replace(BASE, scoring="softmax_after_top_k", router_offset=True),
}
#: exp and division are each within a few units in the last place, 6e-8 of the value.
RELATIVE = 1e-6
#: Scores closer than this may be ranked otherwise in fp32, unless they are equal.
CLEAR = 1e-5

LEVELS = np.random.default_rng(3).normal(0, 1.5, 7).astype(np.float32)
BIASES = np.array([0.0, 0.03125, -0.0703125], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def is_clear(values: np.ndarray) -> bool:
    gaps = np.diff(np.sort(values))
    return bool(np.all((gaps < 1e-12) | (gaps > CLEAR)))


def first_best(values: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-values, kind="stable")[:n]


def expected_route(
    logits: np.ndarray, bias: np.ndarray, moe: MoeConfig
) -> tuple[list[int], np.ndarray] | None:
    """One row, in float64; None if its ranks hang on a rounding."""
    wide = logits.astype(np.float64)
    scores = {"sigmoid": 1 / (1 + np.exp(-wide)), "softmax": softmax(wide)}.get(moe.scoring, wide)
    ranking = scores + (bias if moe.correction_bias else 0.0)
    if not is_clear(ranking):
        return None
    if moe.n_groups > 1:
        groups = ranking.reshape(moe.n_groups, -1)
        # Equal experts in two groups are summed in the same order: the sums are equal too.
        sums = np.sort(groups, axis=1)[:, -1] + np.sort(groups, axis=1)[:, -2]
        if not is_clear(sums):
            return None
        kept = first_best(sums, moe.topk_groups)
        ranking = np.where(np.isin(np.arange(moe.n_groups), kept)[:, None], groups, -np.inf)
        ranking = ranking.reshape(-1)
    ids = first_best(ranking, moe.top_k)
    chosen = scores[ids]
    if moe.scoring == "softmax_after_top_k":
        chosen = softmax(chosen)
    elif moe.normalise:
        chosen = chosen / chosen.sum()
    return ids.tolist(), chosen * moe.routed_scaling


def weights_of(bias: np.ndarray, moe: MoeConfig) -> dict[str, Any]:
    return {"router_bias": jnp.asarray(bias)} if moe.correction_bias else {}


ROUTE = jax.jit(route, static_argnums=2)


@pytest.mark.parametrize("name", ROUTERS)
@given(
    levels=st.lists(st.integers(0, len(LEVELS) - 1), min_size=N_EXPERTS, max_size=N_EXPERTS),
    biases=st.lists(st.integers(0, len(BIASES) - 1), min_size=N_EXPERTS, max_size=N_EXPERTS),
)
@settings(max_examples=40)
def test_choices_and_weights_are_those_of_float64_and_ties_take_the_lower(
    name: str, levels: list[int], biases: list[int]
) -> None:
    moe, logits, bias = ROUTERS[name], LEVELS[levels], BIASES[biases]
    expected = expected_route(logits, bias, moe)
    assume(expected is not None)
    assert expected is not None
    ids, weights = expected
    found = ROUTE(jnp.asarray(logits)[None], weights_of(bias, moe), moe)
    assert found[0][0].tolist() == ids
    np.testing.assert_allclose(found[1][0], weights, rtol=RELATIVE)


@pytest.mark.parametrize("name", ["kimi-k2", "mixtral, qwen3", "gpt-oss"])
def test_rows_are_routed_each_on_its_own(name: str) -> None:
    moe = ROUTERS[name]
    rng = np.random.default_rng(0)
    logits, bias = rng.normal(0, 2, (5, N_EXPERTS)).astype(np.float32), np.zeros(16, np.float32)
    ids, weights = ROUTE(jnp.asarray(logits), weights_of(bias, moe), moe)
    for row, one in enumerate(logits):
        expected = expected_route(one, bias, moe)
        assert expected is not None
        assert ids[row].tolist() == expected[0]
        np.testing.assert_allclose(weights[row], expected[1], rtol=RELATIVE)


def test_scores_that_vanish_give_no_nan() -> None:
    logits = jnp.full((1, N_EXPERTS), -200.0)
    _, weights = ROUTE(logits, {}, ROUTERS["sigmoid"])
    np.testing.assert_array_equal(weights, np.zeros((1, TOP_K)))


def test_the_offset_is_added_to_the_logits() -> None:
    rng = np.random.default_rng(1)
    # Small integers: every product and sum is exact.
    rows, router, offset = (
        rng.integers(-4, 5, shape).astype(np.float32) for shape in ((3, 8), (8, 16), (16,))
    )
    weights = {"router": jnp.asarray(router), "router_offset": jnp.asarray(offset)}
    found = router_logits(jnp.asarray(rows), weights, policy=FLOAT32)
    np.testing.assert_array_equal(found, rows @ router + offset)
    del weights["router_offset"]
    found = router_logits(jnp.asarray(rows), weights, policy=FLOAT32)
    np.testing.assert_array_equal(found, rows @ router)


@pytest.mark.parametrize("name", ["sigmoid", "mixtral, qwen3", "gpt-oss", "kimi-k2"])
def test_the_margin_is_measured_in_what_is_ranked(name: str) -> None:
    moe = ROUTERS[name]
    router = np.eye(N_EXPERTS, dtype=np.float32)
    logits = np.linspace(2.0, -2.0, N_EXPERTS)[None]  # expert i has rank i
    offset = np.full(N_EXPERTS, 0.5, np.float32)
    # The correction lifts the first expert that is left out halfway to the last that is taken.
    lifted, scores = np.zeros(N_EXPERTS, np.float32), 1 / (1 + np.exp(-logits[0]))
    lifted[TOP_K] = (scores[TOP_K - 1] - scores[TOP_K]) / 2
    ranking = {
        "sigmoid": scores,
        "mixtral, qwen3": softmax(logits[0]),
        "gpt-oss": logits[0] + offset,
        "kimi-k2": scores + lifted,
    }[name]
    weights = {"router": router}
    weights |= {"router_offset": offset} if moe.router_offset else {}
    weights |= {"router_bias": lifted} if moe.correction_bias else {}
    expected = ranking[TOP_K - 1] - ranking[TOP_K]
    assert router_margin(logits, weights, moe) == pytest.approx(expected, rel=1e-6)
