"""Precision policies: what each role is stored in, against the published forms of checkpoints."""

import dataclasses
import pickle
from typing import Any

import pytest

from lpu_jax.errors import ConfigError, LpuError, UnknownNameError
from lpu_jax.numerics.schemes import MXFP4, NVFP4, block_floating_point
from models import zoo
from models.blocks import block_kinds
from models.config import ModelConfig
from models.params import block_params
from models.policy import BF16, FP16, POLICIES, TRUEPOINT, Policy, policy_named

KIMI, LLAMA = zoo.model("kimi-k2"), zoo.model("llama-3.1-8b")


def stored_bytes(cfg: ModelConfig, policy: Policy) -> float:
    """Bytes of all weights of a model: each block as often as the model has it."""
    counts = {"embed": 1, "head": 1, "attention": cfg.n_layers, "moe": cfg.n_moe_layers}
    counts["dense"] = cfg.n_layers - cfg.n_moe_layers
    return sum(
        counts[kind] * spec.n_values * policy.bits(spec) / 8
        for kind in block_kinds(cfg)
        for spec in block_params(cfg, kind).values()
    )


@pytest.mark.parametrize(
    ("model", "policy"),
    [("kimi-k2", "fp8"), ("deepseek-v3", "fp8"), ("llama-2-70b", "fp16"), ("llama-3.1-8b", "bf16")],
)
def test_released_is_what_the_checkpoint_ships(model: str, policy: str) -> None:
    assert policy_named("released", zoo.model(model)) is POLICIES[policy]


@pytest.mark.parametrize(("released", "policy"), [("int4", "int4"), ("mxfp4", "mxfp4-experts")])
def test_released_experts_are_narrow_and_the_rest_has_16_bits(released: str, policy: str) -> None:
    found = policy_named("released", dataclasses.replace(KIMI, released_format=released))
    assert found is POLICIES[policy]
    for kind in block_kinds(KIMI):
        for spec in block_params(KIMI, kind).values():
            if spec.rows:
                assert (found.bits(spec) < 16) == (spec.role == "expert")


def test_sizes_of_kimi_k2_are_those_of_its_formats() -> None:
    """1.026 T parameters: their bytes by format, within the share of norms, head and scales."""
    billions = {name: stored_bytes(KIMI, policy) / 1e9 for name, policy in POLICIES.items()}
    assert billions["fp16"] == pytest.approx(2 * 1026, rel=0.002)
    assert billions["bf16"] == billions["fp16"]
    assert billions["fp8"] == pytest.approx(1029, rel=0.002)  # the released files
    assert billions["mxfp4"] == pytest.approx(1026 * 4.25 / 8, rel=0.01)
    assert billions["nvfp4"] == pytest.approx(1026 * 4.5 / 8, rel=0.01)
    # Experts are 1,014 of the 1,026 billion: 8 bits and an eighth of half a byte.
    assert billions["groq-truepoint"] == pytest.approx(1026 * 8.5 / 8, rel=0.015)


def test_truepoint_is_what_the_vendor_describes() -> None:
    specs = block_params(KIMI, "moe")
    scheme = TRUEPOINT.scheme(specs["gate_up"])
    assert scheme is not None
    assert scheme.has_power_of_two_scales
    assert scheme.format.is_integer  # block floating point
    assert TRUEPOINT.rows == {"dense": "fp8", "expert": "fp8", "shared": "fp8"}
    assert TRUEPOINT.carry == "exact"
    assert "assumed" in TRUEPOINT.source


def test_every_policy_says_where_it_comes_from() -> None:
    assert all(policy.source for policy in POLICIES.values())
    assert all(policy.name == name for name, policy in POLICIES.items())


def test_vectors_stay_fp32() -> None:
    for policy in (policy for policy in POLICIES.values() if policy is policy.on_chip):
        for kind in block_kinds(KIMI):
            for spec in block_params(KIMI, kind).values():
                assert (policy.scheme(spec) is None) == (spec.rows == 0)


def test_a_policy_of_your_own_is_a_value() -> None:
    mine = dataclasses.replace(FP16, name="mine", weights={"expert": block_floating_point(8, 5)})
    same = dataclasses.replace(FP16, name="mine", weights={"expert": block_floating_point(8, 5)})
    assert mine == same
    assert hash(mine) == hash(same)
    assert mine != FP16
    one = Policy(name="a", weights={"expert": MXFP4, "dense": NVFP4})
    other = Policy(name="a", weights={"dense": NVFP4, "expert": MXFP4})
    assert (one, hash(one)) == (other, hash(other))
    with pytest.raises(TypeError, match="does not support item assignment"):
        mine.weights["expert"] = MXFP4  # type: ignore[index]
    assert mine.bits(block_params(KIMI, "moe")["down"]) == 6 + 8 / 8


@pytest.mark.parametrize(
    ("released", "rest"), [("int4", "fp16"), ("fp8", "fp16"), ("mxfp4", "bf16")]
)
def test_what_other_roles_leave_alone_is_held_as_the_usual_ones_leave_it(
    released: str, rest: str
) -> None:
    usual = policy_named("released", dataclasses.replace(KIMI, released_format=released))
    roles = ("expert", "shared")
    cfg = dataclasses.replace(KIMI, released_format=released, released_roles=roles)
    found = policy_named("released", cfg)
    for kind in block_kinds(KIMI):
        for spec in block_params(KIMI, kind).values():
            if spec.role in roles:
                assert found.scheme(spec) == usual.scheme(block_params(KIMI, "moe")["down"])
            elif spec.role in ("router", "head"):
                assert found.scheme(spec) == usual.scheme(spec)
    attention = found.scheme(block_params(KIMI, "attention")["o"])
    assert attention is not None
    assert attention.name == rest
    assert found.source.endswith(f"the rest is held as {rest}")


def test_unknown_names_and_formats_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown precision policy 'msfp8'; nearest: "):
        policy_named("msfp8", LLAMA)
    with pytest.raises(UnknownNameError, match="released"):
        policy_named("release", LLAMA)
    with pytest.raises(UnknownNameError, match="unknown precision policy"):
        policy_named("+fp8-cache", LLAMA)
    for name, nearest in (("fp16+mxfp6-cache", "mxfp8-cache"), ("fp16+fp16-wire", "bf16-wire")):
        message = f"unknown format of a cache or a wire '{name[5:]}'; nearest: .*{nearest}"
        with pytest.raises(UnknownNameError, match=message):
            policy_named(name, LLAMA)
    for what, name in (
        ("cache", "fp16+fp8-cache+nvfp4-cache"),
        ("wire", "int4+fp8-wire+bf16-wire"),
    ):
        with pytest.raises(LpuError, match=f"names two formats of the {what}; give one"):
            policy_named(name, LLAMA)
    odd = dataclasses.replace(LLAMA, released_format="gptq")
    with pytest.raises(ConfigError, match="is released in gptq, which no policy holds; choose one"):
        policy_named("released", odd)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"experts": MXFP4}}, "weights of 'experts' were given a format; roles are"),
        ({"weights": {"embedding": MXFP4}}, "weights of 'embedding' were given a format"),
        ({"rows": {"norm": "fp8"}}, "rows of 'norm' were given a format"),
        ({"weights": {"dense": "mxfp4"}}, "weights of dense were given 'mxfp4'; it must be a Sch"),
        ({"rows": {"dense": "e4m3fn"}}, "rows of dense were given 'e4m3fn'; allowed are fp16, fp8"),
        ({"cache": "fp4"}, "'fp4' was given; allowed are base, fp8, fp8-head, mxfp8, nvfp4"),
        ({"cache_scale": 2.0}, "cache_scale 2.0 was given with cache base; it must be a number fr"),
        ({"cache": "fp8", "cache_scale": float("nan")}, "cache_scale nan was given with cache fp8"),
        ({"wire": "fp16"}, "'fp16' was given; allowed are base, bf16, fp8, fp32, exact"),
        (
            {"wire": "bf16", "base": "fp32", "fidelity": "fast"},
            "goes with fast products and no oth",
        ),
        (
            {"cache": "fp8", "base": "fp32", "fidelity": "fast"},
            "goes with fast products and no oth",
        ),
        (
            {"cache": "fp8", "tensor_cores": {"moe": "hopper"}},
            "a narrower cache and a base of fp32 are",
        ),
        ({"carry": "fp64"}, "carry 'fp64' was given; allowed are fp32, exact"),
        ({"tensor_cores": "hopper"}, "tensor_cores is 'hopper'; it must be a dict of gen"),
        ({"tensor_cores": {"attn": "hopper"}}, "tensor_cores of 'attn' were given a generation"),
        ({"tensor_cores": {"moe": "volta"}}, "tensor cores of 'volta' were given; allowed are hop"),
        ({"generation": "volta"}, "tensor cores of 'volta' were given; allowed are hopper, black"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fields(**fields)


def check_fields(**fields: Any) -> None:
    """Make a policy without the type checks that tests put around constructors."""
    policy = object.__new__(Policy)
    defaults = dict(vars(Policy(name="mine")))
    for name, value in (defaults | fields).items():
        object.__setattr__(policy, name, value)
    policy.__post_init__()


def test_the_embedding_is_looked_up_not_multiplied() -> None:
    table = block_params(LLAMA, "embed")["table"]
    assert BF16.scheme(table) == FP16.scheme(table)


def test_words_of_a_name_are_a_cache_and_a_wire() -> None:
    for cache in ("fp8", "fp8-head", "mxfp8", "nvfp4"):
        for wire in ("bf16", "fp8", "fp32", "exact"):
            found = policy_named(f"int4+{cache}-cache+{wire}-wire", KIMI)
            assert (found.cache, found.wire) == (cache, wire)
            assert found.name == f"int4+{cache}-cache+{wire}-wire"
            assert pickle.loads(pickle.dumps(found)) == found
            plain = dataclasses.replace(found, wire="base")
            assert len({found, policy_named("int4"), plain}) == 3
    assert (FP16.cache, FP16.wire) == ("base", "base")


def test_a_cache_may_have_a_scale_of_all_tensors() -> None:
    found = policy_named("int4+fp8x0.25-cache", KIMI)
    assert (found.name, found.cache, found.cache_scale) == ("int4+fp8x0.25-cache", "fp8", 0.25)
    assert len({found, policy_named("int4+fp8-cache")}) == 2
    for scale in ("x", "x-2", "xone"):
        with pytest.raises(UnknownNameError, match="unknown format of a cache or a wire 'fp8x"):
            policy_named(f"fp16+fp8{scale}-cache")
    with pytest.raises(ConfigError, match=r"cache_scale 0\.0 was given with cache fp8; it must be"):
        policy_named("fp16+fp8x0-cache")


def test_any_policy_may_have_a_narrower_cache() -> None:
    for name in ("int4", "released"):
        plain, narrow = policy_named(name, KIMI), policy_named(f"{name}+fp8-cache", KIMI)
        assert (plain.cache_bits, narrow.cache_bits) == (16, 8)
        assert narrow.weights == plain.weights
        assert narrow != plain
        assert pickle.loads(pickle.dumps(narrow)) == narrow


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
def test_policies_travel_to_other_processes(policy: Policy) -> None:
    found = pickle.loads(pickle.dumps(policy))
    assert found == policy
    assert hash(found) == hash(policy)  # traces of layers are kept by policy
    with pytest.raises(TypeError):
        found.weights["dense"] = MXFP4
