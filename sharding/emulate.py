"""One block after the other under several plans, each beside the float32 reference.

Weights are made once per block, every plan runs on them, then they are dropped; of a mixture only
the experts that some token chooses are made. Not here: which blocks run, and what is reported.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int

from lpu_jax.datapath import vxm
from lpu_jax.numerics.quantized import QuantizedArray
from models.blocks import Kind
from models.config import ModelConfig, MoeConfig
from models.layers.linear import linear, operand_rows
from models.layers.moe import route
from models.layers.norm import rms_norm
from models.params import block_params, expert_params
from models.policy import Policy
from models.reference import Moe, reference_block
from models.weights.source import WeightSource

from .axes import Request
from .execute import program_key, run_attention, run_block, with_inputs
from .load import (
    LoadedBlock,
    StoredBlock,
    place_block,
    store_block,
    store_expert,
    stored_values,
    widened,
)
from .plan import Plan

#: Allocated positions; a longer context changes no bit. One vector of 320 lanes.
CONTEXT = 320


@dataclass(frozen=True, kw_only=True)
class BlockCheck:
    """Errors after one block. In dB: signal over noise, both summed over all tokens and columns."""

    kind: Kind
    layer: int
    sqnr_db: float  #: of the hidden state after the block
    change_sqnr_db: float  #: of what the block added to the hidden state
    max_abs_err: float


def sqnr_db(reference: Float[np.ndarray, "..."], values: Float[np.ndarray, "..."]) -> float:
    """Signal over noise in dB, `10 log10(sum ref^2 / sum (ref - x)^2)`, summed in float64."""
    wide = reference.astype(np.float64)
    noise = float(np.sum((wide - values.astype(np.float64)) ** 2))
    signal = float(np.sum(wide**2))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@dataclass(kw_only=True)
class Run:
    """A plan's hidden states, emulated and in the reference, after the blocks so far."""

    plan: Plan
    hidden: Float16[np.ndarray, "tokens d"]
    reference: Float32[np.ndarray, "tokens d"]
    routes: tuple[bytes, ...] = ()  #: experts chosen so far: plans that agree share their reference
    checks: list[BlockCheck] = field(default_factory=list)
    routes_agree: bool | None = None
    router_margin: float | None = None

    def advance(
        self,
        kind: Kind,
        layer: int,
        hidden: Float16[np.ndarray, "tokens d"],
        reference: Float32[np.ndarray, "tokens d"],
    ) -> None:
        """Note the errors of a block and step behind it."""
        change = hidden.astype(np.float32) - self.hidden.astype(np.float32)
        self.checks.append(
            BlockCheck(
                kind=kind,
                layer=layer,
                sqnr_db=sqnr_db(reference, hidden),
                change_sqnr_db=sqnr_db(reference - self.reference, change),
                max_abs_err=_max_abs(reference, hidden),
            )
        )
        self.hidden, self.reference = hidden, reference

    def note_routing(self, agree: bool, margin: float) -> None:
        """Note how firmly the reference makes the same choice of experts."""
        self.routes_agree = agree and self.routes_agree is not False
        self.router_margin = min(
            margin, math.inf if self.router_margin is None else self.router_margin
        )


def _max_abs(reference: Float32[np.ndarray, "..."], hidden: Float16[np.ndarray, "..."]) -> float:
    return float(np.max(np.abs(reference - hidden.astype(np.float32))))


class Step:
    """One block: its weights are made once, every plan runs on them, then they are dropped."""

    def __init__(
        self,
        source: WeightSource,
        policy: Policy,
        kind: Kind,
        layer: int,
        tiers: tuple[int, ...],
        execution: str,
    ) -> None:
        self.source, self.policy, self.kind, self.layer = source, policy, kind, layer
        self.cfg: ModelConfig = source.config
        self.tiers, self.execution = tiers, execution
        self.specs = block_params(self.cfg, kind)

    def store(self) -> StoredBlock:
        """Make the block's weights; of a mixture everything but the routed experts."""
        held = () if self.kind == "moe" else None
        return store_block(self.source, self.kind, self.layer, self.policy, held_experts=held)

    def run(self, runs: Sequence[Run], stored: StoredBlock, workers: Executor) -> None:
        """Move every plan behind the block."""
        if self.kind == "moe":
            self._run_mixture(runs, stored, workers)
            return
        references = self._references(runs, self._values(stored))
        outputs = self._emulate_all(runs, self._wide(stored), workers)
        for run, output, reference in zip(runs, outputs, references, strict=True):
            run.advance(self.kind, self.layer, output, reference)

    def _emulate_all(
        self, runs: Sequence[Run], stored: StoredBlock, workers: Executor
    ) -> list[Float16[np.ndarray, "tokens d"]]:
        """Run the plans side by side, as compiling takes longest; those of one program in turn."""
        request = Request(batch=1, tokens=1, context=CONTEXT)
        groups: dict[Any, list[Run]] = {}
        for run in runs:
            program = program_key(self.cfg, self.kind, run.plan)
            groups.setdefault(program, []).append(run)

        def emulate(group: list[Run]) -> dict[int, Float16[np.ndarray, "tokens d"]]:
            outputs = {}
            for run in group:
                block = place_block(stored, run.plan, request, tiers=self.tiers)
                outputs[id(run)] = self._emulate(run, block)
            return outputs

        done: dict[int, Any] = {}
        for outputs in workers.map(emulate, groups.values()):
            done |= outputs
        return [done[id(run)] for run in runs]

    def _values(self, stored: StoredBlock) -> dict[str, Float32[np.ndarray, "..."]]:
        return {
            name: stored_values(weight, self.specs[name]) for name, weight in stored.weights.items()
        }

    def _wide(self, stored: StoredBlock) -> StoredBlock:
        """Widen narrow weights once, and hand them to JAX once, for all plans."""
        weights = {
            name: jax.tree.map(jnp.asarray, widened(weight, self.specs[name]))
            for name, weight in stored.weights.items()
        }
        return replace(stored, weights=weights)

    def _emulate(self, run: Run, block: LoadedBlock) -> Float16[np.ndarray, "tokens d"]:
        """Decode the tokens one after another."""
        rows = []
        cache = block.arguments[2] if self.kind == "attention" else None
        for position, row in enumerate(run.hidden):
            hidden = row.reshape(1, 1, -1)
            if self.kind == "attention":
                start = np.full(1, position, np.int32)
                out, cache = run_attention(
                    self.cfg, block, hidden, cache, start, execution=self.execution
                )
            else:
                out = run_block(self.cfg, with_inputs(block, hidden), execution=self.execution)
            rows.append(np.asarray(out)[0, 0])
        return np.stack(rows)

    def _references(
        self, runs: Sequence[Run], values: dict[str, Float32[np.ndarray, "..."]]
    ) -> list[Float32[np.ndarray, "tokens d"]]:
        """Run the reference once for all plans whose tokens took the same experts so far."""
        module = reference_block(self.cfg, self.kind, values)
        known: dict[tuple[bytes, ...], Float32[np.ndarray, "tokens d"]] = {}
        for run in runs:
            if run.routes not in known:
                known[run.routes] = np.asarray(module(jnp.asarray(run.reference)[None])[0])
        return [known[run.routes] for run in runs]

    # mixture of experts: route first, then make only the experts in use

    def _run_mixture(self, runs: Sequence[Run], stored: StoredBlock, workers: Executor) -> None:
        moe = self.cfg.moe
        assert moe is not None
        routes = [self._routes(stored, run.hidden, moe) for run in runs]
        held = tuple(sorted({int(i) for ids in routes for i in ids.reshape(-1)}))
        reference = _MixtureReference(self.cfg, moe, self._values(stored))
        for run, ids in zip(runs, routes, strict=True):
            run.routes = (*run.routes, ids.tobytes())
            run.note_routing(*reference.begin(run.routes, run.reference, ids))
        store = {
            name: np.empty(
                (len(held), *spec.shape[1:]), self.policy.dtype if spec.rows else np.float32
            )
            for name, spec in expert_params(self.cfg.d_model, moe).items()
        }
        make = partial(store_expert, self.source, self.layer, policy=self.policy)
        for row, (number, expert) in enumerate(zip(held, workers.map(make, held), strict=True)):
            reference.add(number, {n: stored_values(expert[n], self._one(n)) for n in expert})
            for name in store:
                store[name][row] = widened(expert[name], self._one(name))
        wide = self._wide(stored)
        while store:  # one copy in memory at a time
            name, values = store.popitem()
            wide = replace(wide, weights={**wide.weights, name: jnp.asarray(values)})
        outputs = self._emulate_all(runs, replace(wide, held=held), workers)
        for run, output in zip(runs, outputs, strict=True):
            run.advance("moe", self.layer, output, reference.totals[run.routes])

    def _one(self, name: str) -> Any:
        spec = self.specs[name]
        return replace(spec, shape=spec.shape[1:], axes=spec.axes[1:], batch=0)

    def _routes(
        self, stored: StoredBlock, hidden: Float16[np.ndarray, "tokens d"], moe: MoeConfig
    ) -> Int[np.ndarray, "tokens k"]:
        """Route each token by the block's own layer functions, on the state that all chips hold."""
        weights = stored.weights
        ids = [
            _choose(
                row.reshape(1, -1),
                weights["norm"],
                weights["router"],
                weights["router_bias"],
                policy=self.policy,
                moe=moe,
                eps=self.cfg.norm_eps,
            )
            for row in hidden
        ]
        return np.concatenate([np.asarray(one) for one in ids])


@partial(jax.jit, static_argnames=("policy", "moe", "eps"))
def _choose(
    row: Float16[Array, "1 d"],
    norm: Float32[Array, " d"],
    router: Array | QuantizedArray,
    bias: Float32[Array, " e"],
    *,
    policy: Policy,
    moe: MoeConfig,
    eps: float,
) -> Int[Array, "1 k"]:
    y = operand_rows(rms_norm(vxm.to_fp32(row), norm, eps), policy, "router")
    return route(linear(y, router, policy=policy), bias, moe)[0]


class _MixtureReference:
    """The float32 mixture, one expert in memory at a time."""

    def __init__(self, cfg: ModelConfig, moe: MoeConfig, shared: dict[str, Any]) -> None:
        self.cfg, self.moe, self.shared = cfg, moe, shared
        self.totals: dict[tuple[bytes, ...], Float32[np.ndarray, "tokens d"]] = {}
        self.inputs: dict[tuple[bytes, ...], tuple[Any, Any]] = {}
        # an expert's own share: the block without shared experts, holding this expert alone
        self.alone = replace(cfg, moe=replace(moe, n_shared=0))
        self.base = self._module(cfg, (), shared)

    def begin(
        self,
        key: tuple[bytes, ...],
        hidden: Float32[np.ndarray, "tokens d"],
        ids: Int[np.ndarray, "tokens k"],
    ) -> tuple[bool, float]:
        """Run everything but the routed experts, and compare the router's choice.

        Returns:
            Whether the reference chooses the same experts for every token, and its smallest margin.
        """
        x = jnp.asarray(hidden)[None]
        if key not in self.totals:
            self.inputs[key] = x, jnp.asarray(ids)[None]
            self.totals[key] = np.asarray(self.base(x)[0])
        own = np.asarray(self.base.route(x)[0][0])
        agree = all(set(a) == set(b) for a, b in zip(own.tolist(), ids.tolist(), strict=True))
        normed = np.asarray(self.base.norm(x)[0], np.float64)
        return agree, router_margin(
            normed, self.shared["router"], self.shared["router_bias"], self.moe
        )

    def add(self, number: int, values: dict[str, Float32[np.ndarray, "..."]]) -> None:
        """Add one expert's share wherever a token chose it."""
        stacked = {name: value[None] for name, value in values.items()}
        module = self._module(self.alone, (number,), self.shared | stacked)
        for key, (x, ids) in self.inputs.items():
            share = module(x, ids) - x
            self.totals[key] = self.totals[key] + np.asarray(share[0])

    def _module(self, cfg: ModelConfig, held: tuple[int, ...], params: dict[str, Any]) -> Moe:
        moe = self.moe
        empty = {
            "gate_up": np.zeros((0, cfg.d_model, 2, moe.d_expert), np.float32),
            "down": np.zeros((0, moe.d_expert, cfg.d_model), np.float32),
        }
        module = reference_block(cfg, "moe", empty | params, held)
        assert isinstance(module, Moe)
        return module


def router_margin(
    normed: Float[np.ndarray, "tokens d"],
    router: Float32[np.ndarray, "d e"],
    bias: Float32[np.ndarray, " e"],
    moe: MoeConfig,
) -> float:
    """Smallest distance in score from what the router took to the best it left, in float64."""
    scores = 1 / (1 + np.exp(-(normed @ router.astype(np.float64)))) + bias[None, :]
    smallest = math.inf
    for row in scores:
        if moe.n_groups > 1:
            grouped = row.reshape(moe.n_groups, -1)
            best_two = np.sort(grouped, axis=1)[:, -2:].sum(1)
            order = np.argsort(-best_two, kind="stable")
            ranked = best_two[order]
            if moe.topk_groups < moe.n_groups:
                smallest = min(smallest, ranked[moe.topk_groups - 1] - ranked[moe.topk_groups])
            row = grouped[order[: moe.topk_groups]].reshape(-1)
        ranked = np.sort(row)[::-1]
        if moe.top_k < len(ranked):
            smallest = min(smallest, ranked[moe.top_k - 1] - ranked[moe.top_k])
    return float(smallest)
