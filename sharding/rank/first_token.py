"""First tokens of plans: by the plans themselves, or on the GPUs beside LPUs that only decode.

Of a mixed system whose GPUs take prompts in, the first token is that of the GPUs' earliest plan,
whatever the plan of the LPUs. Each layer's cache is handed over when it is there: what the network
is still busy with after the first token delays the second one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from lpu_jax.machine import mixed
from lpu_jax.quantities import format_bytes, format_seconds
from models.blocks import BLOCK_KINDS, block_arguments, block_chain, is_leaf
from models.layers.linear import Split

from .. import axes
from ..plan import Plan
from ..plan_file import plan_from_dict
from ..predict.serving import Prefill, prefill
from ..scenario import Scenario
from ..search.first_token import find_first_tokens
from ..search.nearest import nearest_plans


@dataclass(frozen=True, kw_only=True)
class PrefillElsewhere:
    """How the GPUs of a mixed system take a prompt in, and hand its cache over."""

    system: str  #: the GPUs
    plan: Plan
    chunk_tokens: int
    is_memory_bound: bool
    latency_s: float
    time_to_first_token_s: float
    cache_bytes: float  #: of the prompt of every sequence of a micro-batch
    hand_over_s: float  #: of the whole cache, if nothing else is done
    delay_s: float  #: from the first token until the cache is there

    @property
    def in_words(self) -> str:
        """Where prompts are taken in, in a sentence."""
        return (
            f"prompts are taken in on {self.system} by {self.plan.name}; a cache of "
            f"{format_bytes(self.cache_bytes)} is handed over layer by layer in "
            f"{format_seconds(self.hand_over_s)}, and is there {format_seconds(self.delay_s)} "
            "after the first token; chips are those that decode."
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return vars(self) | {"plan": self.plan.as_dict(), "name": self.plan.name}


def first_tokens(
    plans: Sequence[Plan], fits: Bool[np.ndarray, " plans"], scenario: Scenario, prompt_tokens: int
) -> Prefill:
    """Time the first token of plans; see `serving.prefill`."""
    if not prefills_elsewhere(scenario):
        return prefill(plans, fits, scenario, prompt_tokens)
    found, n = prefill_elsewhere(scenario, prompt_tokens), len(plans)
    return Prefill(
        chunk_tokens=np.full(n, found.chunk_tokens),
        is_memory_bound=np.full(n, found.is_memory_bound),
        latency_s=np.full(n, found.latency_s),
        time_to_first_token_s=np.full(n, found.time_to_first_token_s),
    )


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
        system=gpus.name,
        plan=plan,
        chunk_tokens=int(found.chunk_tokens[0]),
        is_memory_bound=bool(found.is_memory_bound[0]),
        latency_s=float(found.latency_s[0]),
        time_to_first_token_s=float(found.time_to_first_token_s[0]),
        cache_bytes=n_bytes,
        hand_over_s=hand_over_s,
        delay_s=max(last_s, hand_over_s - float(found.latency_s[0])),
    )


def prefill_elsewhere_from_dict(data: Mapping[str, Any]) -> PrefillElsewhere:
    """Read what `PrefillElsewhere.as_dict` makes, once more from JSON."""
    values = {one.name: data[one.name] for one in fields(PrefillElsewhere)}
    return PrefillElsewhere(**values | {"plan": plan_from_dict(data["plan"])})


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
