"""First tokens of plans: by the plans themselves, or on the GPUs beside LPUs that only decode.

Of a mixed system whose GPUs take prompts in, the first token is that of the GPUs' earliest plan,
whatever the plan of the LPUs. Each layer's cache is handed over when it is there: what the network
is still busy with after the first token delays the second one.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Bool

from lpu_jax.machine import mixed
from models.blocks import BLOCK_KINDS, block_arguments, block_chain, is_leaf
from models.layers.linear import Split

from .. import axes
from ..plan import Plan
from ..predict.serving import Prefill, prefill
from ..scenario import Scenario
from ..search.first_token import find_first_tokens
from ..search.nearest import nearest_plans


@dataclass(frozen=True, kw_only=True)
class PrefillElsewhere:
    """How the GPUs of a mixed system take a prompt in, and hand its cache over."""

    plan: Plan
    found: Prefill  #: of one plan
    cache_bytes: float  #: of the prompt of every sequence of a micro-batch
    hand_over_s: float  #: of the whole cache, if nothing else is done
    delay_s: float  #: from the first token until the cache is there


def first_tokens(
    plans: Sequence[Plan], fits: Bool[np.ndarray, " plans"], scenario: Scenario, prompt_tokens: int
) -> Prefill:
    """Time the first token of plans; see `serving.prefill`."""
    if not prefills_elsewhere(scenario):
        return prefill(plans, fits, scenario, prompt_tokens)
    found = prefill_elsewhere(scenario, prompt_tokens).found
    columns = {name: np.repeat(values, len(plans)) for name, values in vars(found).items()}
    return Prefill(**columns)


def prefills_elsewhere(scenario: Scenario) -> bool:
    """Whether prompts are taken in on another machine."""
    return scenario.mixed is not None and scenario.mixed.split is mixed.Split.PREFILL_DECODE


@lru_cache(maxsize=64)
def prefill_elsewhere(scenario: Scenario, prompt_tokens: int) -> PrefillElsewhere:
    """Find the plan of the GPUs with the earliest first token; see `find_first_tokens`.

    Args:
        scenario: of the decode steps, with a mixed system whose GPUs take prompts in.
        prompt_tokens: tokens of each sequence's prompt.

    Fidelity: approximate; the network's rates and latency are partly assumed.
    """
    assert scenario.mixed is not None
    gpus = scenario.mixed.gpus
    asked = replace(scenario, system=gpus, mixed=None, draft=None, expert_shares=None)
    tokens = find_first_tokens(asked, prompt_tokens, 1)
    plan = (nearest_plans(asked, 1) if tokens is None else tokens.plans)[0]
    found = prefill([plan], np.array([tokens is not None]), asked, prompt_tokens)
    n_bytes = _cache_bytes(asked, prompt_tokens)
    kinds = [block.kind for block in block_chain(asked.model)]
    n_layers = sum(BLOCK_KINDS[kind].part == "attention" for kind in kinds)
    link = scenario.mixed.link
    hand_over_s = float(link.transfer_s(n_bytes, scenario.system.n_chips, plan.n_chips))
    last_s = float(link.transfer_s(n_bytes / n_layers, scenario.system.n_chips, plan.n_chips))
    return PrefillElsewhere(
        plan=plan,
        found=found,
        cache_bytes=n_bytes,
        hand_over_s=hand_over_s,
        delay_s=max(last_s, hand_over_s - float(found.latency_s[0])),
    )


def _cache_bytes(scenario: Scenario, prompt_tokens: int) -> float:
    """Bytes of the cache of a prompt of every sequence, each value once and without padding."""
    cfg, policy = scenario.model, scenario.policy
    request = replace(scenario.request, tokens=1, context=prompt_tokens, acceptance=None)
    found = 0.0
    for kind, count in Counter(block.kind for block in block_chain(cfg)).items():
        if BLOCK_KINDS[kind].part == "attention":
            one_chip = dict.fromkeys(axes.MESH_AXES[kind], 1)
            sizes = axes.sizes(cfg, kind, policy, one_chip, request, Split.COLUMN)
            leaves = jax.tree.leaves(
                block_arguments(cfg, kind, policy, Split.COLUMN, sizes), is_leaf=is_leaf
            )
            cached = [own for own in leaves if own.kind == "cache" and not own.is_copy]
            found += count * sum(math.prod(own.shape) * own.bits / 8 for own in cached)
    return found
