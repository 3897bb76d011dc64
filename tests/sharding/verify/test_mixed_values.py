"""Values of a plan over GPUs and LPUs: attention by tensor cores, FFNs by the matrix unit."""

from pathlib import Path

import numpy as np
import pytest
from placed_blocks import TINY_KIMI, TINY_LLAMA

from lpu_jax.errors import LpuError
from lpu_jax.machine.catalogue import any_system, system
from lpu_jax.machine.mixed import MixedSystem
from models.config import ModelConfig
from models.weights.synthetic import SyntheticWeights
from sharding import Plan
from sharding.run.forward import forward
from sharding.verify.chosen_layers import check
from sharding.verify.whole_model import check_whole

PLAN = Plan.parse("1x2 a:2r + 1x2 f:2t column")
#: Its attention adds shares of two chips, in the order of their numbers on either machine.
ROWS = Plan.parse("1x2 a:2t + 1x2 f:2t row")
MOE = Plan.parse("1x2 a:2t + 1x2 f:2t m:2e row")


@pytest.fixture
def small(tmp_path: Path) -> MixedSystem:
    path = tmp_path / "small.toml"
    path.write_text('[pool.gpus]\nsystem = "gb200x2"\n[pool.lpus]\nsystem = "lpx-tray"\n')
    found = any_system(path)
    assert isinstance(found, MixedSystem)
    return found


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        pytest.param("smollm2-135m", ROWS, marks=pytest.mark.slow),
        pytest.param(TINY_LLAMA, PLAN, marks=pytest.mark.long),
        pytest.param(TINY_KIMI, MOE, marks=pytest.mark.long),
    ],
)
def test_gpus_multiply_as_their_tensor_cores_do(
    small: MixedSystem, model: str | ModelConfig, plan: Plan
) -> None:
    """What the policy of one machine says in words, the mixed machine says by itself."""
    tray = system("lpx-tray")
    (found,) = check(model, small, [plan], policy="fp16", layers=[0])
    (said,) = check(model, tray, [plan], policy="fp16@blackwell:attention", layers=[0])
    (alone,) = check(model, tray, [plan], policy="fp16", layers=[0])
    assert found.output_hash == said.output_hash
    # Sums of a tiny model are too short for a tensor core to round otherwise.
    assert (found.output_hash == alone.output_hash) == isinstance(model, ModelConfig)
    assert 30 < found.sqnr_db < 90


@pytest.mark.slow
def test_a_policy_that_says_whose_cores_is_kept(small: MixedSystem) -> None:
    (found,) = check(TINY_LLAMA, small, [PLAN], policy="fp16@hopper")
    (said,) = check(TINY_LLAMA, system("lpx-tray"), [PLAN], policy="fp16@hopper")
    assert found.output_hash == said.output_hash


@pytest.mark.slow
def test_a_whole_model_runs_on_both(small: MixedSystem) -> None:
    source, tokens = SyntheticWeights(TINY_LLAMA, 0), (1, 2, 3)
    (found,) = check_whole(source, small, [ROWS], policy="fp16", token_ids=tokens)
    assert found.policy.name == "fp16@blackwell:attention"
    ids = np.array([tokens])
    logits = forward(source, small, ROWS, ids, policy="fp16", step=1)
    np.testing.assert_array_equal(logits[0], found.logits)


@pytest.mark.slow
def test_no_plan_is_the_fastest(small: MixedSystem) -> None:
    (found,) = check(TINY_LLAMA, small, policy="fp16", tokens=1)
    assert found.plan.ffn is not None


@pytest.mark.parametrize(
    ("name", "plan", "policy", "sentence"),
    [
        ("vr-lpx-1:prefill-decode", PLAN, "fp16", "those of one of its machines alone; give lpx-1"),
        ("vr-lpx-1:draft-verify", PLAN, "fp16", "vr-lpx-1:draft-verify needs a draft model"),
        ("vr-nvl72", PLAN, "fp16", "vr-nvl72 is a GPU roofline without values"),
        ("vr-lpx-1", PLAN, "int8", "tensor cores multiply float16 rows"),
        ("vr-lpx-1", Plan.parse("1x2 a:2r f:2t column"), "fp16", "the plan has one pool"),
    ],
)
def test_what_has_no_values_is_refused(name: str, plan: Plan, policy: str, sentence: str) -> None:
    with pytest.raises(LpuError, match=sentence) as error:
        check(TINY_LLAMA, name, [plan], policy=policy)
    assert "\n" not in str(error.value)
