"""What is no plan, model, source, system or number is refused in one sentence where it enters.

The hook that checks annotations in tests is off: users have none.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jaxtyping import config
from placed_blocks import TINY_KIMI, TINY_LLAMA

import models
import sharding
from lpu_jax import system
from lpu_jax.errors import LpuError
from models import SyntheticWeights
from models.sampling import Sampling
from sharding import (
    AttentionShard,
    MlpShard,
    MoeShard,
    Plan,
    Request,
    Scenario,
    check,
    check_whole,
    compare,
    curve,
    decode_request,
    explain,
    forward,
    generate,
    sensitivity,
)

PLAN = Plan(group_chips=2, attention=AttentionShard(tensor=2), mlp=MlpShard(tensor=2))
SOURCE = SyntheticWeights(TINY_LLAMA)
TOKENS = np.array([[1, 2]])
DRAFTS = decode_request(context=64, draft_tokens=2, acceptance=0.5)
NODE = "groq-node"
AS_A_PLAN = "was given as a plan; it must be a Plan, such as one of a comparison's rows"


@pytest.fixture(autouse=True)
def _as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)


def plan(**changed: Any) -> Plan:
    given = {"group_chips": 2, "attention": AttentionShard(tensor=2), "mlp": MlpShard(tensor=2)}
    return Plan(**(given | changed))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a part in words": (
        lambda: plan(attention="2t"),
        "plan attention is '2t'; it must be of type AttentionShard, such as "
        "AttentionShard(tensor=2).",
    ),
    "another part": (
        lambda: plan(mlp=AttentionShard(tensor=2)),
        "plan mlp is an AttentionShard; it must be of type MlpShard, such as MlpShard(tensor=2).",
    ),
    "no attention": (lambda: plan(attention=None), "plan attention is None; it must be of type"),
    "a part of experts": (
        lambda: plan(moe=MlpShard(tensor=2)),
        "plan moe is a MlpShard; it must be of type MoeShard, such as MoeShard(tensor=2).",
    ),
    "a truth value": (
        lambda: plan(group_chips=True),
        "plan group_chips is True; it must be a whole number of at least 1.",
    ),
    "no collective": (lambda: plan(collective=None), "unknown collective 'None'"),
    "no degree": (
        lambda: AttentionShard(tensor=None),
        "attention tensor is None; it must be a whole number of at least 1.",
    ),
    "no order": (
        lambda: MlpShard(order=None),
        "mlp order is None; it must be a tuple of axes, such as ('replica', 'tensor').",
    ),
    "an order in words": (lambda: MlpShard(order="tensor"), "mlp order is 'tensor'; it must be"),
    "plans are one plan": (
        lambda: compare(TINY_LLAMA, NODE, Request(context=64), plans=PLAN),
        "compare: plans is a Plan; it must be a list of Plan.",
    ),
    "plans in words": (
        lambda: compare(TINY_LLAMA, NODE, Request(context=64), plans=["1x2"]),
        f"compare: '1x2' {AS_A_PLAN}",
    ),
    "a draft model that is none": (
        lambda: compare(TINY_LLAMA, NODE, DRAFTS, draft_model=5),
        "draft model is 5; it must be a name, a path, or a draft model.",
    ),
    "a draft plan in words": (
        lambda: compare(TINY_LLAMA, NODE, DRAFTS, draft_model=TINY_LLAMA, draft_plan="1x2"),
        f"draft plan: '1x2' {AS_A_PLAN}",
    ),
    "explain": (lambda: explain(TINY_LLAMA, NODE, "1x2"), f"explain: '1x2' {AS_A_PLAN}"),
    "explain a request": (
        lambda: explain(TINY_LLAMA, NODE, Request()),
        f"explain: a Request {AS_A_PLAN}",
    ),
    "check one plan": (
        lambda: check(TINY_LLAMA, NODE, PLAN),
        "check: plans is a Plan; it must be a list of Plan.",
    ),
    "check no plan": (lambda: check(TINY_LLAMA, NODE, []), "check: no plan was given"),
    "check a layer in words": (
        lambda: check(TINY_LLAMA, NODE, [PLAN], layers="a"),
        "check: layer 'a' was asked for; llama-3.1-8b has 0 to 0.",
    ),
    "check a layer": (
        lambda: check(TINY_LLAMA, NODE, [PLAN], layers=0),
        "check: layers is 0; it must be a list of layers.",
    ),
    "check with a seed in words": (
        lambda: check(TINY_LLAMA, NODE, [PLAN], seed="a"),
        "check: seed is 'a'; it must be a whole number, at least 0.",
    ),
    "check another model's weights": (
        lambda: check(TINY_LLAMA, NODE, [PLAN], source=SyntheticWeights(TINY_KIMI)),
        "check: source has weights of kimi-k2, whose configuration is not that of the model "
        "llama-3.1-8b; give its own, source.config, as the model.",
    ),
    "check tokens in words": (
        lambda: check_whole(SOURCE, NODE, [PLAN], policy="fp16", token_ids="ab"),
        "check: token 'a' was given; llama-3.1-8b has 0 to 127.",
    ),
    "forward a plan in words": (
        lambda: forward(SOURCE, NODE, "1x2", TOKENS, policy="fp16"),
        f"forward: '1x2' {AS_A_PLAN}",
    ),
    "forward a model": (
        lambda: forward(TINY_LLAMA, NODE, PLAN, TOKENS, policy="fp16"),
        "source is a ModelConfig; it must be weights, such as "
        "open_checkpoint(path).weights or SyntheticWeights(model).",
    ),
    "forward a list": (
        lambda: forward(SOURCE, NODE, PLAN, [[1, 2]], policy="fp16"),
        "forward: tokens is a list; it must be an integer array of NumPy, [sequences, tokens].",
    ),
    "forward fractions": (
        lambda: forward(SOURCE, NODE, PLAN, np.array([[1.9, 2.0]]), policy="fp16"),
        "forward: tokens is float64[1,2]; it must be an integer array of NumPy",
    ),
    "forward one row": (
        lambda: forward(SOURCE, NODE, PLAN, TOKENS[0], policy="fp16"),
        "forward: tokens is int64[2]; it must be an integer array of NumPy",
    ),
    "forward steps in words": (
        lambda: forward(SOURCE, NODE, PLAN, TOKENS, policy="fp16", step="a"),
        "forward: steps of 'a' tokens were asked for; it must be at least 1.",
    ),
    "forward without a policy": (
        lambda: forward(SOURCE, NODE, PLAN, TOKENS, policy=None),
        "policy is None; it must be a name or a Policy.",
    ),
    "generate without a tokenizer": (
        lambda: generate(SOURCE, NODE, PLAN, None, [[1]]),
        "generate: tokenizer is None; it must be a Tokenizer, such as "
        "read_tokenizer(open_checkpoint(path)) of models.tokenizer_files.",
    ),
    "sensitivity of nothing": (
        lambda: sensitivity(None, 2),
        "sensitivity: comparison is None; it must be what compare returns.",
    ),
    "read no plan": (
        lambda: sharding.read_plan(None),
        "read_plan: path is None; it must be the path of a file.",
    ),
    "no model": (
        lambda: models.model(None),
        "model is of type NoneType; it must be a name or a path.",
    ),
    "no checkpoint": (
        lambda: models.open_checkpoint(3),
        "checkpoint is of type int; it must be a path.",
    ),
    "weights of a name": (
        lambda: SyntheticWeights("smollm2-135m"),
        "SyntheticWeights: the model is of type str; it must be a ModelConfig, such as",
    ),
    "forward parts of other groups": (
        lambda: forward(SOURCE, NODE, plan(mlp=MlpShard()), TOKENS, policy="fp16"),
        "mlp: tensor 1 x replica 1 = 1 chips, but a group has 2; off by 1.",
    ),
    "forward without a part for experts": (
        lambda: forward(SyntheticWeights(TINY_KIMI), NODE, PLAN, TOKENS, policy="fp16"),
        "kimi-k2 has MoE blocks; the plan must have a part 'moe'.",
    ),
    "compare experts that are none": (
        lambda: compare(TINY_LLAMA, NODE, Request(), plans=[plan(moe=MoeShard(expert=2))]),
        "llama-3.1-8b has no MoE blocks; the plan must not have a part 'moe'.",
    ),
    "forward into endless memory": (
        lambda: forward(SOURCE, NODE, PLAN, TOKENS, policy="fp16", context=10**9),
        "forward: 2 positions are needed and 131200 at most; 1000000000 were asked for.",
    ),
    "forward to nobody": (
        lambda: forward(SOURCE, NODE, PLAN, TOKENS, policy="fp16", progress=3),
        "forward: progress is 3; it must be a function of the steps done",
    ),
    "check tokens of nothing": (
        lambda: check_whole(SOURCE, NODE, [PLAN], policy="fp16", token_ids=None),
        "check: token_ids is None; it must be a list of token numbers.",
    ),
    "check from a number": (
        lambda: check_whole(SOURCE, NODE, [PLAN], policy="fp16", token_ids=[1, 2], resume=3),
        "check: resume is 3; it must be the path of a file.",
    ),
    "a curve of lists": (
        lambda: curve(TINY_LLAMA, NODE, batches=[[]]),
        "batch is a list; it must be a whole number.",
    ),
    "a curve of bytes": (
        lambda: curve(TINY_LLAMA, NODE, batches=b"x"),
        "batches is b'x'; it must be a list of batch sizes.",
    ),
    "read a name that no file has": (
        lambda: sharding.read_plan("a\0b"),
        "plan file 'a\\x00b' cannot be read: no file can have this name.",
    ),
    "a scenario of words": (
        lambda: Scenario("llama", system(NODE), Request()),
        "Scenario: model='llama' was given; it must be a ModelConfig.",
    ),
    "drafts without a context": (
        lambda: decode_request(context=None, draft_tokens=1, acceptance=0.5),
        "context is None; it must be a whole number.",
    ),
    "a longest step beyond the context": (
        lambda: compare(TINY_LLAMA, NODE, Request(context=64, most_tokens=65)),
        "most_tokens is 65; a step adds at most the 64 positions of the context.",
    ),
    "a temperature in words": (
        lambda: Sampling(temperature="hot"),
        "temperature is 'hot'; it must be 0 or more.",
    ),
    "half a token": (lambda: Sampling(top_k=2.5), "top-k is 2.5; it must be 1 or more"),
    "a policy of nothing": (
        lambda: models.Policy(name="x", weights=None),
        "policy x: weights is None; it must be a dict of formats by role.",
    ),
    "half a seed": (
        lambda: SyntheticWeights(TINY_LLAMA, 2.5),
        "SyntheticWeights: seed is 2.5; it must be a whole number, at least 0.",
    ),
    "more tokens than text": (
        lambda: compare(TINY_LLAMA, NODE, Request(context=64, most_tokens="x")),
        "most_tokens is 'x'; it must be a whole number.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_argument_is_refused_in_one_sentence(name: str) -> None:
    act, sentence = BAD[name]
    with pytest.raises(LpuError, match=f"^{re.escape(sentence)}") as refused:
        act()
    assert str(refused.value).count("\n") == 0


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    """A sweep over `np.arange` is a sweep; the values are Python's, and go into JSON."""
    request = Request(batch=np.int32(2), context=np.int64(64))
    assert (type(request.batch), type(request.context)) == (int, int)
    assert request == Request(batch=2, context=64)
    shard = MoeShard(expert=np.int64(2), slots=np.uint8(3))
    assert shard == MoeShard(expert=2, slots=3)
    assert type(shard.expert) is type(shard.slots) is int
    assert plan(group_chips=np.int64(2)) == PLAN


def test_an_order_may_be_a_list() -> None:
    shard = MlpShard(tensor=2, order=["tensor", "replica"])
    assert hash(shard) == hash(MlpShard(tensor=2, order=("tensor", "replica")))


@pytest.mark.slow
def test_names_do_where_objects_do() -> None:
    by_name = forward(SOURCE, NODE, PLAN, TOKENS, policy="int8")
    found = forward(SOURCE, system(NODE), PLAN, TOKENS, policy=models.POLICIES["int8"])
    np.testing.assert_array_equal(by_name, found)
