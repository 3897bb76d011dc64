"""Mixtures on GPUs: how many rows reach the busiest one, against routes drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpu_jax.cost.program import Shape, read
from lpu_jax.cost.routing import Choices, Lists
from lpu_jax.datapath import expert_slots
from lpu_jax.machine.catalogue import system
from models.policy import POLICIES
from models.zoo import model
from sharding.plan import AttentionShard, MlpShard, MoeShard, Plan
from sharding.predict.evaluate import evaluate
from sharding.request import Request
from sharding.scenario import Scenario

KIMI = model("kimi-k2")
EP8 = Plan(
    stages=1,
    group_chips=8,
    attention=AttentionShard(tensor=8),
    mlp=MlpShard(tensor=8),
    moe=MoeShard(expert=8),
)


def expert_times(batch: int) -> tuple[float, float]:
    """Stated and least nanoseconds of a mixture of Kimi K2 in int4 on 8 GPUs."""
    evaluated = evaluate(
        [EP8],
        Scenario(
            KIMI, system("gb200x8"), Request(context=64, batch=batch), policy=POLICIES["int4"]
        ),
    )
    timed = evaluated.blocks["moe"].timing
    return float(timed.cycles[0]), float(timed.lower_cycles[0])


EXPERT_BYTES = 3 * 7168 * 2048 * 4.5 / 8  # 4 bits and a 16-bit scale of every 32


def busiest_of_random_routes(rows: int, n_gpus: int) -> tuple[float, float]:
    """Draw routes: mean pairs of row and expert, and experts in use, of the busiest GPU."""
    rng, pairs, experts = np.random.default_rng(0), [], []
    for _ in range(200):
        chosen = np.argsort(rng.random((rows, 384)), axis=1)[:, :8]
        count = np.bincount(chosen.reshape(-1), minlength=384).reshape(n_gpus, -1)
        pairs.append(count.sum(1).max())
        experts.append((count > 0).sum(1).max())
    return float(np.mean(pairs)), float(np.mean(experts))


@pytest.mark.parametrize("rows", [1, 4, 64, 512])
@pytest.mark.parametrize("n_gpus", [1, 8, 32])
def test_the_busiest_gpu_gets_what_random_routes_give_it(rows: int, n_gpus: int) -> None:
    held = 384 // n_gpus
    choices = Choices(
        choices=Shape((rows, 8), "int32"),
        slots=Shape((held, rows, 2048), "float16"),
        held=Shape((held,), "int32"),
        experts=Shape((384,), "int32"),
    )
    pairs, experts = busiest_of_random_routes(rows, n_gpus)
    # The largest of n normal numbers is a little less than sqrt(2 ln n), most of all for few rows.
    slack = {"rel": 0.25, "abs": 0.6} if rows < 64 else {"rel": 0.08}
    assert choices.share({}, "spread") * held * rows == pytest.approx(pairs, **slack)
    assert choices.matrices({}, "spread") == pytest.approx(experts, **slack)
    even, worst = (choices.share({}, load) * held * rows for load in ("even", "worst"))
    assert even == max(1, rows * 8 / n_gpus)
    assert worst == min(rows * 8, held * rows)


def test_experts_are_read_at_their_stored_bits() -> None:
    one, two = (expert_times(batch)[0] for batch in (1, 2))
    more = busiest_of_random_routes(2, 8)[1] - busiest_of_random_routes(1, 8)[1]
    # As above, and rows of two tokens instead of one.
    assert two - one == pytest.approx(more * EXPERT_BYTES / (8e12 * 0.825) * 1e9, rel=0.25)


def test_the_lower_bound_takes_even_routes() -> None:
    # 16 tokens choose 128 experts: evenly, a GPU of 8 works on 16 of its 48.
    stated, least = expert_times(16)
    assert least == pytest.approx(16 * EXPERT_BYTES / 8e12 * 1e9, rel=0.1)
    assert stated > busiest_of_random_routes(16, 8)[1] * EXPERT_BYTES / (8e12 * 0.825) * 1e9


def test_a_gpu_with_less_than_one_chosen_expert_works_on_one() -> None:
    # One token chooses 8 of 384 experts; of 16 GPUs each holds 24: half an expert each, on average.
    choices = Choices(
        choices=Shape((1, 8), "int32"),
        slots=Shape((8, 1, 2048), "float16"),
        held=Shape((24,), "int32"),
        experts=Shape((384,), "int32"),
    )
    assert choices.matrices({}, "even") == 1
    assert choices.matrices({}, "worst") == 8


@pytest.mark.slow
def test_only_chosen_rows_are_multiplied() -> None:
    # 4,096 tokens choose 8 experts each; the busiest of 8 GPUs has little more than an eighth.
    stated, _ = expert_times(4096)
    flops = busiest_of_random_routes(4096, 8)[0] * 3 * 2 * 7168 * 2048
    arithmetic_ns = flops / (2_500e12 * 0.7) * 1e9
    # The rest: the router and the shared expert, and results that are written, read and reduced.
    assert arithmetic_ns < stated < 3 * arithmetic_ns


def test_lists_hold_the_rows_that_random_routes_send() -> None:
    def lists(ids: jax.Array, share: jax.Array) -> jax.Array:
        sizes = {"n_rows": 512, "n_chips": 8, "n_local": 48, "n_places": 64}
        return expert_slots.rows_by_chip(ids, share, **sizes)[0]

    ints = jax.ShapeDtypeStruct((64, 8), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    (lister,) = read(jax.make_jaxpr(lists)(*ints)).operations
    rng, filled = np.random.default_rng(0), []
    for _ in range(100):
        chosen = np.argsort(rng.random((8, 64, 384)), axis=-1)[..., :8] // 48
        used = (chosen[..., None] == np.arange(8)).any(2)  # share, row, GPU
        filled.append(used.sum((1, 2)).max() / (64 * 8))  # of the GPU that sends most
    assert Lists(lister=lister).share({}, "spread") == pytest.approx(np.mean(filled), rel=0.05)
    assert Lists(lister=lister).share({}, "worst") == 1
