"""Flips are told apart from arithmetic: forced and free routing, against all experts at once."""

import math
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from placed_blocks import TINY_KIMI
from small_machines import NODE
from tiny_models import checkpoint

from models.blocks import Block
from models.config import MoeConfig
from models.policy import POLICIES
from models.reference import reference_block, with_experts
from models.weights.synthetic import SyntheticWeights
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.run.measures import sqnr_db
from sharding.verify.emulate import Run, Step
from sharding.verify.routing import (
    MixtureReference,
    count_flips,
    emulated_routes,
    joined_key,
    router_margin,
)

PLAN = Plan(group_chips=1, attention=AttentionShard(), mlp=MlpShard(), moe=MoeShard())
EXPERTS = tuple(range(TINY_KIMI.moe.n_experts))


class _NearTie:
    """Weights whose router scores experts 4 and 5 alike; a bias puts one of them ahead.

    Experts 0 and 1 of group 0 are far ahead of both, and both of all others, so that one of them is
    the last of three to be taken.
    """

    def __init__(self, lead: float) -> None:
        self.source, self.config = SyntheticWeights(TINY_KIMI, 0), TINY_KIMI
        self.expert, self.lead = self.source.expert, lead

    def block(self, kind, layer=0):
        weights = dict(self.source.block(kind, layer))
        if kind == "moe":
            weights["router"] = weights["router"].copy()
            weights["router"][:, 5] = weights["router"][:, 4]
            bias = np.full(12, -5, np.float32)
            bias[[0, 1]] = 5, 4  # of group 0
            bias[[4, 5]] = 3 + self.lead, 3  # of group 1
            weights["router_bias"] = bias
        return weights


def passed(source, policy, hidden, reference, routing):
    run = Run(plan=PLAN, hidden=hidden, reference=reference)
    step = Step(source, NODE, Block(kind="moe", layer=1), policy=policy, routing=routing)
    with ThreadPoolExecutor(1) as workers:
        step.run([run], step.store(), workers)
    return run


@pytest.fixture(scope="module")
def states():
    """Two states so different that routers must disagree."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(2, 4, TINY_KIMI.d_model)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["forced", "free"])
def test_the_reference_follows_or_chooses_itself(states, routing):
    """Against the float32 mixture with all experts; 1e-5: orders of sums."""
    hidden, reference = states
    source = SyntheticWeights(TINY_KIMI, 0)
    run = passed(source, POLICIES["float32"], hidden, reference, routing)
    module = reference_block(TINY_KIMI, "moe", with_experts(source, 1, EXPERTS), EXPERTS)
    x, y = jnp.asarray(hidden)[None], jnp.asarray(reference)[None]
    chosen, own = module.route(x)[0], module.route(y)[0]
    np.testing.assert_allclose(run.hidden, module(x)[0], rtol=0, atol=1e-5)
    used = chosen if routing == "forced" else own
    np.testing.assert_allclose(run.reference, module(y, used)[0], rtol=0, atol=1e-5)
    (check,) = run.checks
    pairs = zip(np.asarray(chosen[0]), np.asarray(own[0]), strict=True)
    flips = sum(len(set(a.tolist()) - set(b.tolist())) for a, b in pairs)
    assert check.routing.flips == flips > 0
    assert check.routing.choices == 12


@pytest.mark.slow
@pytest.mark.parametrize("lead", [2.0**-13, -(2.0**-13)])
def test_a_flip_by_a_small_margin_is_no_arithmetic_error_when_forced(lead):
    """Scores of two experts differ by a bias alone, whose sign differs in what the routers see.

    So the routers flip one choice of each token, as a rounding may. Forced, the error is that of
    fp16; free, it is that of another expert.
    """
    rng = np.random.default_rng(5)
    hidden = rng.normal(size=(2, TINY_KIMI.d_model)).astype(np.float32)
    emulated, reference = _NearTie(lead), _NearTie(-lead)
    values = {
        name: np.asarray(value, np.float32) for name, value in reference.block("moe", 1).items()
    }
    mixture = MixtureReference(TINY_KIMI, values)
    own = mixture.own_routes(hidden)
    taken = np.asarray(
        MixtureReference(TINY_KIMI, dict(emulated.block("moe", 1))).own_routes(hidden)
    )
    assert count_flips(own, taken) == 2  # one expert of each token
    assert mixture.margin(hidden) == pytest.approx(abs(lead), rel=1e-3)
    for name, ids in (("forced", taken), ("free", own)):
        mixture.begin(name, hidden, ids)
    for number in sorted(mixture.needed):
        mixture.add(number, reference.expert(1, number))
    results = {name: mixture.total(name) for name in ("forced", "free")}
    emulation = passed(emulated, POLICIES["fp16"], hidden.astype(np.float16), hidden, "forced")
    # 5e-3: the check's reference holds weights rounded to fp16 (1.4e-3 measured)
    np.testing.assert_allclose(emulation.reference, results["forced"], rtol=0, atol=5e-3)
    assert sqnr_db(results["forced"], emulation.hidden) > 50
    assert sqnr_db(results["free"], emulation.hidden) < 40


@pytest.mark.parametrize("name", ["llama4", "gemma4_moe", "nemotron_h_moe", "qwen3_next"])
def test_one_expert_after_another_is_the_mixture_whole(name):
    """Whatever weighs rows, normalises sums or narrows them; the order of sums moves some ulps."""
    weights = checkpoint(name).weights
    cfg = weights.config
    layer = next(i for i in range(cfg.n_layers) if cfg.is_moe_layer(i))
    hidden = np.random.default_rng(2).normal(size=(5, cfg.d_model)).astype(np.float32)
    values = {k: np.asarray(v, np.float32) for k, v in weights.block("moe", layer).items()}
    every = tuple(range(cfg.moe.n_experts))
    whole = reference_block(cfg, "moe", with_experts(weights, layer, every), every)
    mixture = MixtureReference(cfg, values)
    mixture.begin("own", hidden, mixture.own_routes(hidden))
    for number in sorted(mixture.needed):
        mixture.add(number, dict(weights.expert(layer, number)))
    expected = np.asarray(whole(jnp.asarray(hidden)[None])[0])
    np.testing.assert_allclose(mixture.total("own"), expected, rtol=0, atol=1e-5)
    assert 0 < mixture.margin(hidden) < 10


@pytest.mark.parametrize("name", ["llama4", "gemma4_moe"])
def test_chips_choose_the_experts_of_the_reference(name):
    """Under float32 no choice is so near that the order of sums decides it."""
    weights = checkpoint(name).weights
    cfg = weights.config
    layer = next(i for i in range(cfg.n_layers) if cfg.is_moe_layer(i))
    hidden = np.random.default_rng(3).normal(size=(5, cfg.d_model)).astype(np.float32)
    stored = dict(weights.block("moe", layer))
    values = {k: np.asarray(v, np.float32) for k, v in stored.items()}
    own = MixtureReference(cfg, values).own_routes(hidden)
    assert count_flips(own, emulated_routes(stored, hidden, cfg, POLICIES["float32"])) == 0


def test_flips_are_counted_once_for_each_token():
    own, taken = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 2, 1], [6, 7, 8]])
    assert count_flips(own, taken) == 2
    assert count_flips(own, own) == 0


def test_a_way_is_named_by_sets_in_order():
    one, other = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 3]])
    assert joined_key("", one) == joined_key("", other)  # experts of a token have no order
    assert joined_key("", one) != joined_key("", one[::-1])
    assert joined_key(joined_key("", one), one) != joined_key("", one)


def test_a_choice_of_all_experts_has_no_margin():
    rng = np.random.default_rng(0)
    moe = MoeConfig(n_experts=4, top_k=4, n_shared=0, d_expert=8)
    weights = {"router": rng.normal(size=(8, 4)).astype(np.float32)}
    assert router_margin(rng.normal(size=(2, 8)), weights, moe) == math.inf
