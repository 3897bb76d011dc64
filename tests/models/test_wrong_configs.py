"""Fields that no model has are refused where a configuration is made.

The hook that checks annotations in tests is off: users have none.
"""

from dataclasses import replace
from typing import Any

import pytest
from jaxtyping import config

from lpu_jax.errors import ConfigError
from models import zoo

KIMI, GPT_OSS = zoo.model("kimi-k2"), zoo.model("gpt-oss-20b")


@pytest.fixture(autouse=True)
def _as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("owner", "fields"),
    [
        (KIMI, ("n_layers", "d_model", "d_ff", "vocab_size", "max_position")),
        (KIMI.attention, ("n_heads", "q_lora_rank", "kv_lora_rank", "v_head_dim")),
        (KIMI.moe, ("n_experts", "top_k", "d_expert", "n_groups")),
        (GPT_OSS.attention, ("n_heads", "n_kv_heads", "head_dim", "window")),
    ],
    ids=["model", "latent", "experts", "grouped"],
)
@pytest.mark.parametrize("wrong", [2.5, "30", True, [], 2**70])
def test_sizes_are_whole_numbers(owner: Any, fields: tuple[str, ...], wrong: Any) -> None:
    for field in fields:
        with pytest.raises(ConfigError, match=f"{field} must be a whole number below"):
            replace(owner, **{field: wrong})


@pytest.mark.parametrize(
    ("field", "wrong", "allowed"),
    [
        ("norm_eps", float("nan"), "a number"),
        ("tie_embeddings", "no", "True or False"),
        ("name", 3, "a string"),
        ("released_format", 3, "a string"),
        ("attention", None, "a GqaConfig or an MlaConfig"),
        ("rope", None, "a RopeConfig"),
        ("moe", 3, "a MoeConfig or None"),
        ("sliding_layers", [1], "a tuple of layers"),
    ],
)
def test_parts_are_of_their_types(field: str, wrong: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"ModelConfig.{field} must be {allowed}, got"):
        replace(KIMI, **{field: wrong})
